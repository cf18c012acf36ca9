#include "plugin.h"

#include <algorithm>
#include <utility>

#include "log.h"

namespace lmcast {
namespace {

using namespace nvinfer1;

static_assert(MOST_AXES == Dims::MAX_DIMS);

DataType data_type(Type type) {
    switch (type) {
        case Type::fp16: return DataType::kHALF;
        case Type::bf16: return DataType::kBF16;
        case Type::i32: return DataType::kINT32;
        case Type::i64: return DataType::kINT64;
        default: return DataType::kFLOAT;
    }
}

Shape shape_of(Dims const& dims) {
    return Shape(dims.d, dims.d + std::max(dims.nbDims, 0));
}

template <typename Description>
Shapes shapes_of(Description const* tensors, int32_t count, Dims Description::*dims) {
    Shapes shapes;
    for (int32_t i = 0; i < count; ++i) shapes.push_back(shape_of(tensors[i].*dims));
    return shapes;
}

PluginField text_field(char const* name, std::string const& text) {
    return {name, text.data(), PluginFieldType::kCHAR, static_cast<int32_t>(text.size())};
}

// TensorRT calls through here, and takes no exceptions.
template <typename Work>
bool succeeds(Content const& content, Work work) noexcept {
    try {
        work();
        return true;
    } catch (std::exception const& error) {
        log_error(std::string(NAMESPACE) + "." + content.operator_name + " " + content.node_name +
                  ": " + error.what());
        return false;
    }
}

int64_t bound(Recipe const& recipe, DynamicPluginTensorDesc const* inputs, int32_t count) {
    return workspace_bound(recipe, shapes_of(inputs, count, &DynamicPluginTensorDesc::min),
                           shapes_of(inputs, count, &DynamicPluginTensorDesc::max));
}

// Fills `made` with the shape of an output; sizes may be known only later.
void make_shape(Output const& output, DimsExprs const* inputs, int32_t input_count,
                IExprBuilder& builder, DimsExprs& made) {
    made.nbDims = static_cast<int32_t>(output.dims.size());
    for (size_t i = 0; i < output.dims.size(); ++i) {
        Term const& dim = output.dims[i];
        if (dim.kind == 'n') {
            made.d[i] = builder.constant(dim.number);
            continue;
        }
        auto const [input, axis] = dim.axis;
        if (input >= static_cast<size_t>(input_count) ||
            axis >= static_cast<size_t>(inputs[input].nbDims))
            throw RecipeError("there is no axis " + text(dim.axis) + " among the inputs");
        made.d[i] = inputs[input].d[axis];
    }
}

// Where buffers shrink as an axis grows, too little was reserved: no kernel may write.
void expect_workspace(Content const& content, int64_t needed, void const* memory) {
    int64_t const reserved = content.workspace;
    bool const enough = reserved < 0 || needed <= reserved;
    if (needed == 0 || (memory && enough)) return;
    throw RecipeError(std::to_string(needed) + " bytes of workspace are needed, and " +
                      (memory ? std::to_string(reserved) + " were reserved" : "there are none"));
}

}  // namespace

Content::Content(char const* operator_name, std::string node_name, std::string recipe_text,
                 std::string kernel_images, int64_t workspace)
    : operator_name(operator_name),
      node_name(std::move(node_name)),
      recipe_text(std::move(recipe_text)),
      images(std::move(kernel_images)),
      recipe(read_recipe(this->recipe_text, images.size())),
      workspace(workspace) {}

Plugin::Plugin(std::shared_ptr<Content> content)
    : content_(std::move(content)),
      fields_{text_field(RECIPE, content_->recipe_text), text_field(KERNELS, content_->images),
              {WORKSPACE, &workspace_, PluginFieldType::kINT64, 1}},
      collection_{3, fields_} {}

v_1_0::IPluginCapability* Plugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
    switch (type) {
        case PluginCapabilityType::kCORE: return static_cast<v_1_0::IPluginV3OneCore*>(this);
        case PluginCapabilityType::kBUILD: return static_cast<v_1_0::IPluginV3OneBuild*>(this);
        case PluginCapabilityType::kRUNTIME: return static_cast<v_1_0::IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

v_1_0::IPluginV3* Plugin::clone() noexcept {
    v_1_0::IPluginV3* made = nullptr;
    succeeds(*content_, [&] {
        auto copy = std::make_unique<Plugin>(content_);
        copy->input_count_ = input_count_;
        made = copy.release();
    });
    return made;
}

// What is wrong with a launch plan for these inputs ends the build here, and not the first run.
int32_t Plugin::configurePlugin(DynamicPluginTensorDesc const* inputs, int32_t input_count,
                                DynamicPluginTensorDesc const*, int32_t output_count) noexcept {
    return succeeds(*content_, [&] {
        expect_outputs(content_->recipe, static_cast<size_t>(output_count));
        bound(content_->recipe, inputs, input_count);
        input_count_ = input_count;
    }) ? 0 : 1;
}

int32_t Plugin::getOutputDataTypes(DataType* output_types, int32_t output_count, DataType const*,
                                   int32_t) const noexcept {
    return succeeds(*content_, [&] {
        expect_outputs(content_->recipe, static_cast<size_t>(output_count));
        for (Output const& output : content_->recipe.outputs)
            *output_types++ = data_type(output.type);
    }) ? 0 : 1;
}

int32_t Plugin::getOutputShapes(DimsExprs const* inputs, int32_t input_count, DimsExprs const*,
                                int32_t, DimsExprs* outputs, int32_t output_count,
                                IExprBuilder& builder) noexcept {
    return succeeds(*content_, [&] {
        expect_outputs(content_->recipe, static_cast<size_t>(output_count));
        for (Output const& output : content_->recipe.outputs)
            make_shape(output, inputs, input_count, builder, *outputs++);
    }) ? 0 : 1;
}

bool Plugin::supportsFormatCombination(int32_t position, DynamicPluginTensorDesc const* tensors,
                                       int32_t input_count, int32_t) noexcept {
    PluginTensorDesc const& tensor = tensors[position].desc;
    if (tensor.format != TensorFormat::kLINEAR) return false;
    if (position < input_count) return true;
    auto const& outputs = content_->recipe.outputs;
    size_t const output = static_cast<size_t>(position - input_count);
    if (output >= outputs.size() || tensor.type != data_type(outputs[output].type)) return false;
    int64_t const alias = outputs[output].alias;
    return alias < 0 || (alias < input_count && tensors[alias].desc.type == tensor.type);
}

int32_t Plugin::getNbOutputs() const noexcept {
    return static_cast<int32_t>(content_->recipe.outputs.size());
}

size_t Plugin::getWorkspaceSize(DynamicPluginTensorDesc const* inputs, int32_t input_count,
                                DynamicPluginTensorDesc const*, int32_t) const noexcept {
    int64_t bytes = 0;
    // A failure was the end of configurePlugin already.
    succeeds(*content_, [&] { bytes = bound(content_->recipe, inputs, input_count); });
    // Of several profiles the greatest: TensorRT reserves that for each.
    bytes = std::max(bytes, content_->workspace.load());
    content_->workspace = bytes;
    return static_cast<size_t>(bytes);
}

int32_t Plugin::onShapeChange(PluginTensorDesc const*, int32_t input_count,
                              PluginTensorDesc const*, int32_t) noexcept {
    input_count_ = input_count;
    return 0;
}

int32_t Plugin::enqueue(PluginTensorDesc const* input_descriptions, PluginTensorDesc const*,
                        void const* const* inputs, void* const* outputs, void* workspace,
                        CUstream_st* stream) noexcept {
    return succeeds(*content_, [&] {
        Content& content = *content_;
        auto const schedule = last_.get(
            content.recipe, shapes_of(input_descriptions, input_count_, &PluginTensorDesc::dims));
        expect_workspace(content, schedule->workspace, workspace);
        replay(content.recipe, content.images, content.loaded, *schedule,
               {inputs, outputs, workspace}, stream);
    }) ? 0 : 1;
}

v_1_0::IPluginV3* Plugin::attachToContext(IPluginResourceContext*) noexcept {
    return clone();
}

PluginFieldCollection const* Plugin::getFieldsToSerialize() noexcept {
    workspace_ = content_->workspace;  // TensorRT asks for the size before it serialises
    return &collection_;
}

}  // namespace lmcast
