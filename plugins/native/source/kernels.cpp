#include "kernels.h"

namespace lmcast {
namespace {

// Machine code of compute capability X.Y runs on X.Z where Z is not below Y.
Image const& best(Kernel const& kernel, int64_t sm) {
    Image const* found = nullptr;
    std::string known;
    for (Image const& image : kernel.images) {
        known += (known.empty() ? "SM" : ", SM") + std::to_string(image.sm);
        bool const runs = image.sm / 10 == sm / 10 && image.sm <= sm;
        if (runs && (!found || image.sm > found->sm)) found = &image;
    }
    if (!found)
        throw cuda::Error("kernel " + kernel.name + " was compiled for " + known +
                          ", and this GPU is SM" + std::to_string(sm) +
                          ": export again with this GPU among the targets");
    return *found;
}

int64_t sm_of_current_device(cuda::Driver const& driver) {
    cuda::Device device;
    int major, minor;
    driver.check(driver.get_device(&device), "cuCtxGetDevice");
    driver.check(driver.get_attribute(&major, cuda::COMPUTE_CAPABILITY_MAJOR, device),
                 "cuDeviceGetAttribute");
    driver.check(driver.get_attribute(&minor, cuda::COMPUTE_CAPABILITY_MINOR, device),
                 "cuDeviceGetAttribute");
    return 10 * major + minor;
}

cuda::Function find_function(cuda::Driver const& driver, cuda::Module module,
                             Kernel const& kernel) {
    constexpr uint32_t WITHOUT_ASKING = 48 << 10;  // CUDA's limit for a block's shared memory
    cuda::Function function;
    driver.check(driver.get_function(&function, module, kernel.name.c_str()),
                 "cuModuleGetFunction");
    if (kernel.shared_bytes > WITHOUT_ASKING)
        driver.check(driver.set_attribute(function, cuda::MAX_DYNAMIC_SHARED_SIZE_BYTES,
                                          static_cast<int>(kernel.shared_bytes)),
                     "cuFuncSetAttribute");
    return function;
}

}  // namespace

LoadedKernels::~LoadedKernels() {
    if (loaded_.empty()) return;
    cuda::Driver const& driver = cuda::driver();  // there is one: it loaded them
    for (auto const& [key, loaded] : loaded_) {
        // Results are of no use: at the end of a process the context may be gone, modules with it.
        if (driver.push_context(key.first) != 0) continue;
        driver.unload_module(loaded.module);
        cuda::Context context;
        driver.pop_context(&context);
    }
}

cuda::Function LoadedKernels::get(Recipe const& recipe, std::string const& images, size_t kernel) {
    cuda::Driver const& driver = cuda::driver();
    cuda::Context context = nullptr;
    driver.check(driver.get_current_context(&context), "cuCtxGetCurrent");
    std::lock_guard const lock(mutex_);
    auto const known = loaded_.find({context, kernel});
    if (known != loaded_.end()) return known->second.function;
    Image const& image = best(recipe.kernels[kernel], sm_of_current_device(driver));
    // A copy of its own: the driver reads it as an ELF file in memory, which is aligned.
    std::string const aligned = images.substr(image.offset, image.size);
    Loaded made{};
    driver.check(driver.load_module(&made.module, aligned.data()), "cuModuleLoadData");
    try {
        made.function = find_function(driver, made.module, recipe.kernels[kernel]);
    } catch (cuda::Error const&) {
        driver.unload_module(made.module);
        throw;
    }
    loaded_[{context, kernel}] = made;
    return made.function;
}

}  // namespace lmcast
