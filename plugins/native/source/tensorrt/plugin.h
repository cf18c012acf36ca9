// One node of a graph, computed by a launch plan; whatever its operator, the class is the same.
#pragma once

#include <atomic>
#include <memory>
#include <string>

#include "core/replay.h"
#include "interface.h"
#include "operators.h"

namespace lmcast {

constexpr char const* VERSION = "1";  // of every operator

// The attributes of a node, and the fields of a plan; the launch plan is one, too.
constexpr char const* KERNELS = "kernels";  // the images of all kernels
// Of a plan alone: the bytes that TensorRT was asked to reserve.
constexpr char const* WORKSPACE = "workspace";

// What a plugin is made of. Its clones share it, and so a kernel is loaded once for all of them.
struct Content {
    Content(char const* operator_name, std::string node_name, std::string recipe_text,
            std::string kernel_images, int64_t workspace);

    char const* operator_name;  // of a creator, which outlives its plugins
    std::string node_name;
    std::string recipe_text;
    std::string images;
    Recipe recipe;
    std::atomic<int64_t> workspace;  // -1 where it is not known
    LoadedKernels loaded;
};

class Plugin final : public nvinfer1::v_1_0::IPluginV3,
                     public nvinfer1::v_1_0::IPluginV3OneCore,
                     public nvinfer1::v_1_0::IPluginV3OneBuild,
                     public nvinfer1::v_1_0::IPluginV3OneRuntime {
public:
    explicit Plugin(std::shared_ptr<Content> content);

    nvinfer1::v_1_0::IPluginCapability* getCapabilityInterface(
        nvinfer1::PluginCapabilityType type) noexcept override;
    nvinfer1::v_1_0::IPluginV3* clone() noexcept override;

    char const* getPluginName() const noexcept override { return content_->operator_name; }
    char const* getPluginVersion() const noexcept override { return VERSION; }
    char const* getPluginNamespace() const noexcept override { return NAMESPACE; }

    int32_t configurePlugin(
        nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
        nvinfer1::DynamicPluginTensorDesc const* outputs, int32_t output_count) noexcept override;
    int32_t getOutputDataTypes(
        nvinfer1::DataType* output_types, int32_t output_count,
        nvinfer1::DataType const* input_types, int32_t input_count) const noexcept override;
    int32_t getOutputShapes(
        nvinfer1::DimsExprs const* inputs, int32_t input_count,
        nvinfer1::DimsExprs const* shape_inputs, int32_t shape_input_count,
        nvinfer1::DimsExprs* outputs, int32_t output_count,
        nvinfer1::IExprBuilder& builder) noexcept override;
    bool supportsFormatCombination(
        int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors, int32_t input_count,
        int32_t output_count) noexcept override;
    int32_t getNbOutputs() const noexcept override;
    size_t getWorkspaceSize(
        nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t input_count,
        nvinfer1::DynamicPluginTensorDesc const* outputs,
        int32_t output_count) const noexcept override;

    int32_t onShapeChange(
        nvinfer1::PluginTensorDesc const* inputs, int32_t input_count,
        nvinfer1::PluginTensorDesc const* outputs, int32_t output_count) noexcept override;
    int32_t enqueue(
        nvinfer1::PluginTensorDesc const* input_descriptions,
        nvinfer1::PluginTensorDesc const* output_descriptions, void const* const* inputs,
        void* const* outputs, void* workspace, CUstream_st* stream) noexcept override;
    nvinfer1::v_1_0::IPluginV3* attachToContext(
        nvinfer1::IPluginResourceContext* context) noexcept override;
    nvinfer1::PluginFieldCollection const* getFieldsToSerialize() noexcept override;

private:
    std::shared_ptr<Content> content_;
    int64_t workspace_ = -1;  // as it is serialised
    nvinfer1::PluginField fields_[3];
    nvinfer1::PluginFieldCollection collection_;
    int32_t input_count_ = 0;  // enqueue is not told
    LastSchedule last_;
};

}  // namespace lmcast
