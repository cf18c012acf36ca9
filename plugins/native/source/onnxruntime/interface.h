// The part of ONNX Runtime's C interface that a library of custom operators meets, as binary layout.
//
// Its headers come with no Python package, and a build must need nothing but PyPI; so what crosses
// the border is declared here: the layout of structures and the numbers of enumerations. Read from
// the header of API version 29, and run against ONNX Runtime 1.31. A later version only appends to
// OrtApi; a custom operator states the version that it was made for.
//
// Names are ONNX Runtime's. CMake's LMCAST_ONNXRUNTIME_INCLUDE compares this file with a real header
// (interface_check.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

namespace lmcast::ort {

constexpr uint32_t VERSION = 28;  // of OrtApi: the first with all that is called here

struct OrtStatus;
struct OrtValue;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtTensorTypeAndShapeInfo;
struct OrtTypeInfo;
struct OrtSyncStream;
struct OrtOpAttr;
struct OrtCustomOpDomain;
struct OrtSessionOptions;
struct OrtApi;

enum OrtErrorCode { ORT_RUNTIME_EXCEPTION = 6 };
enum OrtOpAttrType { ORT_OP_ATTR_STRING = 5 };
enum OrtMemType { OrtMemTypeCPUInput = -2, OrtMemTypeDefault = 0 };
enum OrtCustomOpInputOutputCharacteristic { INPUT_OUTPUT_REQUIRED = 0, INPUT_OUTPUT_VARIADIC = 2 };

enum ONNXTensorElementDataType {
    ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED = 0,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 = 2,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32 = 6,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16 = 10,
    ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16 = 16,
};

struct OrtApiBase {
    OrtApi const* (*GetApi)(uint32_t version);  // null where it is older
    char const* (*GetVersionString)();
};

struct OrtAllocator {
    uint32_t version;
    void* (*Alloc)(OrtAllocator* allocator, size_t size);
    void (*Free)(OrtAllocator* allocator, void* memory);
    void* from_3[3];
    void* (*AllocOnStream)(OrtAllocator* allocator, size_t size, OrtSyncStream* stream);
};

// Functions by their place; those between are not called. A status that is not null is an error,
// and the caller's.
struct OrtApi {
    OrtStatus* (*CreateStatus)(OrtErrorCode code, char const* message);
    void* from_1[25];
    OrtStatus* (*CreateCustomOpDomain)(char const* name, OrtCustomOpDomain** made);
    OrtStatus* (*CustomOpDomain_Add)(OrtCustomOpDomain* domain, struct OrtCustomOp const* added);
    OrtStatus* (*AddCustomOpDomain)(OrtSessionOptions* options, OrtCustomOpDomain* domain);
    void* from_29[22];
    OrtStatus* (*GetTensorMutableData)(OrtValue* value, void** data);
    void* from_52[3];
    OrtStatus* (*CastTypeInfoToTensorInfo)(OrtTypeInfo const* info,
                                           OrtTensorTypeAndShapeInfo const** found);
    void* from_56[1];
    OrtStatus* (*CreateTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo** made);
    OrtStatus* (*SetTensorElementType)(OrtTensorTypeAndShapeInfo* info,
                                       ONNXTensorElementDataType type);
    OrtStatus* (*SetDimensions)(OrtTensorTypeAndShapeInfo* info, int64_t const* sizes,
                                size_t count);
    OrtStatus* (*GetTensorElementType)(OrtTensorTypeAndShapeInfo const* info,
                                       ONNXTensorElementDataType* type);
    OrtStatus* (*GetDimensionsCount)(OrtTensorTypeAndShapeInfo const* info, size_t* count);
    OrtStatus* (*GetDimensions)(OrtTensorTypeAndShapeInfo const* info, int64_t* sizes,
                                size_t count);
    OrtStatus* (*GetSymbolicDimensions)(OrtTensorTypeAndShapeInfo const* info, char const** names,
                                        size_t count);
    void* from_64[1];
    OrtStatus* (*GetTensorTypeAndShape)(OrtValue const* value, OrtTensorTypeAndShapeInfo** made);
    void* from_66[21];
    OrtStatus* (*KernelInfoGetAttribute_string)(OrtKernelInfo const* info, char const* name,
                                                char* text, size_t* size);
    OrtStatus* (*KernelContext_GetInputCount)(OrtKernelContext const* context, size_t* count);
    OrtStatus* (*KernelContext_GetOutputCount)(OrtKernelContext const* context, size_t* count);
    OrtStatus* (*KernelContext_GetInput)(OrtKernelContext const* context, size_t index,
                                         OrtValue const** value);
    OrtStatus* (*KernelContext_GetOutput)(OrtKernelContext* context, size_t index,
                                          int64_t const* sizes, size_t rank, OrtValue** value);
    void* from_92[1];
    void (*ReleaseStatus)(OrtStatus* status);
    void* from_94[4];
    void (*ReleaseTypeInfo)(OrtTypeInfo* info);
    void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo* info);
    void* from_100[32];
    void (*ReleaseAllocator)(OrtAllocator* allocator);
    void* from_133[60];
    OrtStatus* (*KernelContext_GetGPUComputeStream)(OrtKernelContext const* context, void** stream);
    void* from_194[37];
    OrtStatus* (*KernelInfo_GetOutputCount)(OrtKernelInfo const* info, size_t* count);
    void* from_232[2];
    OrtStatus* (*KernelInfo_GetInputTypeInfo)(OrtKernelInfo const* info, size_t index,
                                              OrtTypeInfo** made);
    void* from_235[9];
    OrtStatus* (*KernelInfo_GetNodeName)(OrtKernelInfo const* info, char* name, size_t* size);
    void* from_245[4];
    OrtStatus* (*KernelInfoGetConstantInput_tensor)(OrtKernelInfo const* info, size_t index,
                                                    int* is_constant, OrtValue const** value);
    void* from_250[18];
    OrtStatus* (*ShapeInferContext_GetInputTypeShape)(OrtShapeInferContext const* context,
                                                      size_t index,
                                                      OrtTensorTypeAndShapeInfo** info);
    OrtStatus* (*ShapeInferContext_GetAttribute)(OrtShapeInferContext const* context,
                                                 char const* name, OrtOpAttr const** attribute);
    OrtStatus* (*ShapeInferContext_SetOutputTypeShape)(OrtShapeInferContext const* context,
                                                       size_t index,
                                                       OrtTensorTypeAndShapeInfo const* info);
    OrtStatus* (*SetSymbolicDimensions)(OrtTensorTypeAndShapeInfo* info, char const** names,
                                        size_t count);
    OrtStatus* (*ReadOpAttr)(OrtOpAttr const* attribute, OrtOpAttrType type, void* data,
                             size_t size, size_t* needed);
    void* from_273[5];
    OrtStatus* (*KernelInfoGetAllocator)(OrtKernelInfo const* info, OrtMemType type,
                                         OrtAllocator** allocator);
    void* from_279[144];
    OrtStatus* (*KernelContext_GetSyncStream)(OrtKernelContext const* context,
                                              OrtSyncStream** stream);
};

