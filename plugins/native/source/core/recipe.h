// A launch plan: how one node of a graph is computed by kernels that were compiled ahead of time.
// Its text and the attribute that holds it are called "recipe".
//
// It is text, in a plan from anywhere: whatever it says is checked when it is read, or when it is
// used, and refused with a RecipeError. The grammar, as tokens between white space:
//
//   lmcast-recipe 2
//   kernels K    K times:  NAME THREADS SHARED_BYTES N    N times: SM OFFSET SIZE CRC32
//   outputs O    O times:  TYPE ALIAS RANK                RANK times: an INTEGER or I.A
//   cases M      M times:
//     ranges R     R times:  I.A LOW HIGH                 a case fits if all hold
//     buffers N    N times:  EXPR                         bytes of a piece of the workspace
//     launches L   L times:  KERNEL GRID_EXPR N           N times: an ARGUMENT
//
//   TYPE      fp32 | fp16 | bf16 | i32 | i64
//   ALIAS     the input whose memory the kernels update in place to make this output, or -1
//   ARGUMENT  in I | out O | buf N | null | i32 EXPR | fp32 NUMBER
//   EXPR      INTEGER | I.A (axis A of input I) | OPERATOR EXPR EXPR, with + - * / % min max
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "expression.h"

namespace lmcast {

// The machine code of a kernel for one kind of GPU, as a place among the bytes of all.
struct Image {
    int64_t sm;  // 89: compute capability 8.9
    size_t offset;
    size_t size;
    uint32_t crc32;  // of the bytes
};

struct Kernel {
    std::string name;
    uint32_t threads;
    uint32_t shared_bytes;
    std::vector<Image> images;
};

constexpr size_t MOST_AXES = 8;  // of a tensor, as in TensorRT

enum class Type { fp32, fp16, bf16, i32, i64 };

int64_t bytes_of(Type type);

struct Output {
    Type type;
    int64_t alias;
    std::vector<Term> dims;  // numbers and axes
};

struct Range {
    Axis axis;
    int64_t low;
    int64_t high;
};

struct Argument {
    enum class Kind { input, output, buffer, null, i32, fp32 };
    Kind kind;
    size_t index;      // of an input, output or buffer
    Expression value;  // i32
    float number;      // fp32
};

struct Launch {
    size_t kernel;
    Expression grid;
    std::vector<Argument> arguments;
};

struct Case {
    std::vector<Range> ranges;
    std::vector<Expression> buffers;
    std::vector<Launch> launches;
};

struct Recipe {
    std::vector<Kernel> kernels;
    std::vector<Output> outputs;
    std::vector<Case> cases;
};

// Throws RecipeError where a node has another number of outputs than its launch plan.
void expect_outputs(Recipe const& recipe, size_t count);

// `image_bytes`: how many bytes the machine code of all kernels has.
Recipe read_recipe(std::string_view text, size_t image_bytes);

}  // namespace lmcast
