// What compiled kernels say of themselves: fat binaries of the CUDA compiler, machine code of
// Triton's, and the stand-in for machine code that is run in Triton's interpreter.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "gpu.h"

namespace fake {

// Whether a fat binary, or machine code, has an image that runs on the GPU.
bool has_image(void const* code);

struct KernelFacts {
    int64_t parameter_bytes = -1;  // -1: not said
    int64_t threads = -1;          // that a block must have
};

struct Image {
    std::map<std::string, KernelFacts> kernels;
    std::string code;  // of the stand-in: what the interpreter is given
};

// Reads machine code that begins here, as cuModuleLoadData does: INVALID_IMAGE, NO_IMAGE_FOR_GPU.
Error read_image(void const* start, Image* image);

}  // namespace fake