// A custom operator: functions that ONNX Runtime calls, those of VERSION.
struct OrtCustomOp {
    uint32_t version;
    void* (*CreateKernel)(OrtCustomOp const*, OrtApi const*, OrtKernelInfo const*);
    char const* (*GetName)(OrtCustomOp const*);
    char const* (*GetExecutionProviderType)(OrtCustomOp const*);
    ONNXTensorElementDataType (*GetInputType)(OrtCustomOp const*, size_t index);
    size_t (*GetInputTypeCount)(OrtCustomOp const*);
    ONNXTensorElementDataType (*GetOutputType)(OrtCustomOp const*, size_t index);
    size_t (*GetOutputTypeCount)(OrtCustomOp const*);
    void (*KernelCompute)(void* kernel, OrtKernelContext*);
    void (*KernelDestroy)(void* kernel);
    OrtCustomOpInputOutputCharacteristic (*GetInputCharacteristic)(OrtCustomOp const*, size_t);
    OrtCustomOpInputOutputCharacteristic (*GetOutputCharacteristic)(OrtCustomOp const*, size_t);
    OrtMemType (*GetInputMemoryType)(OrtCustomOp const*, size_t index);
    int (*GetVariadicInputMinArity)(OrtCustomOp const*);
    int (*GetVariadicInputHomogeneity)(OrtCustomOp const*);
    int (*GetVariadicOutputMinArity)(OrtCustomOp const*);
    int (*GetVariadicOutputHomogeneity)(OrtCustomOp const*);
    OrtStatus* (*CreateKernelV2)(OrtCustomOp const*, OrtApi const*, OrtKernelInfo const*,
                                 void** kernel);
    OrtStatus* (*KernelComputeV2)(void* kernel, OrtKernelContext*);
    OrtStatus* (*InferOutputShapeFn)(OrtCustomOp const*, OrtShapeInferContext*);
    int (*GetStartVersion)(OrtCustomOp const*);
    int (*GetEndVersion)(OrtCustomOp const*);
    size_t (*GetMayInplace)(int** inputs, int** outputs);
    void (*ReleaseMayInplace)(int* inputs, int* outputs);
    size_t (*GetAliasMap)(int** inputs, int** outputs);
    void (*ReleaseAliasMap)(int* inputs, int* outputs);
};

}  // namespace lmcast::ort
