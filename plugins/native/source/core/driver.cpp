#include "driver.h"

#include <dlfcn.h>

#include <string>

namespace lmcast::cuda {
namespace {

constexpr char const* LIBRARY = "libcuda.so.1";

template <typename Function>
void find(void* library, char const* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (!function)
        throw Error(std::string(LIBRARY) + " has no " + name + ": a newer driver is needed");
}

// The names with _v2 are what cuda.h turns the plain ones into.
Driver open_driver() {
    void* const library = dlopen(LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        char const* const why = dlerror();
        throw Error("no NVIDIA driver, so no GPU to run on: " + std::string(why ? why : LIBRARY));
    }
    Driver driver;
    find(library, "cuGetErrorName", driver.get_error_name);
    find(library, "cuCtxGetCurrent", driver.get_current_context);
    find(library, "cuCtxPushCurrent_v2", driver.push_context);
    find(library, "cuCtxPopCurrent_v2", driver.pop_context);
    find(library, "cuCtxGetDevice", driver.get_device);
    find(library, "cuDeviceGetAttribute", driver.get_attribute);
    find(library, "cuModuleLoadData", driver.load_module);
    find(library, "cuModuleUnload", driver.unload_module);
    find(library, "cuModuleGetFunction", driver.get_function);
    find(library, "cuFuncSetAttribute", driver.set_attribute);
    find(library, "cuMemcpyDtoDAsync_v2", driver.copy);
    find(library, "cuLaunchKernel", driver.launch);
    return driver;
}

}  // namespace

void Driver::check(Result result, char const* function) const {
    if (result == 0) return;
    char const* name = nullptr;
    get_error_name(result, &name);
    throw Error(std::string(function) + " failed: " + (name ? name : std::to_string(result)));
}

Driver const& driver() {
    static Driver const opened = open_driver();  // tried again as long as it throws
    return opened;
}

}  // namespace lmcast::cuda
