// The functions of NVIDIA's driver that a launch takes, found when the first one is due: so the
// library builds without a CUDA toolkit, and loads on a machine without a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>

struct CUstream_st;  // global: as TensorRT passes it

namespace lmcast::cuda {

struct Error : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// The types and numbers of cuda.h; they are part of the driver's binary interface.
using Result = int;  // 0: success
using Device = int;
using Context = struct CUctx_st*;
using Module = struct CUmod_st*;
using Function = struct CUfunc_st*;
using Stream = CUstream_st*;
using Pointer = uint64_t;

enum DeviceAttribute { COMPUTE_CAPABILITY_MAJOR = 75, COMPUTE_CAPABILITY_MINOR = 76 };
enum FunctionAttribute { MAX_DYNAMIC_SHARED_SIZE_BYTES = 8 };

// Keys of cuLaunchKernel's last argument: all parameters as one block of memory, and its size.
inline void* const PARAMETERS_END = nullptr;
inline void* const PARAMETERS = reinterpret_cast<void*>(1);
inline void* const PARAMETERS_SIZE = reinterpret_cast<void*>(2);

struct Driver {
    Result (*get_error_name)(Result, char const**);
    Result (*get_current_context)(Context*);
    Result (*push_context)(Context);
    Result (*pop_context)(Context*);
    Result (*get_device)(Device*);
    Result (*get_attribute)(int*, int, Device);
    Result (*load_module)(Module*, void const*);
    Result (*unload_module)(Module);
    Result (*get_function)(Function*, Module, char const*);
    Result (*set_attribute)(Function, int, int);
    Result (*copy)(Pointer, Pointer, size_t, Stream);
    Result (*launch)(
        Function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
        unsigned block_y, unsigned block_z, unsigned shared_bytes, Stream, void**, void**);

    // Throws Error, which names the function, where the result is not success.
    void check(Result result, char const* function) const;
};

// Throws Error where there is no driver; the next call looks again.
Driver const& driver();

}  // namespace lmcast::cuda
