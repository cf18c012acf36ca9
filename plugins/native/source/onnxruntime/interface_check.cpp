// Compares interface.h with ONNX Runtime's own header: sizes, places of functions, numbers. Built and
// run by hand, where the header is: cmake -D LMCAST_ONNXRUNTIME_INCLUDE=...
#include <cstddef>
#include <cstdio>
#include <tuple>
#include <type_traits>

#include "interface.h"

#include <onnxruntime_c_api.h>

namespace {

namespace ours = lmcast::ort;

int wrong = 0;

void expect_same(long found, long expected, char const* what) {
    if (found == expected) return;
    std::printf("%s: %ld in interface.h, %ld in ONNX Runtime's header\n", what, found, expected);
    ++wrong;
}

// How many parameters a function has, and the bytes of each and of the result: the types differ in
// their names.
template <typename Result, typename... Parameters>
auto shape_of(Result (*)(Parameters...)) {
    if constexpr (std::is_void_v<Result>)
        return std::make_tuple(size_t{0}, sizeof(Parameters)...);
    else
        return std::make_tuple(sizeof(Result), sizeof(Parameters)...);
}

template <typename Ours, typename Theirs>
bool same_shape(Ours function, Theirs other) {
    auto const found = shape_of(function);
    auto const expected = shape_of(other);
    if constexpr (std::is_same_v<decltype(found), decltype(expected)>)
        return found == expected;
    else
        return false;  // another number of parameters
}

#define PLACE(type, name)                                                                       \
    expect_same(offsetof(ours::type, name), offsetof(::type, name), "place of " #type "::" #name)
#define FUNCTION(type, name)                                                      \
    PLACE(type, name);                                                            \
    expect_same(same_shape(decltype(ours::type::name){}, decltype(::type::name){}), true, \
                "parameters of " #type "::" #name)
#define NUMBER(name) expect_same(static_cast<long>(ours::name), static_cast<long>(::name), #name)

void check_api() {
    FUNCTION(OrtApiBase, GetApi);
    FUNCTION(OrtApiBase, GetVersionString);
    FUNCTION(OrtApi, CreateStatus);
    FUNCTION(OrtApi, CreateCustomOpDomain);
    FUNCTION(OrtApi, CustomOpDomain_Add);
    FUNCTION(OrtApi, AddCustomOpDomain);
    FUNCTION(OrtApi, GetTensorMutableData);
    FUNCTION(OrtApi, CreateTensorTypeAndShapeInfo);
    FUNCTION(OrtApi, SetTensorElementType);
    FUNCTION(OrtApi, SetDimensions);
    FUNCTION(OrtApi, GetTensorElementType);
    FUNCTION(OrtApi, GetDimensionsCount);
    FUNCTION(OrtApi, GetDimensions);
    FUNCTION(OrtApi, GetSymbolicDimensions);
    FUNCTION(OrtApi, GetTensorTypeAndShape);
    FUNCTION(OrtApi, KernelInfoGetAttribute_string);
    FUNCTION(OrtApi, KernelContext_GetInputCount);
    FUNCTION(OrtApi, KernelContext_GetOutputCount);
    FUNCTION(OrtApi, KernelContext_GetInput);
    FUNCTION(OrtApi, KernelContext_GetOutput);
    FUNCTION(OrtApi, ReleaseStatus);
    FUNCTION(OrtApi, CastTypeInfoToTensorInfo);
    FUNCTION(OrtApi, ReleaseTypeInfo);
    FUNCTION(OrtApi, ReleaseTensorTypeAndShapeInfo);
    FUNCTION(OrtApi, ReleaseAllocator);
    FUNCTION(OrtApi, KernelContext_GetGPUComputeStream);
    FUNCTION(OrtApi, KernelInfo_GetOutputCount);
    FUNCTION(OrtApi, KernelInfo_GetInputTypeInfo);
    FUNCTION(OrtApi, KernelInfo_GetNodeName);
    FUNCTION(OrtApi, KernelInfoGetConstantInput_tensor);
    FUNCTION(OrtApi, ShapeInferContext_GetInputTypeShape);
    FUNCTION(OrtApi, ShapeInferContext_GetAttribute);
    FUNCTION(OrtApi, ShapeInferContext_SetOutputTypeShape);
    FUNCTION(OrtApi, SetSymbolicDimensions);
    FUNCTION(OrtApi, ReadOpAttr);
    FUNCTION(OrtApi, KernelInfoGetAllocator);
    FUNCTION(OrtApi, KernelContext_GetSyncStream);
    PLACE(OrtAllocator, version);
    FUNCTION(OrtAllocator, Alloc);
    FUNCTION(OrtAllocator, Free);
    FUNCTION(OrtAllocator, AllocOnStream);
}

void check_operator() {
    expect_same(sizeof(ours::OrtCustomOp), sizeof(::OrtCustomOp), "size of OrtCustomOp");
    PLACE(OrtCustomOp, version);
    FUNCTION(OrtCustomOp, CreateKernel);
    FUNCTION(OrtCustomOp, GetName);
    FUNCTION(OrtCustomOp, GetExecutionProviderType);
    FUNCTION(OrtCustomOp, GetInputType);
    FUNCTION(OrtCustomOp, GetInputTypeCount);
    FUNCTION(OrtCustomOp, GetOutputType);
    FUNCTION(OrtCustomOp, GetOutputTypeCount);
    FUNCTION(OrtCustomOp, KernelCompute);
    FUNCTION(OrtCustomOp, KernelDestroy);
    FUNCTION(OrtCustomOp, GetInputCharacteristic);
    FUNCTION(OrtCustomOp, GetOutputCharacteristic);
    FUNCTION(OrtCustomOp, GetInputMemoryType);
    FUNCTION(OrtCustomOp, GetVariadicInputMinArity);
    FUNCTION(OrtCustomOp, GetVariadicInputHomogeneity);
    FUNCTION(OrtCustomOp, GetVariadicOutputMinArity);
    FUNCTION(OrtCustomOp, GetVariadicOutputHomogeneity);
    FUNCTION(OrtCustomOp, CreateKernelV2);
    FUNCTION(OrtCustomOp, KernelComputeV2);
    FUNCTION(OrtCustomOp, InferOutputShapeFn);
    FUNCTION(OrtCustomOp, GetStartVersion);
    FUNCTION(OrtCustomOp, GetEndVersion);
    FUNCTION(OrtCustomOp, GetMayInplace);
    FUNCTION(OrtCustomOp, ReleaseMayInplace);
    FUNCTION(OrtCustomOp, GetAliasMap);
    FUNCTION(OrtCustomOp, ReleaseAliasMap);
}

void check_numbers() {
    NUMBER(ORT_RUNTIME_EXCEPTION);
    NUMBER(ORT_OP_ATTR_STRING);
    NUMBER(OrtMemTypeCPUInput);
    NUMBER(OrtMemTypeDefault);
    NUMBER(INPUT_OUTPUT_REQUIRED);
    NUMBER(INPUT_OUTPUT_VARIADIC);
    NUMBER(ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED);
    NUMBER(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT);
    NUMBER(ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8);
    NUMBER(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32);
    NUMBER(ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64);
    NUMBER(ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16);
    NUMBER(ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16);
}

}  // namespace

int main() {
    check_api();
    check_operator();
    check_numbers();
    return wrong ? 1 : 0;
}
