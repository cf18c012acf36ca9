#include "recipe.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>
#include <set>

namespace lmcast {
namespace {

constexpr int64_t MOST = std::numeric_limits<int64_t>::max();
constexpr int64_t MOST_INPUTS = 1024;  // far beyond what any operator has
constexpr int64_t MOST_THREADS = 1024;  // of a block, on all kinds of GPU
constexpr int64_t MOST_SHARED_BYTES = 1 << 20;  // beyond any GPU, whose driver knows its own
constexpr int64_t MOST_SM = 9999;

std::map<std::string_view, Type> const TYPES = {
    {"fp32", Type::fp32}, {"fp16", Type::fp16}, {"bf16", Type::bf16},
    {"i32", Type::i32},   {"i64", Type::i64},
};

std::map<std::string_view, char> const OPERATORS = {
    {"+", '+'}, {"-", '-'}, {"*", '*'}, {"/", '/'}, {"%", '%'}, {"min", 'm'}, {"max", 'M'},
};

std::map<std::string_view, Argument::Kind> const ARGUMENTS = {
    {"in", Argument::Kind::input}, {"out", Argument::Kind::output},
    {"buf", Argument::Kind::buffer}, {"null", Argument::Kind::null},
    {"i32", Argument::Kind::i32}, {"fp32", Argument::Kind::fp32},
};

template <typename Number>
bool is_number(std::string_view token, Number& number) {
    auto const [end, error] = std::from_chars(token.data(), token.data() + token.size(), number);
    return error == std::errc() && end == token.data() + token.size();
}

class Reader {
public:
    Reader(std::string_view text, size_t image_bytes) : text_(text), image_bytes_(image_bytes) {}

    Recipe recipe() {
        word("lmcast-recipe");
        if (next() == "1") throw RecipeError("the launch plan is of an older lmcast: export again");
        if (token_ != "2") fail("'2', the version that is known here");
        Recipe recipe;
        several("kernels", 0, [&] { recipe.kernels.push_back(kernel()); });
        several("outputs", 1, [&] { recipe.outputs.push_back(output()); });
        updated_once(recipe.outputs);
        several("cases", 1, [&] { recipe.cases.push_back(one_case(recipe)); });
        if (!next().empty()) fail("the end of the launch plan");
        return recipe;
    }

private:
    // Returns the next token, and an empty one at the end.
    std::string_view next() {
        constexpr std::string_view SPACE = " \n\t\r";
        size_t const start = std::min(text_.find_first_not_of(SPACE), text_.size());
        size_t const end = std::min(text_.find_first_of(SPACE, start), text_.size());
        token_ = text_.substr(start, end - start);
        text_.remove_prefix(end);
        ++count_;
        return token_;
    }

    [[noreturn]] void fail(std::string const& accepted) const {
        // Not the whole token: it may be as long as the text.
        std::string const shown(token_.substr(0, 40));
        std::string const found = shown.empty() ? "the end" : "'" + shown + "'";
        throw RecipeError(
            "launch plan, token " + std::to_string(count_) + " is " + found + ", not " + accepted);
    }

    void word(std::string_view expected) {
        if (next() != expected) fail("'" + std::string(expected) + "'");
    }

    template <typename Value>
    Value one_of(std::map<std::string_view, Value> const& values, std::string const& accepted) {
        auto const found = values.find(next());
        if (found == values.end()) fail(accepted);
        return found->second;
    }

    int64_t integer(int64_t low, int64_t high) {
        int64_t number;
        if (!is_number(next(), number) || number < low || number > high)
            fail("an integer from " + std::to_string(low) + " to " + std::to_string(high));
        return number;
    }

    size_t index(std::string const& of, size_t count) {
        size_t number;
        if (!is_number(next(), number) || number >= count)
            fail(of + ", of which there are " + std::to_string(count));
        return number;
    }

    // A count that the text does not hold ends with the text: nothing is allocated by it.
    template <typename Read>
    void several(std::string_view name, int64_t least, Read read) {
        word(name);
        repeat(integer(least, MOST), read);
    }

    template <typename Read>
    void repeat(int64_t count, Read read) {
        for (int64_t i = 0; i < count; ++i) read();
    }

    Kernel kernel() {
        Kernel kernel;
        kernel.name = next();
        if (kernel.name.empty()) fail("the name of a kernel");
        kernel.threads = static_cast<uint32_t>(integer(1, MOST_THREADS));
        kernel.shared_bytes = static_cast<uint32_t>(integer(0, MOST_SHARED_BYTES));
        repeat(integer(1, MOST), [&] { kernel.images.push_back(image()); });
        return kernel;
    }

