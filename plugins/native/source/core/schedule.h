// What a launch plan does for inputs of given shapes: the same for a GPU, and for tests without.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "recipe.h"

namespace lmcast {

// An argument of a launch; a place among the tensors until there is memory.
struct Value {
    Argument::Kind kind;
    size_t index;   // of an input or output; of a buffer, its offset in the workspace
    uint32_t bits;  // of an i32 or fp32
};

struct Call {
    size_t kernel;
    uint32_t grid;
    std::vector<Value> arguments;
};

// The input's bytes are wanted in the memory of an output, which the kernels update in place.
struct Copy {
    size_t input;
    size_t output;
    int64_t bytes;
};

struct Schedule {
    size_t case_index;
    int64_t workspace;  // bytes
    std::vector<Copy> copies;
    std::vector<Call> calls;
};

Schedule schedule(Recipe const& recipe, Shapes const& shapes);

// Returns the bytes that the largest case takes among shapes up to `greatest`, where buffers do not
// shrink as axes grow; `schedule` at any shape tells what it takes, and the plugin compares.
int64_t workspace_bound(Recipe const& recipe, Shapes const& least, Shapes const& greatest);

std::string text(Recipe const& recipe, Schedule const& schedule);

}  // namespace lmcast
