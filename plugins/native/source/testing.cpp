// What enqueue would do, and enqueue itself, for tests on a machine without a GPU and TensorRT.
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "tensorrt/plugin.h"

namespace lmcast {
namespace {

using namespace nvinfer1;

constexpr int32_t FAILED = 1;

// The sizes of all inputs one after the other, as Python passes them.
Shapes shapes_of(int32_t input_count, int32_t const* ranks, int64_t const* sizes) {
    Shapes shapes;
    for (int32_t i = 0; i < input_count; sizes += ranks[i++])
        shapes.emplace_back(sizes, sizes + ranks[i]);
    return shapes;
}

std::vector<PluginTensorDesc> descriptions(Shapes const& shapes) {
    std::vector<PluginTensorDesc> made;
    for (Shape const& shape : shapes) {
        PluginTensorDesc description{};
        description.dims.nbDims = static_cast<int32_t>(shape.size());
        std::copy(shape.begin(), shape.end(), description.dims.d);
        made.push_back(description);
    }
    return made;
}

int32_t answer(std::string const& text, int32_t result, char* answer, size_t size) {
    std::strncpy(answer, text.c_str(), size - 1);
    answer[size - 1] = '\0';
    return result;
}

}  // namespace
}  // namespace lmcast

#define EXPORTED extern "C" __attribute__((visibility("default")))

// Writes the schedule, or what is wrong, as text; returns 0, or 1 where something is wrong.
EXPORTED int32_t lmcast_schedule(
    char const* recipe, size_t image_bytes, int32_t input_count, int32_t const* ranks,
    int64_t const* sizes, char* text, size_t text_bytes) {
    using namespace lmcast;
    try {
        Recipe const read = read_recipe(recipe, image_bytes);
        Shapes const shapes = shapes_of(input_count, ranks, sizes);
        return answer(lmcast::text(read, schedule(read, shapes)), 0, text, text_bytes);
    } catch (RecipeError const& error) {
        return answer(error.what(), FAILED, text, text_bytes);
    }
}

// The same for the bytes of workspace between the least and the greatest shapes.
EXPORTED int32_t lmcast_workspace(
    char const* recipe, size_t image_bytes, int32_t input_count, int32_t const* ranks,
    int64_t const* least, int64_t const* greatest, char* text, size_t text_bytes) {
    using namespace lmcast;
    try {
        int64_t const bytes = workspace_bound(read_recipe(recipe, image_bytes),
                                              shapes_of(input_count, ranks, least),
                                              shapes_of(input_count, ranks, greatest));
        return answer(std::to_string(bytes), 0, text, text_bytes);
    } catch (RecipeError const& error) {
        return answer(error.what(), FAILED, text, text_bytes);
    }
}

EXPORTED nvinfer1::v_1_0::IPluginCreatorInterface* const* getCreators(int32_t& count);

// Makes a plugin of the first operator as from a plan, runs it once as TensorRT does, and frees it.
EXPORTED int32_t lmcast_enqueue(
    char const* recipe, char const* images, size_t image_bytes, int64_t workspace_bytes,
    int32_t input_count, int32_t const* ranks, int64_t const* sizes, void const* const* inputs,
    void* const* outputs, void* workspace, void* stream) {
    using namespace lmcast;
    PluginField const fields[] = {
        {RECIPE, recipe, PluginFieldType::kCHAR, static_cast<int32_t>(std::strlen(recipe))},
        {KERNELS, images, PluginFieldType::kCHAR, static_cast<int32_t>(image_bytes)},
        {WORKSPACE, &workspace_bytes, PluginFieldType::kINT64, 1},
    };
    PluginFieldCollection const collection{3, fields};
    int32_t count;
    auto* const creator = static_cast<v_1_0::IPluginCreatorV3One*>(*getCreators(count));
    std::unique_ptr<v_1_0::IPluginV3> const plugin(
        creator->createPlugin("node", &collection, TensorRTPhase::kRUNTIME));
    if (!plugin) return FAILED;
    auto* const runtime = static_cast<v_1_0::IPluginV3OneRuntime*>(
        plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    std::unique_ptr<v_1_0::IPluginV3> const attached(runtime->attachToContext(nullptr));
    auto* const running = static_cast<v_1_0::IPluginV3OneRuntime*>(
        attached->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
    auto const tensors = descriptions(shapes_of(input_count, ranks, sizes));
    running->onShapeChange(tensors.data(), input_count, nullptr, 0);
    return running->enqueue(tensors.data(), nullptr, inputs, outputs, workspace,
                            static_cast<CUstream_st*>(stream));
}
