// What IPluginRegistry::loadLibrary looks for: the creators of all operators, and where to log.
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "log.h"
#include "plugin.h"

namespace lmcast {
namespace {

using namespace nvinfer1;

size_t bytes_of(PluginField const& field) {
    size_t const length = static_cast<size_t>(field.length > 0 ? field.length : 0);
    switch (field.type) {
        case PluginFieldType::kCHAR: return length;
        case PluginFieldType::kINT32: return length * sizeof(int32_t);
        case PluginFieldType::kINT64: return length * sizeof(int64_t);
    }
    throw RecipeError("attribute " + std::string(field.name) + " is neither text nor integers");
}

PluginField const* find(PluginFieldCollection const* fields, std::string const& name) {
    for (int32_t i = 0; fields && i < fields->nbFields; ++i)
        if (fields->fields[i].name == name && fields->fields[i].data) return &fields->fields[i];
    return nullptr;
}

std::string bytes(PluginFieldCollection const* fields, std::string const& name) {
    PluginField const* const field = find(fields, name);
    if (!field) throw RecipeError("there is no attribute " + name);
    return std::string(static_cast<char const*>(field->data), bytes_of(*field));
}

// The parser counts the NUL that ends a C string; getFieldsToSerialize does not.
std::string text(PluginFieldCollection const* fields, std::string const& name) {
    std::string text = bytes(fields, name);
    text.resize(text.find_last_not_of('\0') + 1);
    return text;
}

int64_t workspace(PluginFieldCollection const* fields) {
    PluginField const* const field = find(fields, WORKSPACE);
    int64_t value = -1;
    if (field && bytes_of(*field) == sizeof value) std::memcpy(&value, field->data, sizeof value);
    return value;
}

class Creator final : public v_1_0::IPluginCreatorV3One {
public:
    explicit Creator(char const* name) : name_(name) {}

    v_1_0::IPluginV3* createPlugin(char const* node, PluginFieldCollection const* fields,
                                   TensorRTPhase) noexcept override {
        std::string const known = node ? node : "";
        try {
            return new Plugin(std::make_shared<Content>(
                name_, known, text(fields, RECIPE), bytes(fields, KERNELS), workspace(fields)));
        } catch (std::exception const& error) {
            log_error(std::string(NAMESPACE) + "." + name_ + " " + known + ": " + error.what());
            return nullptr;
        }
    }

    PluginFieldCollection const* getFieldNames() noexcept override { return &collection_; }
    char const* getPluginName() const noexcept override { return name_; }
    char const* getPluginVersion() const noexcept override { return VERSION; }
    char const* getPluginNamespace() const noexcept override { return NAMESPACE; }

private:
    char const* name_;
    PluginField fields_[2] = {{RECIPE, nullptr, PluginFieldType::kCHAR, 0},
                              {KERNELS, nullptr, PluginFieldType::kCHAR, 0}};
    PluginFieldCollection collection_{2, fields_};
};

// For as long as the library is loaded, as TensorRT holds them.
std::vector<v_1_0::IPluginCreatorInterface*> const& creators() {
    static std::vector<std::unique_ptr<Creator>> const made = [] {
        std::vector<std::unique_ptr<Creator>> all;
        for (char const* name : OPERATORS) all.push_back(std::make_unique<Creator>(name));
        return all;
    }();
    static std::vector<v_1_0::IPluginCreatorInterface*> const pointers = [] {
        std::vector<v_1_0::IPluginCreatorInterface*> all;
        for (auto const& creator : made) all.push_back(creator.get());
        return all;
    }();
    return pointers;
}

}  // namespace
}  // namespace lmcast

#define EXPORTED extern "C" __attribute__((visibility("default")))

EXPORTED void setLoggerFinder(nvinfer1::v_1_0::ILoggerFinder* finder) {
    lmcast::use_logger_of(finder);
}

EXPORTED nvinfer1::v_1_0::IPluginCreatorInterface* const* getCreators(int32_t& count) {
    count = static_cast<int32_t>(lmcast::creators().size());
    return lmcast::creators().data();
}
