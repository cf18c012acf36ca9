#include "replay.h"

#include <cstdint>
#include <utility>
#include <vector>

namespace lmcast {
namespace {

// The parameters of one launch, each aligned to its own size as in a structure of C: one block of
// memory, whose size the driver is told, so that it reads no further.
class Parameters {
public:
    template <typename Number>
    void add(Number number) {
        bytes_.resize((bytes_.size() + sizeof number - 1) / sizeof number * sizeof number);
        auto const* const start = reinterpret_cast<char const*>(&number);
        bytes_.insert(bytes_.end(), start, start + sizeof number);
    }

    void add_pointer(void const* pointer) {
        constexpr uintptr_t PROMISED = 16;  // bytes; what the kernels were compiled with
        auto const address = reinterpret_cast<uintptr_t>(pointer);
        if (address % PROMISED) throw RecipeError("a tensor is not aligned to 16 bytes");
        add(static_cast<cuda::Pointer>(address));
    }

    void* data() { return bytes_.data(); }
    size_t size() const { return bytes_.size(); }

private:
    std::vector<char> bytes_;
};

Parameters parameters_of(Call const& call, Memory const& memory) {
    Parameters parameters;
    for (Value const& value : call.arguments) {
        switch (value.kind) {
            case Argument::Kind::input: parameters.add_pointer(memory.inputs[value.index]); break;
            case Argument::Kind::output: parameters.add_pointer(memory.outputs[value.index]); break;
            case Argument::Kind::buffer:
                parameters.add_pointer(static_cast<char*>(memory.workspace) + value.index);
                break;
            case Argument::Kind::null: parameters.add_pointer(nullptr); break;
            default: parameters.add(value.bits);
        }
    }
    return parameters;
}

void launch(cuda::Function function, Kernel const& kernel, Call const& call, Memory const& memory,
            cuda::Stream stream) {
    cuda::Driver const& driver = cuda::driver();
    Parameters parameters = parameters_of(call, memory);
    size_t size = parameters.size();
    void* extra[] = {cuda::PARAMETERS, parameters.data(), cuda::PARAMETERS_SIZE, &size,
                     cuda::PARAMETERS_END};
    cuda::Result const result = driver.launch(function, call.grid, 1, 1, kernel.threads, 1, 1,
                                              kernel.shared_bytes, stream, nullptr, extra);
    if (result != 0) driver.check(result, ("kernel " + kernel.name + ": cuLaunchKernel").c_str());
}

void copy(Copy const& copy, Memory const& memory, cuda::Stream stream) {
    void const* const from = memory.inputs[copy.input];
    void* const to = memory.outputs[copy.output];
    if (from == to || copy.bytes == 0) return;
    cuda::Driver const& driver = cuda::driver();
    driver.check(driver.copy(reinterpret_cast<cuda::Pointer>(to),
                             reinterpret_cast<cuda::Pointer>(from),
                             static_cast<size_t>(copy.bytes), stream),
                 "cuMemcpyDtoDAsync");
}

}  // namespace

std::shared_ptr<Schedule const> LastSchedule::get(Recipe const& recipe, Shapes shapes) {
    std::lock_guard const lock(mutex_);
    if (!schedule_ || shapes != shapes_) {
        schedule_.reset();  // of no shapes, if what follows throws
        schedule_ = std::make_shared<Schedule const>(schedule(recipe, shapes));
        shapes_ = std::move(shapes);
    }
    return schedule_;
}

void replay(Recipe const& recipe, std::string_view images, LoadedKernels& kernels,
            Schedule const& schedule, Memory const& memory, cuda::Stream stream) {
    for (Copy const& one : schedule.copies) copy(one, memory, stream);
    for (Call const& call : schedule.calls)
        launch(kernels.get(recipe, images, call.kernel), recipe.kernels[call.kernel], call, memory,
               stream);
}

}  // namespace lmcast
