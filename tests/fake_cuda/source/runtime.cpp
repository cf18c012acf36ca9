// libcudart.so.13: the runtime, as far as ONNX Runtime's CUDA provider uses it.
#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <mutex>
#include <vector>

#include "gpu.h"
#include "images.h"

using namespace fake;

namespace fake {
void use_primary_context();
}

namespace {

constexpr int VERSION = 13000;
constexpr size_t WITHOUT_ASKING = 48 << 10;  // shared memory that a launch may have as it is

struct FatBinary {
    void const* start;
    int runs = -1;  // whether an image is for this GPU; -1: not looked yet
};
struct Function {
    FatBinary* binary;
    std::string name;
    size_t dynamic_shared = WITHOUT_ASKING;
};
struct Configuration {
    Shape grid, block;
    size_t shared;
    void* stream;
};

std::mutex mutex;
std::map<void const*, Function> functions;  // by their stand-ins on the host
thread_local std::vector<Configuration> configurations;
thread_local int last_error = OK;

int done(int error) {
    if (error) last_error = error;
    return error;
}

// Nearly every function needs a driver of its version and a GPU first.
template <typename Call>
int call(Call what) {
    int error = OK;
    if (settings().driver / 1000 < VERSION / 1000) error = INSUFFICIENT_DRIVER;
    else if (!settings().present) error = NO_DEVICE;
    if (error) return done(error);
    use_primary_context();
    return done(what());
}

// The kernel with this stand-in, if an image of it runs on this GPU.
Error find(void const* host, Function** found) {
    std::lock_guard const lock(mutex);
    auto const known = functions.find(host);
    if (known == functions.end()) return INVALID_FUNCTION;
    FatBinary& binary = *known->second.binary;
    if (binary.runs < 0) binary.runs = has_image(binary.start);
    *found = &known->second;
    return binary.runs ? OK : NO_IMAGE_FOR_GPU;
}

int launch(void const* host, Configuration const& given) {
    Function* function;
    if (Error const error = find(host, &function)) return error;
    if (!can_launch(given.grid, given.block, given.shared, function->dynamic_shared))
        return INVALID_CONFIGURATION;
    return submit(given.stream,
                  launch_fields(function->name, "runtime", given.grid, given.block, given.shared),
                  nullptr);
}

char const* way(int kind) {
    static char const* const names[] = {"HtoH", "HtoD", "DtoH", "DtoD", "default"};
    return kind >= 0 && kind <= 4 ? names[kind] : "default";
}

// cudaFuncAttributes, as far as it is filled; with what is reserved it has 144 bytes.
struct FunctionAttributes {
    size_t shared, constant, local;
    int threads, registers, ptx, binary, cache, dynamic_shared, unused[24];
};
constexpr int DYNAMIC_SHARED = 8;  // cudaFuncAttributeMaxDynamicSharedMemorySize

struct PointerAttributes {
    int type, device;  // type: 0 not of CUDA, 1 host, 2 device
    void const *device_pointer, *host_pointer;
    long unused[8];
};

struct LaunchConfiguration {
    Shape grid, block;
    size_t shared;
    void* stream;
};

// cudaDeviceProp of CUDA 13.
struct Properties {
    char name[256], uuid[16], luid[8];
    unsigned luid_mask;
    size_t memory, shared_per_block;
    int registers_per_block, warp;
    size_t pitch;
    int threads_per_block, block[3], grid[3];
    size_t constant;
    int major, minor;
    size_t texture_alignment, texture_pitch_alignment;
    int multiprocessors, integrated, maps_host_memory;
    int textures[39];
    size_t surface_alignment;
    int concurrent_kernels, ecc, bus, device, domain, tcc, copy_engines, unified_addressing;
    int bus_bits, l2, persisting_l2, threads_per_multiprocessor, priorities, global_l1, local_l1;
    size_t shared_per_multiprocessor;
    int registers_per_multiprocessor, managed, multi_gpu, group, host_atomics, pageable;
    int concurrent_managed, preemption, host_pointers, cooperative;
    size_t shared_optin;
    int page_tables, direct_managed, blocks_per_multiprocessor, window;
    size_t reserved_shared;
    int host_register, sparse, host_register_read_only, timeline, memory_pools, rdma;
    int rest[70];
};

}  // namespace

