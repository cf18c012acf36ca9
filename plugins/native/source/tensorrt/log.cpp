#include "log.h"

#include <atomic>
#include <cstdio>

namespace lmcast {
namespace {

std::atomic<nvinfer1::v_1_0::ILoggerFinder*> logger_finder{nullptr};

}  // namespace

void use_logger_of(nvinfer1::v_1_0::ILoggerFinder* finder) {
    logger_finder = finder;
}

void log_error(std::string const& message) noexcept {
    using nvinfer1::v_1_0::ILogger;
    auto* const finder = logger_finder.load();
    if (ILogger* const logger = finder ? finder->findLogger() : nullptr)
        logger->log(ILogger::Severity::kERROR, message.c_str());
    else
        std::fprintf(stderr, "%s\n", message.c_str());
}

}  // namespace lmcast
