// Whole-number expressions over the sizes of inputs, in prefix notation: "* 4 + 0.1 63" is
// 4 * (axis 1 of input 0 + 63).
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace lmcast {

// What is wrong with a launch plan, or with shapes that it is used for.
struct RecipeError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

using Shape = std::vector<int64_t>;
using Shapes = std::vector<Shape>;  // by input

struct Axis {
    size_t input;
    size_t axis;

    int64_t of(Shapes const& shapes) const;
};

std::string text(Axis axis);

struct Term {
    // The letter of an operator, 'm' of min and 'M' of max; 'n' of a number, 'a' of an axis.
    char kind;
    int64_t number;
    Axis axis;

    bool is_operator() const { return kind != 'n' && kind != 'a'; }
};

// Terms in prefix order. They are evaluated from the back, over a stack: a hostile text then costs
// memory by its own length, and no depth of calls.
using Expression = std::vector<Term>;

// Throws RecipeError for an axis that is not there, for more than 64 bits, for a division by 0.
int64_t evaluate(Expression const& expression, Shapes const& shapes);

int64_t product(int64_t first, int64_t second);
int64_t sum(int64_t first, int64_t second);

}  // namespace lmcast
