// What SessionOptions.register_custom_ops_library looks for: the operators, on the CUDA provider.
//
// A node's first input is the machine code, then come the inputs of its launch plan.
#include "operators.h"

#include <algorithm>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/replay.h"
#include "interface.h"

namespace lmcast::ort {
namespace {

constexpr size_t CODE = 0, FIRST = 1;  // inputs of a node: the machine code, and what is behind it

OrtApi const* api = nullptr;

struct Failure {
    OrtStatus* status;
};

void check(OrtStatus* status) {
    if (status) throw Failure{status};
}

// ONNX Runtime calls through here, and takes no exceptions but what they say.
template <typename Work>
OrtStatus* guarded(std::string const& where, Work work) noexcept {
    try {
        work();
        return nullptr;
    } catch (Failure const& failure) {
        return failure.status;
    } catch (std::exception const& error) {
        return api->CreateStatus(ORT_RUNTIME_EXCEPTION, (where + ": " + error.what()).c_str());
    }
}

ONNXTensorElementDataType element(Type type) {
    switch (type) {
        case Type::fp16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
        case Type::bf16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
        case Type::i32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
        case Type::i64: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
        default: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    }
}

// What ONNX Runtime knows of a tensor; a size that it does not know is -1, and may have a name.
using Description = OrtTensorTypeAndShapeInfo;

struct Release {
    void operator()(Description* made) const { api->ReleaseTensorTypeAndShapeInfo(made); }
    void operator()(OrtTypeInfo* made) const { api->ReleaseTypeInfo(made); }
};
using OwnDescription = std::unique_ptr<Description, Release>;

Shape shape_of(Description const* description) {
    size_t rank = 0;
    check(api->GetDimensionsCount(description, &rank));
    Shape shape(rank);
    check(api->GetDimensions(description, shape.data(), rank));
    return shape;
}

Shape shape_of(OrtValue const* value) {
    Description* made = nullptr;
    check(api->GetTensorTypeAndShape(value, &made));
    return shape_of(OwnDescription(made).get());
}

void* data_of(OrtValue const* value) {
    void* data = nullptr;
    // It has no constant form before version 23.
    check(api->GetTensorMutableData(const_cast<OrtValue*>(value), &data));
    return data;
}

// Texts of a kernel's description: asked for once for their size, which counts a NUL.
template <typename Ask>
std::string text(Ask ask) {
    size_t size = 0;
    check(ask(nullptr, &size));
    std::string text(size, '\0');
    check(ask(text.data(), &size));
    text.resize(std::min(text.find('\0'), text.size()));
    return text;
}

std::string attribute(OrtKernelInfo const* info, char const* name) {
    return text([&](char* out, size_t* size) {
        return api->KernelInfoGetAttribute_string(info, name, out, size);
    });
}

std::string node_name(OrtKernelInfo const* info) {
    return text([&](char* out, size_t* size) {
        return api->KernelInfo_GetNodeName(info, out, size);
    });
}

// The bytes of the session's own, which lie on the host.
std::string_view machine_code(OrtKernelInfo const* info) {
    int is_constant = 0;
    OrtValue const* value = nullptr;
    check(api->KernelInfoGetConstantInput_tensor(info, CODE, &is_constant, &value));
    if (!is_constant) throw RecipeError("the first input, its machine code, is no initializer");
    Shape const shape = shape_of(value);
    if (shape.size() != 1) throw RecipeError("the first input, its machine code, has not one axis");
    return {static_cast<char const*>(data_of(value)), static_cast<size_t>(shape[0])};
}

ONNXTensorElementDataType input_type(OrtKernelInfo const* info, size_t index) {
    OrtTypeInfo* made = nullptr;
    check(api->KernelInfo_GetInputTypeInfo(info, index, &made));
    std::unique_ptr<OrtTypeInfo, Release> const owner(made);
    Description const* tensor = nullptr;
    check(api->CastTypeInfoToTensorInfo(made, &tensor));
    auto type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
    if (tensor) check(api->GetTensorElementType(tensor, &type));
    return type;
}

// A state's memory is that of the output: kernels take it for the output's type.
void expect_types(Recipe const& recipe, OrtKernelInfo const* info) {
    for (Output const& output : recipe.outputs) {
        size_t const updated = static_cast<size_t>(output.alias);
        if (output.alias >= 0 && input_type(info, updated + FIRST) != element(output.type))
            throw RecipeError("input " + std::to_string(updated) +
                              " has not the type of the output that is made in its memory");
    }
}

// A piece of the arena that the provider itself allocates from: until it is free again in the order
// of the stream, no other stream gets it.
class Scratch {
public:
    Scratch(OrtKernelContext const* context, OrtAllocator* arena, int64_t bytes) : arena_(arena) {
        if (bytes == 0) return;
        OrtSyncStream* stream = nullptr;
        check(api->KernelContext_GetSyncStream(context, &stream));
        size_t const size = static_cast<size_t>(bytes);
        memory_ = stream && arena->AllocOnStream ? arena->AllocOnStream(arena, size, stream)
                                                 : arena->Alloc(arena, size);
        if (!memory_) throw RecipeError("no memory is left for " + std::to_string(bytes) + " bytes");
    }