// --- Kernels, as code of the CUDA compiler registers and launches them
API void** __cudaRegisterFatBinary(void* wrapper) {
    struct Wrapper {
        int magic, version;
        void const* start;
    };
    auto const binary = new FatBinary{static_cast<Wrapper*>(wrapper)->start};
    return reinterpret_cast<void**>(binary);
}
API void __cudaRegisterFatBinaryEnd(void**) {}
API void __cudaUnregisterFatBinary(void**) {}
API void __cudaRegisterFunction(void** binary, char const* host, char*, char const* name) {
    std::lock_guard const lock(mutex);
    functions[host] = {reinterpret_cast<FatBinary*>(binary), demangled(name)};
}
API void __cudaRegisterVar() {}
API unsigned __cudaPushCallConfiguration(Shape grid, Shape block, size_t shared, void* stream) {
    configurations.push_back({grid, block, shared, stream});
    return 0;
}
API int __cudaPopCallConfiguration(Shape* grid, Shape* block, size_t* shared, void** stream) {
    Configuration const last = configurations.back();
    configurations.pop_back();
    *grid = last.grid, *block = last.block, *shared = last.shared, *stream = last.stream;
    return OK;
}
API int __cudaGetKernel(void const** kernel, void const* host) { return *kernel = host, OK; }
API int cudaLaunchKernel(void const* host, Shape grid, Shape block, void**, size_t shared,
                         void* stream) {
    return call([&] { return launch(host, {grid, block, shared, stream}); });
}
API int __cudaLaunchKernel(void const* kernel, Shape grid, Shape block, void** arguments,
                           size_t shared, void* stream) {
    return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}
API int cudaLaunchCooperativeKernel(void const* host, Shape grid, Shape block, void** arguments,
                                    size_t shared, void* stream) {
    return cudaLaunchKernel(host, grid, block, arguments, shared, stream);
}
API int cudaLaunchKernelExC(LaunchConfiguration const* given, void const* host, void** arguments) {
    return cudaLaunchKernel(host, given->grid, given->block, arguments, given->shared,
                            given->stream);
}
API int cudaLaunchHostFunc(void* stream, void (*function)(void*), void* data) {
    return call([&] {
        return submit(stream, "\"kind\": \"host\"", [=] { return function(data), OK; });
    });
}
API int cudaFuncGetAttributes(FunctionAttributes* found, void const* host) {
    return call([&] {
        Function* function;
        if (Error const error = find(host, &function)) return int(error);
        std::memset(found, 0, sizeof *found);
        found->threads = 1024, found->registers = 64;
        found->ptx = found->binary = settings().sm;
        found->dynamic_shared = static_cast<int>(function->dynamic_shared);
        return int(OK);
    });
}
API int cudaFuncSetAttribute(void const* host, int attribute, int value) {
    return call([&] {
        Function* function;
        if (Error const error = find(host, &function)) return int(error);
        if (attribute != DYNAMIC_SHARED) return int(OK);
        if (value < 0 || value > device_attribute(BLOCK_SHARED_OPTIN)) return int(INVALID_VALUE);
        function->dynamic_shared = static_cast<size_t>(value);
        return int(OK);
    });
}
API int cudaKernelSetAttributeForDevice(void const* host, int attribute, int value, int) {
    return cudaFuncSetAttribute(host, attribute, value);
}
API int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, void const*,
                                                               int threads, size_t shared) {
    return call([&] {
        auto const all = static_cast<size_t>(device_attribute(MULTIPROCESSOR_SHARED));
        auto const most = static_cast<size_t>(device_attribute(MULTIPROCESSOR_THREADS));
        auto const by_threads = most / static_cast<size_t>(std::max(threads, 1));
        *blocks = static_cast<int>(std::min(by_threads, shared ? all / (shared + 1024) : 32));
        return OK;
    });
}
// Libraries hold kernels by name: cuDNN and CUTLASS of other versions load some this way.
API int cudaLibraryLoadData(void** library, void const* start) {
    return call([&] { return *library = new FatBinary{start}, OK; });
}
API int cudaLibraryUnload(void*) { return OK; }
API int cudaLibraryGetKernel(void const** kernel, void* library, char const* name) {
    return call([&] {
        auto const host = new char;
        std::lock_guard const lock(mutex);
        functions[host] = {static_cast<FatBinary*>(library), demangled(name)};
        return *kernel = host, OK;
    });
}

