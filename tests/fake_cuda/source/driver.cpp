// libcuda.so.1: the driver. Functions of it are those that ONNX Runtime's CUDA provider, our
// plugins and our use of NVIDIA's cuda-bindings ask for; others are not found.
#include <dlfcn.h>

#include <cctype>
#include <cstring>
#include <mutex>
#include <set>
#include <vector>

#include "gpu.h"
#include "images.h"

using namespace fake;

namespace {

struct Module {
    Image image;
};
struct Function {
    Module* module;
    std::string name;
    KernelFacts facts;
    size_t dynamic_shared = 48 << 10;  // bytes that a launch may ask for
};

using Pointer = uintptr_t;
using Interpreter = int (*)(char const* code, size_t size, char const* kernel, unsigned const* grid,
                            void const* parameters, size_t parameter_bytes);

bool initialized = false;
void* const PRIMARY_CONTEXT = &initialized;
thread_local std::vector<void*> contexts;  // the last one is current
Interpreter interpreter = nullptr;
std::mutex mutex;
std::set<void*> modules, functions;

constexpr int DYNAMIC_SHARED = 8;  // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES

// What nearly all functions need first.
int ready() {
    if (!initialized) return NOT_INITIALIZED;
    return contexts.empty() || !contexts.back() ? INVALID_CONTEXT : OK;
}

template <typename Call>
int when_ready(Call call) {
    int const error = ready();
    return error ? error : call();
}

void* address(Pointer pointer) { return reinterpret_cast<void*>(pointer); }

// All parameters as one block of memory: keys of cuLaunchKernel's last argument.
bool parameter_block(void** extra, void** block, size_t* size) {
    *block = nullptr, *size = 0;
    for (; extra && *extra; extra += 2) {
        if (extra[0] == address(1)) *block = extra[1];
        else if (extra[0] == address(2)) *size = *static_cast<size_t*>(extra[1]);
        else return false;
    }
    return true;
}

}  // namespace

namespace fake {
// What the runtime does for each thread that calls it.
void use_primary_context() {
    initialized = true;
    if (contexts.empty()) contexts.push_back(PRIMARY_CONTEXT);
    if (!contexts.back()) contexts.back() = PRIMARY_CONTEXT;
}
}  // namespace fake

API void fake_interpret(Interpreter with) { interpreter = with; }

API int cuInit(unsigned) {
    if (!settings().present) return NO_DEVICE;
    initialized = true;
    return OK;
}
API int cuDriverGetVersion(int* version) { return *version = settings().driver, OK; }
API int cuGetErrorName(int code, char const** name) {
    *name = describe(code).driver_name;
    return OK;
}
API int cuGetErrorString(int code, char const** text) {
    *text = describe(code).text;
    return OK;
}

// --- Devices and contexts: one of each.
API int cuDeviceGetCount(int* count) {
    if (!initialized) return NOT_INITIALIZED;
    *count = 1;
    return OK;
}
API int cuDeviceGet(int* device, int ordinal) {
    if (!initialized) return NOT_INITIALIZED;
    *device = ordinal;
    return ordinal == 0 ? OK : INVALID_DEVICE;
}
API int cuDeviceGetName(char* name, int size, int device) {
    if (device != 0) return INVALID_DEVICE;
    std::string const text = "Fake GPU SM" + std::to_string(settings().sm);
    std::strncpy(name, text.c_str(), static_cast<size_t>(size));
    return OK;
}
API int cuDeviceGetAttribute(int* value, int attribute, int device) {
    if (!initialized) return NOT_INITIALIZED;
    *value = device_attribute(attribute);
    return device == 0 ? OK : INVALID_DEVICE;
}
API int cuDeviceTotalMem_v2(size_t* bytes, int device) {
    *bytes = settings().memory;
    return device == 0 ? OK : INVALID_DEVICE;
}
API int cuDevicePrimaryCtxRetain(void** context, int device) {
    if (!initialized) return NOT_INITIALIZED;
    *context = PRIMARY_CONTEXT;
    return device == 0 ? OK : INVALID_DEVICE;
}
API int cuDevicePrimaryCtxRelease_v2(int device) { return device == 0 ? OK : INVALID_DEVICE; }
API int cuCtxPushCurrent_v2(void* context) {
    if (!initialized) return NOT_INITIALIZED;
    if (context && context != PRIMARY_CONTEXT) return INVALID_CONTEXT;
    contexts.push_back(context);
    return OK;
}
API int cuCtxPopCurrent_v2(void** context) {
    if (int const error = ready()) return error;
    if (context) *context = contexts.back();
    contexts.pop_back();
    return OK;
}
API int cuCtxSetCurrent(void* context) {
    if (!contexts.empty()) contexts.pop_back();
    return cuCtxPushCurrent_v2(context);
}
API int cuCtxGetCurrent(void** context) {
    if (!initialized) return NOT_INITIALIZED;
    *context = contexts.empty() ? nullptr : contexts.back();
    return OK;
}
API int cuCtxGetDevice(int* device) { return *device = 0, ready(); }
API int cuCtxSynchronize() {
    return when_ready([] {
        Error const error = may_wait();
        return error ? error : wait("device", nullptr);
    });
}