    Scratch(Scratch const&) = delete;
    Scratch& operator=(Scratch const&) = delete;

    ~Scratch() {
        if (memory_) arena_->Free(arena_, memory_);
    }

    void* get() const { return memory_; }

private:
    OrtAllocator* arena_;
    void* memory_ = nullptr;
};

// One node of a session. ONNX Runtime may run it on several threads at a time.
class Node {
public:
    Node(std::string name, OrtKernelInfo const* info) : name_(std::move(name)) {
        std::string_view const images = machine_code(info);
        recipe_ = read_recipe(attribute(info, RECIPE), images.size());
        size_t outputs = 0;
        check(api->KernelInfo_GetOutputCount(info, &outputs));
        expect_outputs(recipe_, outputs);
        expect_types(recipe_, info);
        // What is wrong with them ends the session here, and not its first run; and a run that is
        // captured as a graph may load nothing.
        for (size_t i = 0; i < recipe_.kernels.size(); ++i) kernels_.get(recipe_, images, i);
        check(api->KernelInfoGetAllocator(info, OrtMemTypeDefault, &arena_));
    }

    Node(Node const&) = delete;
    Node& operator=(Node const&) = delete;

    ~Node() {
        if (arena_) api->ReleaseAllocator(arena_);
    }

    std::string const& name() const { return name_; }

    void compute(OrtKernelContext* context) {
        size_t count = 0;
        check(api->KernelContext_GetInputCount(context, &count));
        std::vector<void const*> inputs;
        Shapes shapes;
        for (size_t i = FIRST; i < count; ++i) {
            OrtValue const* value = nullptr;
            check(api->KernelContext_GetInput(context, i, &value));
            inputs.push_back(data_of(value));
            shapes.push_back(shape_of(value));
        }
        auto const schedule = last_.get(recipe_, shapes);
        std::vector<void*> const outputs = outputs_of(context, shapes);
        Scratch const scratch(context, arena_, schedule->workspace);
        void* stream = nullptr;
        check(api->KernelContext_GetGPUComputeStream(context, &stream));
        replay(recipe_, {}, kernels_, *schedule, {inputs.data(), outputs.data(), scratch.get()},
               static_cast<cuda::Stream>(stream));
    }

private:
    std::vector<void*> outputs_of(OrtKernelContext* context, Shapes const& shapes) const {
        std::vector<void*> outputs;
        for (Output const& output : recipe_.outputs) {
            Shape shape;
            for (Term const& dim : output.dims) shape.push_back(evaluate({dim}, shapes));
            OrtValue* value = nullptr;
            check(api->KernelContext_GetOutput(context, outputs.size(), shape.data(), shape.size(),
                                               &value));
            if (!value)
                throw RecipeError("output " + std::to_string(outputs.size()) + " has no name");
            outputs.push_back(data_of(value));
        }
        return outputs;
    }

