// The part of TensorRT's C++ interface that a plugin library meets, as binary layout.
//
// NVIDIA's headers come with no Python package, and a build must need nothing but PyPI; so what
// crosses the border is declared here: the order of virtual functions, the layout of structures and
// the numbers of enumerations, in the Itanium C++ ABI (GCC, Clang). Read from the headers of
// TensorRT 11.1, and run against TensorRT for RTX 1.7. NVIDIA keeps this part stable: an interface
// states its kind and version, and a changed one gets another version.
//
// Namespaces and class names are NVIDIA's, because they are in the type information that a
// dynamic_cast on the other side would compare. Every virtual function is declared, called or not:
// its place in the table counts. Destructors take two places, where they are first declared.
// CMake's LMCAST_TENSORRT_INCLUDE compares this file with real headers (interface_check.cpp).
#pragma once

#include <cstddef>
#include <cstdint>

struct CUstream_st;

namespace nvinfer1 {

enum class DataType : int32_t {
    kFLOAT = 0,
    kHALF = 1,
    kINT8 = 2,
    kINT32 = 3,
    kBOOL = 4,
    kUINT8 = 5,
    kFP8 = 6,
    kBF16 = 7,
    kINT64 = 8,
    kINT4 = 9,
    kFP4 = 10,
    kE8M0 = 11,
};

enum class TensorFormat : int32_t { kLINEAR = 0 };  // row-major; no other is accepted here

class Dims64 {
public:
    static constexpr int32_t MAX_DIMS = 8;
    int32_t nbDims;
    int64_t d[MAX_DIMS];
};
using Dims = Dims64;

struct PluginTensorDesc {
    Dims dims;  // -1: not yet known
    DataType type;
    TensorFormat format;
    float scale;  // of INT8
};

struct DynamicPluginTensorDesc {
    PluginTensorDesc desc;
    Dims min;
    Dims max;
    Dims opt;
};

enum class PluginFieldType : int32_t { kINT32 = 5, kCHAR = 6, kINT64 = 10 };  // those used here

class PluginField {
public:
    char const* name;
    void const* data;
    PluginFieldType type;
    int32_t length;  // in elements of the type
};

struct PluginFieldCollection {
    int32_t nbFields;
    PluginField const* fields;
};

enum class TensorRTPhase : int32_t { kBUILD = 0, kRUNTIME = 1 };
enum class PluginCapabilityType : int32_t { kCORE = 0, kBUILD = 1, kRUNTIME = 2 };
enum class APILanguage : int32_t { kCPP = 0, kPYTHON = 1 };

class InterfaceInfo {
public:
    char const* kind;
    int32_t major;
    int32_t minor;
};

class IVersionedInterface {
public:
    virtual APILanguage getAPILanguage() const noexcept { return APILanguage::kCPP; }
    virtual InterfaceInfo getInterfaceInfo() const noexcept = 0;
    virtual ~IVersionedInterface() noexcept = default;
};

// Sizes that are not yet known, while a network is built. The two classes are TensorRT's, and never
// made here: each is a table of its destructor alone, and the object that does the work.
namespace apiv {
class VExprBuilder;
}

class IDimensionExpr;

class IExprBuilder {
protected:
    virtual ~IExprBuilder() noexcept = 0;

public:
    IDimensionExpr const* constant(int64_t value) noexcept;

private:
    apiv::VExprBuilder* implementation;
};

enum class DimensionOperation : int32_t;

namespace apiv {
class VExprBuilder {
public:
    virtual ~VExprBuilder() noexcept = default;
    virtual IDimensionExpr const* constant(int64_t value) = 0;
    virtual IDimensionExpr const* operation(
        DimensionOperation operation, IDimensionExpr const& first,
        IDimensionExpr const& second) = 0;
    virtual IDimensionExpr const* declareSizeTensor(
        int32_t output, IDimensionExpr const& optimum, IDimensionExpr const& upper) = 0;
};
}  // namespace apiv

inline IDimensionExpr const* IExprBuilder::constant(int64_t value) noexcept {
    return implementation->constant(value);
}

class DimsExprs {
public:
    int32_t nbDims;
    IDimensionExpr const* d[Dims::MAX_DIMS];
};

class IPluginResourceContext;

namespace v_1_0 {

class IPluginCapability : public IVersionedInterface {};

class IPluginV3 : public IVersionedInterface {
public:
    InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN", 1, 0}; }
    virtual IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept = 0;
    virtual IPluginV3* clone() noexcept = 0;
};

class IPluginV3OneCore : public IPluginCapability {
public:
    InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN_V3ONE_CORE", 1, 0}; }
    virtual char const* getPluginName() const noexcept = 0;
    virtual char const* getPluginVersion() const noexcept = 0;
    virtual char const* getPluginNamespace() const noexcept = 0;
};

class IPluginV3OneBuild : public IPluginCapability {
public:
    InterfaceInfo getInterfaceInfo() const noexcept override {
        return {"PLUGIN_V3ONE_BUILD", 1, 0};
    }
    virtual int32_t configurePlugin(
        DynamicPluginTensorDesc const* inputs, int32_t input_count,
        DynamicPluginTensorDesc const* outputs, int32_t output_count) noexcept = 0;
    virtual int32_t getOutputDataTypes(
        DataType* output_types, int32_t output_count,
        DataType const* input_types, int32_t input_count) const noexcept = 0;
    virtual int32_t getOutputShapes(
        DimsExprs const* inputs, int32_t input_count,
        DimsExprs const* shape_inputs, int32_t shape_input_count,
        DimsExprs* outputs, int32_t output_count, IExprBuilder& builder) noexcept = 0;
    virtual bool supportsFormatCombination(
        int32_t position, DynamicPluginTensorDesc const* tensors,
        int32_t input_count, int32_t output_count) noexcept = 0;
    virtual int32_t getNbOutputs() const noexcept = 0;
    virtual size_t getWorkspaceSize(
        DynamicPluginTensorDesc const*, int32_t,
        DynamicPluginTensorDesc const*, int32_t) const noexcept { return 0; }
    virtual int32_t getValidTactics(int32_t*, int32_t) noexcept { return 0; }
    virtual int32_t getNbTactics() noexcept { return 0; }
    virtual char const* getTimingCacheID() noexcept { return nullptr; }
    virtual int32_t getFormatCombinationLimit() noexcept { return 100; }  // NVIDIA's default
    virtual char const* getMetadataString() noexcept { return nullptr; }
};

class IPluginV3OneRuntime : public IPluginCapability {
public:
    InterfaceInfo getInterfaceInfo() const noexcept override {
        return {"PLUGIN_V3ONE_RUNTIME", 1, 0};
    }
    virtual int32_t setTactic(int32_t) noexcept { return 0; }
    virtual int32_t onShapeChange(
        PluginTensorDesc const* inputs, int32_t input_count,
        PluginTensorDesc const* outputs, int32_t output_count) noexcept = 0;
    virtual int32_t enqueue(
        PluginTensorDesc const* input_descriptions, PluginTensorDesc const* output_descriptions,
        void const* const* inputs, void* const* outputs, void* workspace,
        CUstream_st* stream) noexcept = 0;
    virtual IPluginV3* attachToContext(IPluginResourceContext* context) noexcept = 0;
    virtual PluginFieldCollection const* getFieldsToSerialize() noexcept = 0;
};

class IPluginCreatorInterface : public IVersionedInterface {};

class IPluginCreatorV3One : public IPluginCreatorInterface {
public:
    InterfaceInfo getInterfaceInfo() const noexcept override {
        return {"PLUGIN CREATOR_V3ONE", 1, 0};
    }
    virtual IPluginV3* createPlugin(
        char const* name, PluginFieldCollection const* fields, TensorRTPhase phase) noexcept = 0;
    virtual PluginFieldCollection const* getFieldNames() noexcept = 0;
    virtual char const* getPluginName() const noexcept = 0;
    virtual char const* getPluginVersion() const noexcept = 0;
    virtual char const* getPluginNamespace() const noexcept = 0;
};

class ILogger : public IVersionedInterface {
public:
    enum class Severity : int32_t { kINTERNAL_ERROR = 0, kERROR = 1, kWARNING = 2 };
    virtual void log(Severity severity, char const* message) noexcept = 0;
};

class ILoggerFinder : public IVersionedInterface {
public:
    virtual ILogger* findLogger() = 0;
};

}  // namespace v_1_0
}  // namespace nvinfer1