// --- Memory
API int cuMemGetInfo_v2(size_t* free, size_t* total) {
    return when_ready([=] {
        *total = settings().memory;
        *free = *total - bytes_in_use();
        return OK;
    });
}
API int cuMemAlloc_v2(Pointer* pointer, size_t bytes) {
    return when_ready([=] {
        if (Error const error = may_wait()) return error;
        if (!bytes) return INVALID_VALUE;
        return allocate(reinterpret_cast<void**>(pointer), bytes, Place::DEVICE, "driver");
    });
}
API int cuMemAllocAsync(Pointer* pointer, size_t bytes, void*) {
    return when_ready([=] {
        if (!bytes) return INVALID_VALUE;
        return allocate(reinterpret_cast<void**>(pointer), bytes, Place::DEVICE, "driver");
    });
}
API int cuMemFree_v2(Pointer pointer) {
    return when_ready([=] {
        Error const error = may_wait();
        return error ? error : release(address(pointer), "driver");
    });
}
API int cuMemFreeAsync(Pointer pointer, void*) {
    return when_ready([=] { return release(address(pointer), "driver"); });
}
API int cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
    return when_ready([=] {
        Error const error = may_wait();
        return error ? error : allocate(pointer, bytes, Place::HOST, "driver");
    });
}
API int cuMemAllocHost_v2(void** pointer, size_t bytes) {
    return cuMemHostAlloc(pointer, bytes, 0);
}
API int cuMemFreeHost(void* pointer) {
    return when_ready([=] { return release(pointer, "driver"); });
}
API int cuMemcpy(Pointer to, Pointer from, size_t bytes) {
    return when_ready([=] { return copy_now(address(to), address(from), bytes, "default"); });
}
API int cuMemcpyHtoD_v2(Pointer to, void const* from, size_t bytes) {
    return when_ready([=] { return copy_now(address(to), from, bytes, "HtoD"); });
}
API int cuMemcpyDtoH_v2(void* to, Pointer from, size_t bytes) {
    return when_ready([=] { return copy_now(to, address(from), bytes, "DtoH"); });
}
API int cuMemcpyDtoD_v2(Pointer to, Pointer from, size_t bytes) {
    return when_ready([=] { return copy(address(to), address(from), bytes, "DtoD", nullptr); });
}
API int cuMemcpyAsync(Pointer to, Pointer from, size_t bytes, void* stream) {
    return when_ready([=] { return copy(address(to), address(from), bytes, "default", stream); });
}
API int cuMemcpyHtoDAsync_v2(Pointer to, void const* from, size_t bytes, void* stream) {
    return when_ready([=] { return copy(address(to), from, bytes, "HtoD", stream); });
}
API int cuMemcpyDtoHAsync_v2(void* to, Pointer from, size_t bytes, void* stream) {
    return when_ready([=] { return copy(to, address(from), bytes, "DtoH", stream); });
}
API int cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t bytes, void* stream) {
    return when_ready([=] { return copy(address(to), address(from), bytes, "DtoD", stream); });
}
// Lines of bytes, which lie a pitch apart; CUDA_MEMCPY2D of cuda.h.
struct Sides2D {
    size_t x, y;
    int type;  // 1 host, 2 device
    void* host;
    Pointer device;
    void* array;
    size_t pitch;
};
struct Copy2D {
    Sides2D from, to;
    size_t width, height;
};
API int cuMemcpy2DAsync_v2(Copy2D const* asked, void* stream) {
    return when_ready([=] {
        Sides2D const &from = asked->from, &to = asked->to;
        bool const known = from.type == 2 && to.type == 2 && !(from.x | from.y | to.x | to.y);
        if (!known) return NOT_SUPPORTED;
        if (asked->width > from.pitch || asked->width > to.pitch) return INVALID_VALUE;
        Lines const lines{asked->width, asked->height, to.pitch, from.pitch};
        return copy_lines(address(to.device), address(from.device), lines, stream);
    });
}
API int cuMemsetD8_v2(Pointer to, unsigned char value, size_t n) {
    return when_ready([=] {
        Error const error = may_wait();
        return error ? error : fill(address(to), value, 1, n, nullptr);
    });
}
API int cuMemsetD8Async(Pointer to, unsigned char value, size_t n, void* stream) {
    return when_ready([=] { return fill(address(to), value, 1, n, stream); });
}
API int cuMemsetD32Async(Pointer to, unsigned value, size_t n, void* stream) {
    return when_ready([=] { return fill(address(to), value, 4, 4 * n, stream); });
}