    std::string name_;
    Recipe recipe_;
    LoadedKernels kernels_;
    LastSchedule last_;
    OrtAllocator* arena_ = nullptr;
};

std::string attribute(OrtShapeInferContext const* context, char const* name) {
    OrtOpAttr const* found = nullptr;
    check(api->ShapeInferContext_GetAttribute(context, name, &found));
    size_t size = 0;
    // Fails, and says what it needs.
    if (OrtStatus* const status = api->ReadOpAttr(found, ORT_OP_ATTR_STRING, nullptr, 0, &size))
        api->ReleaseStatus(status);
    std::string text(size, '\0');
    check(api->ReadOpAttr(found, ORT_OP_ATTR_STRING, text.data(), text.size(), &size));
    text.resize(std::min(text.find('\0'), text.size()));
    return text;
}

// What is known of an input of the node; it is the context's own.
Description const* input(OrtShapeInferContext const* context, size_t index) {
    Description* found = nullptr;
    check(api->ShapeInferContext_GetInputTypeShape(context, index, &found));
    return found;
}

// Sets the sizes of an output; those of inputs may be known by name alone, or not at all.
void describe(Output const& output, OrtShapeInferContext const* context, Description* made) {
    Shape sizes;
    std::vector<std::string> names;
    for (Term const& dim : output.dims) {
        sizes.push_back(dim.kind == 'n' ? dim.number : -1);
        names.emplace_back();
        if (dim.kind == 'n') continue;
        Description const* const from = input(context, dim.axis.input + FIRST);
        Shape const shape = shape_of(from);
        if (dim.axis.axis >= shape.size()) continue;
        std::vector<char const*> known(shape.size());
        check(api->GetSymbolicDimensions(from, known.data(), known.size()));
        sizes.back() = shape[dim.axis.axis];
        if (char const* const name = known[dim.axis.axis]) names.back() = name;
    }
    std::vector<char const*> pointers;
    for (std::string const& name : names) pointers.push_back(name.c_str());
    check(api->SetTensorElementType(made, element(output.type)));
    check(api->SetDimensions(made, sizes.data(), sizes.size()));
    check(api->SetSymbolicDimensions(made, pointers.data(), pointers.size()));
}

// Types and shapes of outputs are those of the launch plan: a graph need not say them. An error here
// is not told: Node finds what is wrong once more.
void infer(OrtShapeInferContext const* context) {
    Shape const code = shape_of(input(context, CODE));
    size_t const bytes = code.size() == 1 && code[0] > 0 ? static_cast<size_t>(code[0]) : 0;
    Recipe const recipe = read_recipe(attribute(context, RECIPE), bytes);
    for (size_t i = 0; i < recipe.outputs.size(); ++i) {
        Description* made = nullptr;
        check(api->CreateTensorTypeAndShapeInfo(&made));
        OwnDescription const owner(made);
        describe(recipe.outputs[i], context, made);
        check(api->ShapeInferContext_SetOutputTypeShape(context, i, made));
    }
}

struct Operator : OrtCustomOp {
    explicit Operator(char const* own_name) : OrtCustomOp{}, name(own_name) {
        version = VERSION;
        GetName = [](OrtCustomOp const* op) { return own(op).name; };
        GetExecutionProviderType = [](OrtCustomOp const*) { return "CUDAExecutionProvider"; };
        GetStartVersion = GetEndVersion = [](OrtCustomOp const*) { return 1; };
        take_inputs();
        give_outputs();
        CreateKernelV2 = [](OrtCustomOp const* op, OrtApi const*, OrtKernelInfo const* info,
                            void** made) {
            std::string node = own(op).where();
            return guarded(node, [&] {
                node += " " + node_name(info);
                *made = new Node(node, info);
            });
        };
        KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
            auto& node = *static_cast<Node*>(kernel);
            return guarded(node.name(), [&] { node.compute(context); });
        };
        KernelDestroy = [](void* kernel) { delete static_cast<Node*>(kernel); };
        InferOutputShapeFn = [](OrtCustomOp const* op, OrtShapeInferContext* context) {
            return guarded(own(op).where(), [&] { infer(context); });
        };
    }

    static Operator const& own(OrtCustomOp const* op) { return *static_cast<Operator const*>(op); }

    std::string where() const { return std::string(NAMESPACE) + "." + name; }

    void take_inputs() {
        GetInputTypeCount = [](OrtCustomOp const*) { return FIRST + 1; };
        GetInputType = [](OrtCustomOp const*, size_t i) {
            return i == CODE ? ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8
                             : ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        };
        GetInputCharacteristic = [](OrtCustomOp const*, size_t i) {
            return i == CODE ? INPUT_OUTPUT_REQUIRED : INPUT_OUTPUT_VARIADIC;
        };
        GetInputMemoryType = [](OrtCustomOp const*, size_t i) {
            return i == CODE ? OrtMemTypeCPUInput : OrtMemTypeDefault;
        };
        GetVariadicInputMinArity = [](OrtCustomOp const*) { return 1; };
        GetVariadicInputHomogeneity = [](OrtCustomOp const*) { return 0; };
    }

    void give_outputs() {
        GetOutputTypeCount = [](OrtCustomOp const*) { return size_t{1}; };
        GetOutputType = [](OrtCustomOp const*, size_t) {
            return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
        };
        GetOutputCharacteristic = [](OrtCustomOp const*, size_t) { return INPUT_OUTPUT_VARIADIC; };
        GetVariadicOutputMinArity = [](OrtCustomOp const*) { return 1; };
        GetVariadicOutputHomogeneity = [](OrtCustomOp const*) { return 0; };
    }

    char const* name;
};

// For as long as the library is loaded: options of sessions refer to it.
OrtCustomOpDomain* domain() {
    static std::vector<std::unique_ptr<Operator>> const operators = [] {
        std::vector<std::unique_ptr<Operator>> all;
        for (char const* name : OPERATORS) all.push_back(std::make_unique<Operator>(name));
        return all;
    }();
    static OrtCustomOpDomain* const made = [] {
        OrtCustomOpDomain* domain = nullptr;
        check(api->CreateCustomOpDomain(NAMESPACE, &domain));
        for (auto const& one : operators) check(api->CustomOpDomain_Add(domain, one.get()));
        return domain;
    }();
    return made;
}

}  // namespace
}  // namespace lmcast::ort

extern "C" __attribute__((visibility("default"))) lmcast::ort::OrtStatus* RegisterCustomOps(
    lmcast::ort::OrtSessionOptions* options, lmcast::ort::OrtApiBase const* base) {
    using namespace lmcast::ort;
    api = base->GetApi(VERSION);
    if (!api) {
        std::string const found = base->GetVersionString();
        return base->GetApi(1)->CreateStatus(
            ORT_RUNTIME_EXCEPTION, ("lmcast needs ONNX Runtime 1.28 or newer, not " + found).c_str());
    }
    return guarded("lmcast", [&] { check(api->AddCustomOpDomain(options, domain())); });
}