// --- The device
API int cudaDriverGetVersion(int* version) { return *version = settings().driver, OK; }
API int cudaRuntimeGetVersion(int* version) { return *version = VERSION, OK; }
API int cudaGetDeviceCount(int* count) {
    *count = 0;
    return call([&] { return *count = 1, OK; });
}
API int cudaGetDevice(int* device) {
    return call([&] { return *device = 0, OK; });
}
API int cudaSetDevice(int device) {
    return call([&] { return device == 0 ? OK : INVALID_DEVICE; });
}
API int cudaDeviceGetAttribute(int* value, int attribute, int device) {
    return call([&] {
        *value = device_attribute(attribute);
        return device == 0 ? OK : INVALID_DEVICE;
    });
}
API int cudaGetDeviceProperties(Properties* found, int device) {
    return call([&] {
        if (device != 0) return INVALID_DEVICE;
        auto const get = device_attribute;
        std::memset(found, 0, sizeof *found);
        std::strcpy(found->name, ("Fake GPU SM" + std::to_string(settings().sm)).c_str());
        found->memory = settings().memory;
        found->major = get(MAJOR), found->minor = get(MINOR);
        found->multiprocessors = get(MULTIPROCESSORS);
        found->threads_per_block = get(BLOCK_THREADS), found->warp = get(WARP);
        found->threads_per_multiprocessor = get(MULTIPROCESSOR_THREADS);
        found->blocks_per_multiprocessor = get(MULTIPROCESSOR_BLOCKS);
        for (int i = 0; i < 3; ++i) {
            found->block[i] = get(BLOCK_X + i);
            found->grid[i] = get(GRID_X + i);
        }
        found->shared_per_block = static_cast<size_t>(get(BLOCK_SHARED));
        found->shared_optin = static_cast<size_t>(get(BLOCK_SHARED_OPTIN));
        found->shared_per_multiprocessor = static_cast<size_t>(get(MULTIPROCESSOR_SHARED));
        found->reserved_shared = settings().sm > 75 ? 1024 : 0;
        found->registers_per_block = found->registers_per_multiprocessor = get(BLOCK_REGISTERS);
        found->constant = static_cast<size_t>(get(CONSTANT_BYTES)), found->pitch = 2147483647;
        found->texture_alignment = 512, found->texture_pitch_alignment = 32;
        found->l2 = get(L2_BYTES), found->bus_bits = get(BUS_BITS);
        found->copy_engines = get(COPY_ENGINES);
        found->unified_addressing = found->managed = found->maps_host_memory = 1;
        found->concurrent_kernels = found->cooperative = found->memory_pools = 1;
        return OK;
    });
}
API int cudaDeviceSynchronize() {
    return call([&] {
        Error const error = may_wait();
        return error ? error : wait("device", nullptr);
    });
}
API int cudaGetDriverEntryPointByVersion(char const* name, void** found, unsigned version,
                                         unsigned long long flags, int* status) {
    using Find = int (*)(char const*, void**, int, uint64_t, int*);
    static Find const find_in_driver = [] {
        void* const driver = dlopen("libcuda.so.1", RTLD_NOW);
        return driver ? reinterpret_cast<Find>(dlsym(driver, "cuGetProcAddress_v2")) : nullptr;
    }();
    return call([&] {
        if (find_in_driver) find_in_driver(name, found, static_cast<int>(version), flags, status);
        return OK;
    });
}
API char const* cudaGetErrorName(int error) { return describe(error).runtime_name; }
API char const* cudaGetErrorString(int error) { return describe(error).text; }
API int cudaPeekAtLastError() { return last_error; }
API int cudaGetLastError() {
    int const error = last_error;
    return last_error = OK, error;
}

