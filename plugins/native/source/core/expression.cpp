#include "expression.h"

namespace lmcast {
namespace {

[[noreturn]] void too_large() {
    throw RecipeError("a value takes more than 64 bits");
}

int64_t difference(int64_t first, int64_t second) {
    int64_t result;
    if (__builtin_sub_overflow(first, second, &result)) too_large();
    return result;
}

// As in Python: the quotient is rounded down, and the remainder has the sign of the divisor.
int64_t quotient(int64_t first, int64_t second) {
    if (second == 0) throw RecipeError("a division by 0");
    if (second == -1) return difference(0, first);
    int64_t const result = first / second;
    return first % second != 0 && (first < 0) != (second < 0) ? result - 1 : result;
}

int64_t remainder(int64_t first, int64_t second) {
    if (second == 0) throw RecipeError("a division by 0");
    if (second == -1) return 0;
    int64_t const result = first % second;
    return result != 0 && (result < 0) != (second < 0) ? result + second : result;
}

int64_t apply(char kind, int64_t first, int64_t second) {
    switch (kind) {
        case '+': return sum(first, second);
        case '-': return difference(first, second);
        case '*': return product(first, second);
        case '/': return quotient(first, second);
        case '%': return remainder(first, second);
        case 'm': return first < second ? first : second;
        default: return first > second ? first : second;
    }
}

}  // namespace

int64_t sum(int64_t first, int64_t second) {
    int64_t result;
    if (__builtin_add_overflow(first, second, &result)) too_large();
    return result;
}

int64_t product(int64_t first, int64_t second) {
    int64_t result;
    if (__builtin_mul_overflow(first, second, &result)) too_large();
    return result;
}

std::string text(Axis axis) {
    return std::to_string(axis.input) + "." + std::to_string(axis.axis);
}

int64_t Axis::of(Shapes const& shapes) const {
    if (input >= shapes.size() || axis >= shapes[input].size())
        throw RecipeError("there is no axis " + text(*this) + " among the inputs");
    return shapes[input][axis];
}

int64_t evaluate(Expression const& expression, Shapes const& shapes) {
    std::vector<int64_t> values;
    values.reserve(expression.size());
    for (auto term = expression.rbegin(); term != expression.rend(); ++term) {
        if (!term->is_operator()) {
            values.push_back(term->kind == 'n' ? term->number : term->axis.of(shapes));
            continue;
        }
        int64_t const first = values.back();  // the parser saw to it that there are two
        values.pop_back();
        values.back() = apply(term->kind, first, values.back());
    }
    return values.back();
}

}  // namespace lmcast
