#include "schedule.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <sstream>

namespace lmcast {
namespace {

constexpr int64_t ALIGNMENT = 256;  // bytes; as CUDA's own allocations are

bool fits(Case const& one, Shapes const& shapes) {
    return std::all_of(one.ranges.begin(), one.ranges.end(), [&](Range const& range) {
        int64_t const size = range.axis.of(shapes);
        return range.low <= size && size <= range.high;
    });
}

std::string text(Shapes const& shapes) {
    std::ostringstream out;
    for (Shape const& shape : shapes) {
        out << (&shape == &shapes.front() ? "[" : " [");
        for (size_t i = 0; i < shape.size(); ++i) out << (i ? "," : "") << shape[i];
        out << "]";
    }
    return out.str();
}

size_t first_that_fits(Recipe const& recipe, Shapes const& shapes) {
    for (size_t i = 0; i < recipe.cases.size(); ++i)
        if (fits(recipe.cases[i], shapes)) return i;
    throw RecipeError("no case of the launch plan is for inputs of shapes " + text(shapes));
}

// Returns where each buffer starts, and last the bytes of all.
std::vector<int64_t> layout(Case const& one, Shapes const& shapes) {
    std::vector<int64_t> offsets{0};
    for (Expression const& buffer : one.buffers) {
        int64_t const bytes = evaluate(buffer, shapes);
        if (bytes < 0) throw RecipeError("a buffer of " + std::to_string(bytes) + " bytes");
        int64_t const end = sum(offsets.back(), sum(bytes, ALIGNMENT - 1));
        offsets.push_back(end / ALIGNMENT * ALIGNMENT);
    }
    return offsets;
}

int64_t within(char const* what, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high)
        throw RecipeError(std::string(what) + " is " + std::to_string(value));
    return value;
}

template <typename Number>
uint32_t bits_of(Number number) {
    static_assert(sizeof number == sizeof(uint32_t));
    uint32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    return bits;
}

class Maker {
public:
    Maker(Recipe const& recipe, Shapes const& shapes)
        : recipe_(recipe),
          shapes_(shapes),
          case_index_(first_that_fits(recipe, shapes)),
          offsets_(layout(recipe.cases[case_index_], shapes)) {}

    Schedule schedule() const {
        Schedule made{case_index_, offsets_.back(), {}, {}};
        for (size_t i = 0; i < recipe_.outputs.size(); ++i)
            if (recipe_.outputs[i].alias >= 0) made.copies.push_back(copy(i));
        for (Launch const& launch : recipe_.cases[case_index_].launches) {
            Call made_call = call(launch);
            if (made_call.grid > 0) made.calls.push_back(std::move(made_call));
        }
        return made;
    }

private:
    Copy copy(size_t index) const {
        Output const& output = recipe_.outputs[index];
        size_t const input = static_cast<size_t>(output.alias);
        Shape shape;
        for (Term const& dim : output.dims) shape.push_back(evaluate({dim}, shapes_));
        if (input >= shapes_.size() || shapes_[input] != shape)
            throw RecipeError("output " + std::to_string(index) + " has not the shape of input " +
                              std::to_string(input) + ", in whose memory it is made");
        int64_t bytes = bytes_of(output.type);
        for (int64_t size : shape) bytes = product(bytes, size);
        return {input, index, bytes};
    }

    Call call(Launch const& launch) const {
        constexpr int64_t MOST_BLOCKS = std::numeric_limits<int32_t>::max();  // CUDA's, along x
        int64_t const grid = within("a grid", evaluate(launch.grid, shapes_), 0, MOST_BLOCKS);
        Call made{launch.kernel, static_cast<uint32_t>(grid), {}};
        for (Argument const& argument : launch.arguments)
            made.arguments.push_back(value(argument));
        return made;
    }

    Value value(Argument const& argument) const {
        using Int = std::numeric_limits<int32_t>;
        switch (argument.kind) {
            case Argument::Kind::input: return input(argument.index);
            case Argument::Kind::buffer:
                return {argument.kind, static_cast<size_t>(offsets_[argument.index]), 0};
            case Argument::Kind::i32: {
                int64_t const wide = evaluate(argument.value, shapes_);
                within("an i32 argument", wide, Int::min(), Int::max());
                return {argument.kind, 0, bits_of(static_cast<int32_t>(wide))};
            }
            case Argument::Kind::fp32: return {argument.kind, 0, bits_of(argument.number)};
            default: return {argument.kind, argument.index, 0};
        }
    }

    // An input that is updated in place is the output's memory, which its bytes are copied to.
    Value input(size_t index) const {
        if (index >= shapes_.size())
            throw RecipeError("a launch takes input " + std::to_string(index) + " of " +
                              std::to_string(shapes_.size()));
        for (size_t i = 0; i < recipe_.outputs.size(); ++i)
            if (recipe_.outputs[i].alias == static_cast<int64_t>(index))
                return {Argument::Kind::output, i, 0};
        return {Argument::Kind::input, index, 0};
    }

    Recipe const& recipe_;
    Shapes const& shapes_;
    size_t case_index_;
    std::vector<int64_t> offsets_;
};

void write(std::ostream& out, Value const& value) {
    switch (value.kind) {
        case Argument::Kind::input: out << " in " << value.index; break;
        case Argument::Kind::output: out << " out " << value.index; break;
        case Argument::Kind::buffer: out << " buf " << value.index; break;
        case Argument::Kind::null: out << " null"; break;
        case Argument::Kind::i32: out << " i32 " << static_cast<int32_t>(value.bits); break;
        case Argument::Kind::fp32: out << " fp32 " << value.bits; break;
    }
}

}  // namespace

Schedule schedule(Recipe const& recipe, Shapes const& shapes) {
    return Maker(recipe, shapes).schedule();
}

int64_t workspace_bound(Recipe const& recipe, Shapes const& least, Shapes const& greatest) {
    int64_t bound = 0;
    for (Case const& one : recipe.cases) {
        Shapes clipped = greatest;
        bool reached = true;
        for (Range const& range : one.ranges) {
            int64_t const high = std::min(range.axis.of(clipped), range.high);
            clipped[range.axis.input][range.axis.axis] = high;
            reached = reached && range.low <= high && range.axis.of(least) <= high;
        }
        if (reached) bound = std::max(bound, layout(one, clipped).back());
    }
    return bound;
}

std::string text(Recipe const& recipe, Schedule const& schedule) {
    std::ostringstream out;
    out << "case " << schedule.case_index << "\nworkspace " << schedule.workspace << "\n";
    for (Copy const& copy : schedule.copies)
        out << "copy " << copy.input << " " << copy.output << " " << copy.bytes << "\n";
    for (Call const& call : schedule.calls) {
        Kernel const& kernel = recipe.kernels[call.kernel];
        out << "launch " << kernel.name << " " << call.grid << " " << kernel.threads << " "
            << kernel.shared_bytes;
        for (Value const& value : call.arguments) write(out, value);
        out << "\n";
    }
    return out.str();
}

}  // namespace lmcast
