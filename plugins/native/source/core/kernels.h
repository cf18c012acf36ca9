// The kernels of a launch plan on the GPUs that they were asked for on.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string_view>
#include <utility>

#include "driver.h"
#include "recipe.h"

namespace lmcast {

// Machine code in a context of the driver: loaded once in a process, however many nodes run it, and
// unloaded with the last of them.
class Module;

class LoadedKernels {
public:
    // Loads the kernel into the current context the first time, from `images`, which are not looked
    // at again. Thread-safe; throws cuda::Error.
    cuda::Function get(Recipe const& recipe, std::string_view images, size_t kernel);

private:
    struct Loaded {
        std::shared_ptr<Module const> module;
        cuda::Function function;
    };

    std::mutex mutex_;
    // By context, not by device: a function is of the context that it was loaded into.
    std::map<std::pair<cuda::Context, size_t>, Loaded> loaded_;
};

}  // namespace lmcast