// --- Streams, events, graphs
API int cuStreamCreate(void** stream, unsigned flags) {
    return when_ready([=] { return create_stream(stream, flags); });
}
API int cuStreamDestroy_v2(void* stream) {
    return when_ready([=] { return destroy_stream(stream); });
}
API int cuStreamSynchronize(void* stream) {
    return when_ready([=] { return wait("stream", stream); });
}
API int cuStreamWaitEvent(void* stream, void* event, unsigned) {
    return when_ready([=] { return wait_event(stream, event); });
}
API int cuStreamBeginCapture_v2(void* stream, int mode) {
    return when_ready([=] { return begin_capture(stream, mode); });
}
API int cuStreamEndCapture(void* stream, void** graph) {
    return when_ready([=] { return end_capture(stream, graph); });
}
API int cuStreamIsCapturing(void* stream, int* status) {
    return when_ready([=] { return capture_status(stream, status); });
}
API int cuThreadExchangeStreamCaptureMode(int* mode) { return exchange_mode(mode); }
API int cuEventCreate(void** event, unsigned) {
    return when_ready([=] { return create_event(event); });
}
API int cuEventDestroy_v2(void* event) {
    return when_ready([=] { return destroy_event(event); });
}
API int cuEventRecord(void* event, void* stream) {
    return when_ready([=] { return record_event(event, stream); });
}
API int cuEventSynchronize(void* event) {
    return when_ready([=] { return synchronize_event(event); });
}
API int cuEventQuery(void*) {
    return when_ready([] { return may_wait(); });
}
// A millisecond, whatever lies between: nothing here takes time.
API int cuEventElapsedTime_v2(float* milliseconds, void*, void*) {
    return when_ready([=] { return *milliseconds = 1, OK; });
}
API int cuGraphInstantiateWithFlags(void** made, void* graph, unsigned long long) {
    return when_ready([=] { return instantiate(made, graph); });
}
API int cuGraphUpload(void*, void*) { return ready(); }
API int cuGraphLaunch(void* graph, void* stream) {
    return when_ready([=] { return launch_graph(graph, stream); });
}
API int cuGraphGetNodes(void* graph, void** nodes, size_t* count) {
    return when_ready([=] { return nodes ? NOT_SUPPORTED : count_nodes(graph, count); });
}
API int cuGraphDestroy(void* graph) { return destroy_graph(graph); }
API int cuGraphExecDestroy(void* graph) { return destroy_graph(graph); }