    Image image() {
        int64_t const sm = integer(10, MOST_SM);
        size_t const offset = index("a byte of the kernels", image_bytes_);
        int64_t const size = integer(1, static_cast<int64_t>(image_bytes_ - offset));
        int64_t const crc32 = integer(0, std::numeric_limits<uint32_t>::max());
        return {sm, offset, static_cast<size_t>(size), static_cast<uint32_t>(crc32)};
    }

    Output output() {
        Output output;
        output.type = one_of(TYPES, "a type: fp32, fp16, bf16, i32 or i64");
        output.alias = integer(-1, MOST_INPUTS - 1);
        repeat(integer(0, MOST_AXES), [&] { output.dims.push_back(dim()); });
        return output;
    }

    void updated_once(std::vector<Output> const& outputs) const {
        std::set<int64_t> updated;
        for (Output const& output : outputs)
            if (output.alias >= 0 && !updated.insert(output.alias).second)
                throw RecipeError(
                    "launch plan: two outputs are made from input " + std::to_string(output.alias));
    }

    Term dim() {
        next();
        Term term;
        if (!is_operand(term) || (term.kind == 'n' && term.number < 0)) fail("a size or an axis");
        return term;
    }

    Case one_case(Recipe const& recipe) {
        Case made;
        several("ranges", 0, [&] { made.ranges.push_back(range()); });
        several("buffers", 0, [&] { made.buffers.push_back(expression()); });
        several("launches", 0,
                [&] { made.launches.push_back(launch(recipe, made.buffers.size())); });
        return made;
    }

    Range range() {
        next();
        Range range;
        if (!is_axis(range.axis)) fail("an axis");
        range.low = integer(0, MOST);
        range.high = integer(0, MOST);
        return range;
    }

    Launch launch(Recipe const& recipe, size_t buffers) {
        Launch launch;
        launch.kernel = index("a kernel", recipe.kernels.size());
        launch.grid = expression();
        repeat(integer(0, MOST), [&] {
            launch.arguments.push_back(argument(recipe.outputs.size(), buffers));
        });
        return launch;
    }

    Argument argument(size_t outputs, size_t buffers) {
        Argument made{};
        made.kind = one_of(ARGUMENTS, "an argument: in, out, buf, null, i32 or fp32");
        switch (made.kind) {
            case Argument::Kind::input: made.index = index("an input", MOST_INPUTS); break;
            case Argument::Kind::output: made.index = index("an output", outputs); break;
            case Argument::Kind::buffer: made.index = index("a buffer", buffers); break;
            case Argument::Kind::null: break;
            case Argument::Kind::i32: made.value = expression(); break;
            case Argument::Kind::fp32: made.number = number(); break;
        }
        return made;
    }

    // Rounded from 64 bits, as Triton does with a Python float.
    float number() {
        double value;
        if (!is_number(next(), value) ||
            (std::isfinite(value) && std::abs(value) > std::numeric_limits<float>::max()))
            fail("a number of fp32");
        return static_cast<float>(value);
    }

    Expression expression() {
        Expression terms;
        for (size_t missing = 1; missing > 0;) {
            terms.push_back(term());
            missing = terms.back().is_operator() ? missing + 1 : missing - 1;
        }
        return terms;
    }

    Term term() {
        Term term{};
        auto const found = OPERATORS.find(next());
        if (found != OPERATORS.end())
            term.kind = found->second;
        else if (!is_operand(term))
            fail("an expression");
        return term;
    }

    bool is_operand(Term& term) const {
        term = {'n', 0, {}};
        if (is_number(token_, term.number)) return true;
        term.kind = 'a';
        return is_axis(term.axis);
    }

    bool is_axis(Axis& axis) const {
        size_t const dot = token_.find('.');
        return dot != std::string_view::npos && is_number(token_.substr(0, dot), axis.input) &&
               is_number(token_.substr(dot + 1), axis.axis) &&
               axis.axis < MOST_AXES;
    }

    std::string_view text_;
    size_t image_bytes_;
    std::string_view token_;
    size_t count_ = 0;
};

}  // namespace

int64_t bytes_of(Type type) {
    switch (type) {
        case Type::fp16:
        case Type::bf16: return 2;
        case Type::i64: return 8;
        default: return 4;
    }
}

void expect_outputs(Recipe const& recipe, size_t count) {
    if (count != recipe.outputs.size())
        throw RecipeError("the node has " + std::to_string(count) + " outputs, its launch plan " +
                          std::to_string(recipe.outputs.size()));
}

Recipe read_recipe(std::string_view text, size_t image_bytes) {
    return Reader(text, image_bytes).recipe();
}

}  // namespace lmcast
