// A launch plan with its machine code: what both runtimes run.
#pragma once

#include <memory>
#include <mutex>
#include <string_view>

#include "driver.h"
#include "kernels.h"
#include "recipe.h"
#include "schedule.h"

namespace lmcast {

// The memory of one execution.
struct Memory {
    void const* const* inputs;
    void* const* outputs;
    void* workspace;  // as many bytes as the schedule says
};

// The schedule for the last shapes: a decoding step has those of the step before it. Thread-safe.
class LastSchedule {
public:
    std::shared_ptr<Schedule const> get(Recipe const& recipe, Shapes shapes);

private:
    std::mutex mutex_;
    Shapes shapes_;
    std::shared_ptr<Schedule const> schedule_;
};

// Copies states that are not in place, and launches the kernels, one after the other. `images` are
// read where a kernel is not yet loaded into the current context.
void replay(Recipe const& recipe, std::string_view images, LoadedKernels& kernels,
            Schedule const& schedule, Memory const& memory, cuda::Stream stream);

}  // namespace lmcast