// --- Machine code
API int cuModuleLoadData(void** made, void const* image) {
    return when_ready([=] {
        if (Error const error = may_wait()) return error;
        auto module = new Module;
        if (Error const error = read_image(image, &module->image)) {
            delete module;
            return error;
        }
        std::lock_guard const lock(mutex);
        modules.insert(module);
        note("\"kind\": \"module\"");
        *made = module;
        return OK;
    });
}
API int cuModuleUnload(void* module) {
    return when_ready([=] {
        std::lock_guard const lock(mutex);
        if (!modules.erase(module)) return INVALID_HANDLE;
        note("\"kind\": \"unload\"");
        return OK;
    });
}
API int cuModuleGetFunction(void** made, void* handle, char const* name) {
    return when_ready([=] {
        std::lock_guard const lock(mutex);
        if (!modules.count(handle)) return INVALID_HANDLE;
        auto const module = static_cast<Module*>(handle);
        auto const found = module->image.kernels.find(name);
        bool const known = found != module->image.kernels.end();
        // The stand-in for machine code is of any name.
        if (!known && module->image.code.empty()) return NOT_FOUND;
        auto const function = new Function{module, name, known ? found->second : KernelFacts{}};
        functions.insert(function);
        *made = function;
        return OK;
    });
}
API int cuFuncSetAttribute(void* handle, int attribute, int value) {
    return when_ready([=] {
        std::lock_guard const lock(mutex);
        if (!functions.count(handle)) return INVALID_HANDLE;
        if (attribute != DYNAMIC_SHARED) return OK;
        if (value < 0 || value > device_attribute(BLOCK_SHARED_OPTIN)) return INVALID_VALUE;
        static_cast<Function*>(handle)->dynamic_shared = static_cast<size_t>(value);
        return OK;
    });
}
API int cuLaunchKernel(void* handle, unsigned x, unsigned y, unsigned z, unsigned threads_x,
                       unsigned threads_y, unsigned threads_z, unsigned shared, void* stream,
                       void** parameters, void** extra) {
    if (int const error = ready()) return error;
    Function function;
    {
        std::lock_guard const lock(mutex);
        if (!functions.count(handle)) return INVALID_HANDLE;
        function = *static_cast<Function*>(handle);
        if (!modules.count(function.module)) return INVALID_HANDLE;
    }
    Shape const grid{x, y, z}, block{threads_x, threads_y, threads_z};
    void* start;
    size_t size;
    if (!parameter_block(extra, &start, &size)) return INVALID_VALUE;
    if (parameters && start) return INVALID_VALUE;
    KernelFacts const& facts = function.facts;
    int64_t const threads = int64_t(threads_x) * threads_y * threads_z;
    bool const fits = can_launch(grid, block, shared, function.dynamic_shared) &&
                      (facts.threads < 0 || facts.threads == threads) &&
                      (!start || facts.parameter_bytes < 0 ||
                       facts.parameter_bytes == static_cast<int64_t>(size));
    if (!fits) return INVALID_VALUE;
    std::string const given = start ? std::string(static_cast<char*>(start), size) : "";
    std::string const code = function.module->image.code;
    if (!code.empty() && interpreter && !start) return NOT_SUPPORTED;
    return submit(stream, launch_fields(function.name, "driver", grid, block, shared), [=] {
        if (code.empty() || !interpreter) return OK;
        unsigned const programs[] = {grid.x, grid.y, grid.z};
        int const done = interpreter(code.data(), code.size(), function.name.c_str(), programs,
                                       given.data(), given.size());
        return done == 1 ? OK : LAUNCH_FAILED;
    });
}
API int cuTensorMapEncodeTiled() { return OK; }

// Finds a function as it is called in cuda.h, whatever its newest version is.
API int cuGetProcAddress_v2(char const* symbol, void** found, int, uint64_t, int* status) {
    *found = nullptr;
    // Not the runtime's and cuBLAS's, which are in the same library.
    if (std::strncmp(symbol, "cu", 2) == 0 && std::isupper(symbol[2]))
        for (char const* version : {"_v2", ""})
            if (!*found) *found = dlsym(RTLD_DEFAULT, (std::string(symbol) + version).c_str());
    if (status) *status = *found ? 0 : 1;
    return *found ? OK : NOT_FOUND;
}
