#pragma once

#include <string>

#include "interface.h"

namespace lmcast {

// Where TensorRT gave no logger, messages go to standard error.
void use_logger_of(nvinfer1::v_1_0::ILoggerFinder* finder);

void log_error(std::string const& message) noexcept;

}  // namespace lmcast
