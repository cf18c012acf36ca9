#include "kernels.h"

#include <array>
#include <iterator>
#include <string>

namespace lmcast {

class Module {
public:
    Module(cuda::Context context, std::string const& code) : context_(context) {
        cuda::Driver const& driver = cuda::driver();
        driver.check(driver.load_module(&module_, code.data()), "cuModuleLoadData");
    }

    Module(Module const&) = delete;
    Module& operator=(Module const&) = delete;

    // Results are of no use: at the end of a process the context may be gone, modules with it.
    ~Module() {
        cuda::Driver const& driver = cuda::driver();  // there is one: it loaded the module
        if (driver.push_context(context_) != 0) return;
        driver.unload_module(module_);
        cuda::Context context;
        driver.pop_context(&context);
    }

    cuda::Module get() const { return module_; }

private:
    cuda::Context context_;
    cuda::Module module_ = nullptr;
};

namespace {

// Those that are loaded, by their code. Never destroyed: nodes may outlive what is static.
std::shared_ptr<Module const> module_of(cuda::Context context, std::string_view code) {
    static auto& mutex = *new std::mutex;
    static auto& known = *new std::map<std::pair<cuda::Context, std::string>,
                                       std::weak_ptr<Module const>>;
    std::lock_guard const lock(mutex);
    for (auto one = known.begin(); one != known.end();)
        one = one->second.expired() ? known.erase(one) : std::next(one);
    // A copy of its own: the driver reads it as an ELF file in memory, which is aligned.
    auto const [entry, is_new] = known.try_emplace({context, std::string(code)});
    if (auto found = entry->second.lock()) return found;
    auto made = std::make_shared<Module const>(context, entry->first.second);
    entry->second = made;
    return made;
}

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

// As of zlib: of the polynomial 0xEDB88320, with the lowest bit first.
uint32_t crc32(std::string_view bytes) {
    static auto const table = [] {
        std::array<uint32_t, 256> made;
        for (uint32_t i = 0; i < made.size(); ++i) {
            uint32_t value = i;
            for (int bit = 0; bit < 8; ++bit) value = value >> 1 ^ (value & 1 ? 0xEDB88320 : 0);
            made[i] = value;
        }
        return made;
    }();
    uint32_t value = ~uint32_t{0};
    for (unsigned char byte : bytes) value = value >> 8 ^ table[(value ^ byte) & 0xFF];
    return ~value;
}

// The driver looks for damage hardly anywhere: a GPU would run whatever the bytes say.
std::string_view code_of(Image const& image, std::string_view images) {
    std::string_view const code = images.substr(image.offset, image.size);
    if (crc32(code) != image.crc32)
        throw cuda::Error("its machine code is damaged, or another's: export again");
    return code;
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

cuda::Function LoadedKernels::get(Recipe const& recipe, std::string_view images, size_t number) {
    cuda::Driver const& driver = cuda::driver();
    cuda::Context context = nullptr;
    driver.check(driver.get_current_context(&context), "cuCtxGetCurrent");
    std::lock_guard const lock(mutex_);
    auto const known = loaded_.find({context, number});
    if (known != loaded_.end()) return known->second.function;
    Kernel const& kernel = recipe.kernels[number];
    Image const& image = best(kernel, sm_of_current_device(driver));
    if (image.offset + image.size > images.size())
        throw cuda::Error("kernel " + kernel.name + " was not loaded for this GPU");
    try {
        auto module = module_of(context, code_of(image, images));
        cuda::Function const function = find_function(driver, module->get(), kernel);
        loaded_[{context, number}] = {std::move(module), function};
        return function;
    } catch (cuda::Error const& error) {
        throw cuda::Error("kernel " + kernel.name + " for SM" + std::to_string(image.sm) + ": " +
                          error.what());
    }
}

}  // namespace lmcast
