// Compares interface.h with NVIDIA's own headers: sizes, places of fields and of virtual functions,
// numbers. Built and run by hand, where the headers are: cmake -D LMCAST_TENSORRT_INCLUDE=...
#include <cstddef>
#include <cstdio>
#include <cstring>

#define nvinfer1 ours
#include "interface.h"
#undef nvinfer1

#include <NvInfer.h>

namespace {

int wrong = 0;

void expect_same(long found, long expected, char const* what) {
    if (found == expected) return;
    std::printf("%s: %ld in interface.h, %ld in NVIDIA's headers\n", what, found, expected);
    ++wrong;
}

// A pointer to a virtual function starts with its place in the table, in the Itanium C++ ABI.
template <typename Function>
long place(Function function) {
    long number;
    std::memcpy(&number, &function, sizeof number);
    return number;
}

#define SIZE(type) expect_same(sizeof(ours::type), sizeof(nvinfer1::type), "size of " #type)
#define FIELD(type, field)                                                    \
    expect_same(offsetof(ours::type, field), offsetof(nvinfer1::type, field), \
                "place of " #type "::" #field)
#define NUMBER(name) \
    expect_same(static_cast<long>(ours::name), static_cast<long>(nvinfer1::name), #name)
#define PLACE(type, function)                                                             \
    expect_same(place(&ours::v_1_0::type::function), place(&nvinfer1::v_1_0::type::function), \
                "place of " #type "::" #function)

void check_structures() {
    SIZE(Dims);
    FIELD(Dims, nbDims);
    FIELD(Dims, d);
    SIZE(PluginTensorDesc);
    FIELD(PluginTensorDesc, dims);
    FIELD(PluginTensorDesc, type);
    FIELD(PluginTensorDesc, format);
    FIELD(PluginTensorDesc, scale);
    SIZE(DynamicPluginTensorDesc);
    FIELD(DynamicPluginTensorDesc, desc);
    FIELD(DynamicPluginTensorDesc, min);
    FIELD(DynamicPluginTensorDesc, max);
    FIELD(DynamicPluginTensorDesc, opt);
    SIZE(PluginField);
    FIELD(PluginField, name);
    FIELD(PluginField, data);
    FIELD(PluginField, type);
    FIELD(PluginField, length);
    SIZE(PluginFieldCollection);
    FIELD(PluginFieldCollection, nbFields);
    FIELD(PluginFieldCollection, fields);
    SIZE(InterfaceInfo);
    FIELD(InterfaceInfo, kind);
    FIELD(InterfaceInfo, major);
    FIELD(InterfaceInfo, minor);
    SIZE(DimsExprs);
    FIELD(DimsExprs, nbDims);
    FIELD(DimsExprs, d);
    SIZE(IExprBuilder);
}

void check_numbers() {
    NUMBER(DataType::kFLOAT);
    NUMBER(DataType::kHALF);
    NUMBER(DataType::kBF16);
    NUMBER(DataType::kINT32);
    NUMBER(DataType::kINT64);
    NUMBER(TensorFormat::kLINEAR);
    NUMBER(PluginFieldType::kINT32);
    NUMBER(PluginFieldType::kCHAR);
    NUMBER(PluginFieldType::kINT64);
    NUMBER(TensorRTPhase::kBUILD);
    NUMBER(TensorRTPhase::kRUNTIME);
    NUMBER(PluginCapabilityType::kCORE);
    NUMBER(PluginCapabilityType::kBUILD);
    NUMBER(PluginCapabilityType::kRUNTIME);
    NUMBER(APILanguage::kCPP);
    NUMBER(v_1_0::ILogger::Severity::kERROR);
}

void check_tables() {
    PLACE(IPluginV3, getAPILanguage);
    PLACE(IPluginV3, getInterfaceInfo);
    PLACE(IPluginV3, getCapabilityInterface);
    PLACE(IPluginV3, clone);
    PLACE(IPluginV3OneCore, getPluginName);
    PLACE(IPluginV3OneCore, getPluginVersion);
    PLACE(IPluginV3OneCore, getPluginNamespace);
    PLACE(IPluginV3OneBuild, configurePlugin);
    PLACE(IPluginV3OneBuild, getOutputDataTypes);
    PLACE(IPluginV3OneBuild, getOutputShapes);
    PLACE(IPluginV3OneBuild, supportsFormatCombination);
    PLACE(IPluginV3OneBuild, getNbOutputs);
    PLACE(IPluginV3OneBuild, getWorkspaceSize);
    PLACE(IPluginV3OneBuild, getValidTactics);
    PLACE(IPluginV3OneBuild, getNbTactics);
    PLACE(IPluginV3OneBuild, getTimingCacheID);
    PLACE(IPluginV3OneBuild, getFormatCombinationLimit);
    PLACE(IPluginV3OneBuild, getMetadataString);
    PLACE(IPluginV3OneRuntime, setTactic);
    PLACE(IPluginV3OneRuntime, onShapeChange);
    PLACE(IPluginV3OneRuntime, enqueue);
    PLACE(IPluginV3OneRuntime, attachToContext);
    PLACE(IPluginV3OneRuntime, getFieldsToSerialize);
    PLACE(IPluginCreatorV3One, createPlugin);
    PLACE(IPluginCreatorV3One, getFieldNames);
    PLACE(IPluginCreatorV3One, getPluginName);
    PLACE(IPluginCreatorV3One, getPluginVersion);
    PLACE(IPluginCreatorV3One, getPluginNamespace);
    PLACE(ILogger, log);
    PLACE(ILoggerFinder, findLogger);
    expect_same(place(&ours::apiv::VExprBuilder::constant),
                place(&nvinfer1::apiv::VExprBuilder::constant), "place of VExprBuilder::constant");
}

}  // namespace

int main() {
    check_structures();
    check_numbers();
    check_tables();
    return wrong ? 1 : 0;
}
