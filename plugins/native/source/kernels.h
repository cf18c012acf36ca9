// The kernels of a launch plan on the GPUs that they were asked for on.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "driver.h"
#include "recipe.h"

namespace lmcast {

class LoadedKernels {
public:
    LoadedKernels() = default;
    LoadedKernels(LoadedKernels const&) = delete;
    LoadedKernels& operator=(LoadedKernels const&) = delete;
    ~LoadedKernels();

    // Loads the kernel into the current context the first time. Thread-safe; throws cuda::Error.
    cuda::Function get(Recipe const& recipe, std::string const& images, size_t kernel);

private:
    struct Loaded {
        cuda::Module module;
        cuda::Function function;
    };

    std::mutex mutex_;
    // By context, not by device: a function is of the context that it was loaded into.
    std::map<std::pair<cuda::Context, size_t>, Loaded> loaded_;
};

}  // namespace lmcast