// --- Memory
API int cudaMalloc(void** address, size_t bytes) {
    return call([&] {
        if (Error const error = may_wait()) return error;
        if (!bytes) return *address = nullptr, OK;
        return allocate(address, bytes, Place::DEVICE, "runtime");
    });
}
API int cudaMallocFromPoolAsync(void** address, size_t bytes) {
    return call([&] { return allocate(address, bytes, Place::DEVICE, "runtime"); });
}
API int cudaFree(void* address) {
    return call([&] {
        Error const error = may_wait();
        return error ? error : release(address, "runtime");
    });
}
API int cudaFreeAsync(void* address) {
    return call([&] { return release(address, "runtime"); });
}
API int cudaHostAlloc(void** address, size_t bytes) {
    return call([&] {
        Error const error = may_wait();
        return error ? error : allocate(address, bytes, Place::HOST, "runtime");
    });
}
API int cudaMallocHost(void** address, size_t bytes) { return cudaHostAlloc(address, bytes); }
API int cudaFreeHost(void* address) {
    return call([&] { return release(address, "runtime"); });
}
API int cudaMemGetInfo(size_t* free, size_t* total) {
    return call([&] {
        *total = settings().memory;
        *free = *total - bytes_in_use();
        return OK;
    });
}
API int cudaMemcpy(void* to, void const* from, size_t bytes, int kind) {
    return call([&] { return copy_now(to, from, bytes, way(kind)); });
}
API int cudaMemcpyAsync(void* to, void const* from, size_t bytes, int kind, void* stream) {
    return call([&] { return copy(to, from, bytes, way(kind), stream); });
}
API int cudaMemcpy2DAsync(void* to, size_t to_pitch, void const* from, size_t from_pitch,
                          size_t width, size_t height, int kind, void* stream) {
    return call([&] {
        Error error = OK;
        for (size_t row = 0; row < height && !error; ++row)
            error = copy(static_cast<char*>(to) + row * to_pitch,
                         static_cast<char const*>(from) + row * from_pitch, width, way(kind),
                         stream);
        return error;
    });
}
// Variables of kernels: nothing writes to them here.
API int cudaMemcpyFromSymbol(void* to, void const*, size_t bytes) {
    return call([&] { return std::memset(to, 0, bytes), OK; });
}
API int cudaMemset(void* to, int value, size_t bytes) {
    return call([&] {
        Error const error = may_wait();
        return error ? error : fill(to, static_cast<unsigned>(value), 1, bytes, nullptr);
    });
}
API int cudaMemsetAsync(void* to, int value, size_t bytes, void* stream) {
    return call([&] { return fill(to, static_cast<unsigned>(value), 1, bytes, stream); });
}
API int cudaPointerGetAttributes(PointerAttributes* found, void const* address) {
    return call([&] {
        std::memset(found, 0, sizeof *found);
        Place const place = span_of(address).place;
        found->type = static_cast<int>(place);
        if (place != Place::NOWHERE) found->device_pointer = address;
        if (place != Place::DEVICE) found->host_pointer = address;
        return OK;
    });
}
API int cudaMemPoolCreate(void** pool) {
    return call([&] { return *pool = new char, OK; });
}
API int cudaMemPoolDestroy(void* pool) { return delete static_cast<char*>(pool), OK; }
API int cudaMemPoolGetAttribute(void*, int, void* value) {
    return *static_cast<uint64_t*>(value) = 0, OK;
}
API int cudaMemPoolSetAttribute(void*, int, void*) { return OK; }
API int cudaMemPoolTrimTo(void*, size_t) { return OK; }

// --- Streams, events, graphs
API int cudaStreamCreateWithFlags(void** stream, unsigned flags) {
    return call([&] { return create_stream(stream, flags); });
}
API int cudaStreamCreate(void** stream) { return cudaStreamCreateWithFlags(stream, 0); }
API int cudaStreamDestroy(void* stream) {
    return call([&] { return destroy_stream(stream); });
}
API int cudaStreamSynchronize(void* stream) {
    return call([&] { return wait("stream", stream); });
}
API int cudaStreamWaitEvent(void* stream, void* event, unsigned) {
    return call([&] { return wait_event(stream, event); });
}
API int cudaStreamBeginCapture(void* stream, int mode) {
    return call([&] { return begin_capture(stream, mode); });
}
API int cudaStreamEndCapture(void* stream, void** graph) {
    return call([&] { return end_capture(stream, graph); });
}
API int cudaStreamIsCapturing(void* stream, int* status) {
    return call([&] { return capture_status(stream, status); });
}
API int cudaEventCreateWithFlags(void** event, unsigned) {
    return call([&] { return create_event(event); });
}
API int cudaEventCreate(void** event) { return cudaEventCreateWithFlags(event, 0); }
API int cudaEventDestroy(void* event) {
    return call([&] { return destroy_event(event); });
}
API int cudaEventRecord(void* event, void* stream) {
    return call([&] { return record_event(event, stream); });
}
API int cudaEventRecordWithFlags(void* event, void* stream, unsigned) {
    return cudaEventRecord(event, stream);
}
API int cudaEventSynchronize(void* event) {
    return call([&] { return synchronize_event(event); });
}
// A millisecond, whatever lies between: nothing here takes time.
API int cudaEventElapsedTime(float* milliseconds, void*, void*) {
    return call([&] { return *milliseconds = 1, OK; });
}
API int cudaGraphInstantiate(void** made, void* graph, unsigned long long) {
    return call([&] { return instantiate(made, graph); });
}
API int cudaGraphLaunch(void* graph, void* stream) {
    return call([&] { return launch_graph(graph, stream); });
}
API int cudaGraphDestroy(void* graph) {
    return call([&] { return destroy_graph(graph); });
}
API int cudaGraphExecDestroy(void* graph) {
    return call([&] { return destroy_graph(graph); });
}
