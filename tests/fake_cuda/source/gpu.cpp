#include "gpu.h"

#include <cxxabi.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace fake {
namespace {

constexpr ErrorText TEXTS[] = {
    {OK, "CUDA_SUCCESS", "cudaSuccess", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "cudaErrorInvalidValue", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "cudaErrorMemoryAllocation", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "cudaErrorInitializationError",
     "initialization error"},
    {INVALID_CONFIGURATION, "CUDA_ERROR_UNKNOWN", "cudaErrorInvalidConfiguration",
     "invalid configuration argument"},
    {INSUFFICIENT_DRIVER, "CUDA_ERROR_UNKNOWN", "cudaErrorInsufficientDriver",
     "CUDA driver version is insufficient for CUDA runtime version"},
    {INVALID_FUNCTION, "CUDA_ERROR_UNKNOWN", "cudaErrorInvalidDeviceFunction",
     "invalid device function"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "cudaErrorInvalidDevice",
     "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "cudaErrorInvalidKernelImage",
     "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "cudaErrorDeviceUninitialized",
     "invalid device context"},
    {NO_IMAGE_FOR_GPU, "CUDA_ERROR_NO_BINARY_FOR_GPU", "cudaErrorNoKernelImageForDevice",
     "no kernel image is available for execution on the device"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "cudaErrorInvalidResourceHandle",
     "invalid resource handle"},
    {ILLEGAL_STATE, "CUDA_ERROR_ILLEGAL_STATE", "cudaErrorIllegalState",
     "the operation cannot be performed in the present state"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "cudaErrorSymbolNotFound", "named symbol not found"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "cudaErrorLaunchFailure",
     "unspecified launch failure"},
    {NOT_SUPPORTED, "CUDA_ERROR_NOT_SUPPORTED", "cudaErrorNotSupported",
     "operation not supported"},
    {CAPTURE_UNSUPPORTED, "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
     "cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"},
    {CAPTURE_INVALIDATED, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
     "cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {CAPTURE_UNMATCHED, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED", "cudaErrorStreamCaptureUnmatched",
     "capture was not ended in the same stream as it began"},
    {CAPTURE_IMPLICIT, "CUDA_ERROR_STREAM_CAPTURE_IMPLICIT", "cudaErrorStreamCaptureImplicit",
     "operation would make the legacy stream depend on a capturing blocking stream"},
    {CAPTURED_EVENT, "CUDA_ERROR_CAPTURED_EVENT", "cudaErrorCapturedEvent",
     "operation not permitted on an event last recorded in a capturing stream"},
    {999, "CUDA_ERROR_UNKNOWN", "cudaErrorUnknown", "unknown error"},
};

long number(char const* variable, long otherwise) {
    char const* const text = std::getenv(variable);
    return text ? std::atol(text) : otherwise;
}

Settings read_settings() {
    Settings read;
    read.sm = static_cast<int>(number("FAKE_CUDA_SM", read.sm));
    read.memory = static_cast<size_t>(number("FAKE_CUDA_MEMORY", static_cast<long>(read.memory)));
    read.driver = static_cast<int>(number("FAKE_CUDA_DRIVER", read.driver));
    read.present = number("FAKE_CUDA_PRESENT", read.present) != 0;
    read.fill = static_cast<int>(number("FAKE_CUDA_FILL", read.fill));
    return read;
}

// What a program may ask of GPUs (CUDA programming guide, table of compute capabilities; data
// sheets of T4, A100, A10, L40S, H200, B200 and RTX PRO 6000 for the number of multiprocessors).
struct Facts {
    int sm, multiprocessors, threads, shared_kilobytes, l2_megabytes, bus_bits;
};
constexpr Facts FACTS[] = {
    {75, 40, 1024, 64, 4, 256},
    {80, 108, 2048, 164, 40, 5120},
    {86, 72, 1536, 100, 6, 384},
    {89, 142, 1536, 100, 96, 384},
    {90, 132, 2048, 228, 50, 6144},
    {100, 148, 2048, 228, 126, 8192},
    {120, 188, 1536, 100, 128, 512},
};

Facts const& facts() {
    for (Facts const& one : FACTS)
        if (one.sm == settings().sm) return one;
    std::fprintf(stderr, "FAKE_CUDA_SM=%d is not known\n", settings().sm);
    std::abort();
}

std::mutex memory_mutex;
std::map<uintptr_t, Span> spans;
size_t in_use = 0;  // of the device
long left = -1;     // how many allocations are still granted, of any side; -1: all

size_t pages(size_t bytes) {
    size_t const page = 4096;
    return (std::max<size_t>(bytes, 1) + page - 1) / page * page;
}

void note_memory(char const* kind, size_t bytes, char const* by) {
    note("\"kind\": \"" + std::string(kind) + "\", \"bytes\": " + std::to_string(bytes) +
         ", \"in_use\": " + std::to_string(in_use) + ", \"api\": \"" + by + "\"");
}

}  // namespace

ErrorText const& describe(int code) {
    for (ErrorText const& one : TEXTS)
        if (one.code == code) return one;
    return *(std::end(TEXTS) - 1);
}

Settings const& settings() {
    static Settings const read = read_settings();
    return read;
}

int device_attribute(int attribute) {
    Facts const& gpu = facts();
    // A KB of a multiprocessor's shared memory is the system's for each block, but on Turing.
    int const optin = (gpu.shared_kilobytes - (gpu.sm > 75)) << 10;
    switch (attribute) {
        case BLOCK_THREADS: case BLOCK_X: case BLOCK_Y: return 1024;
        case BLOCK_Z: return 64;
        case GRID_X: return 2147483647;
        case GRID_Y: case GRID_Z: return 65535;
        case BLOCK_SHARED: return 48 << 10;
        case BLOCK_SHARED_OPTIN: return optin;
        case CONSTANT_BYTES: return 64 << 10;
        case WARP: return 32;
        case BLOCK_REGISTERS: case MULTIPROCESSOR_REGISTERS: return 65536;
        case CLOCK: case MEMORY_CLOCK: return 1785000;  // kHz; nothing here takes time
        case MULTIPROCESSORS: return gpu.multiprocessors;
        case MULTIPROCESSOR_THREADS: return gpu.threads;
        case MULTIPROCESSOR_SHARED: return gpu.shared_kilobytes << 10;
        case MULTIPROCESSOR_BLOCKS: return gpu.threads == 2048 ? 32 : 24;
        case BUS_BITS: return gpu.bus_bits;
        case L2_BYTES: return gpu.l2_megabytes << 20;
        case COPY_ENGINES: return 3;
        case MAJOR: return gpu.sm / 10;
        case MINOR: return gpu.sm % 10;
        case INTEGRATED: case COMPUTE_MODE: case ECC: case PAGEABLE_ACCESS: return 0;
        case PCI_BUS: case PCI_DEVICE: case PCI_DOMAIN: return 0;
        default: return 1;  // it has this feature
    }
}

void note(std::string const& fields) {
    static int const file = [] {
        char const* const path = std::getenv("FAKE_CUDA_LOG");
        return path ? open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644) : -1;
    }();
    if (file < 0) return;
    std::string const line = "{" + fields + "}\n";
    if (write(file, line.data(), line.size()) != static_cast<ssize_t>(line.size())) std::abort();
}

std::string quoted(std::string const& text) {
    std::string made = "\"";
    for (char const c : text) {
        if (c == '"' || c == '\\') made += '\\';
        if (static_cast<unsigned char>(c) >= ' ') made += c;
    }
    return made + "\"";
}

std::string demangled(char const* name) {
    int status = 0;
    char* const text = abi::__cxa_demangle(name, nullptr, nullptr, &status);
    std::string const found = status == 0 ? text : name;
    std::free(text);
    return found;
}

Error allocate(void** address, size_t bytes, Place place, char const* by) {
    std::lock_guard const lock(memory_mutex);
    bool const device = place == Place::DEVICE;
    *address = nullptr;
    // CUDA rounds to 512 bytes at least.
    size_t const counted = (bytes + 511) / 512 * 512;
    bool const ended = left == 0;
    if (left > 0) --left;
    bool const fits = !ended && (!device || in_use + counted <= settings().memory);
    // A page behind it that must not be touched; memory of this machine is taken when it is.
    size_t const size = pages(bytes);
    void* made = MAP_FAILED;
    if (fits)
        made = mmap(nullptr, size + 4096, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (made == MAP_FAILED) {
        note_memory("refused", bytes, by);
        return OUT_OF_MEMORY;
    }
    mprotect(static_cast<char*>(made) + size, 4096, PROT_NONE);
    if (settings().fill) std::memset(made, settings().fill, size);
    auto const start = reinterpret_cast<uintptr_t>(made);
    spans[start] = {start, bytes, place};
    if (device) {
        in_use += counted;
        note_memory("allocate", bytes, by);
    }
    *address = made;
    return OK;
}

Error release(void* address, char const* by) {
    if (!address) return OK;
    std::lock_guard const lock(memory_mutex);
    auto const found = spans.find(reinterpret_cast<uintptr_t>(address));
    if (found == spans.end()) return INVALID_VALUE;
    Span const span = found->second;
    spans.erase(found);
    munmap(address, pages(span.size) + 4096);
    if (span.place == Place::DEVICE) {
        in_use -= (span.size + 511) / 512 * 512;
        note_memory("free", span.size, by);
    }
    return OK;
}

Span span_of(void const* address) {
    std::lock_guard const lock(memory_mutex);
    auto const at = reinterpret_cast<uintptr_t>(address);
    auto const next = spans.upper_bound(at);
    if (next == spans.begin()) return {};
    Span const& span = std::prev(next)->second;
    return at < span.start + std::max<size_t>(span.size, 1) ? span : Span{};
}

size_t bytes_in_use() {
    std::lock_guard const lock(memory_mutex);
    return in_use;
}

std::string launch_fields(std::string const& name, char const* api, Shape grid, Shape block,
                          size_t shared) {
    char sizes[256];
    std::snprintf(sizes, sizeof sizes,
                  ", \"grid\": [%u, %u, %u], \"block\": [%u, %u, %u], \"shared\": %zu", grid.x,
                  grid.y, grid.z, block.x, block.y, block.z, shared);
    return "\"kind\": \"kernel\", \"name\": " + quoted(name) + ", \"api\": \"" + api + "\"" + sizes;
}

bool can_launch(Shape grid, Shape block, size_t shared, size_t allowed) {
    bool const some = grid.x && grid.y && grid.z && block.x && block.y && block.z;
    bool const grid_fits = grid.x <= 2147483647u && grid.y <= 65535 && grid.z <= 65535;
    size_t const threads = size_t(block.x) * block.y * block.z;
    return some && grid_fits && threads <= 1024 && block.z <= 64 && shared <= allowed;
}

}  // namespace fake

// For tests, by ctypes.
API void fake_note(char const* fields) { fake::note(fields); }

// Grants so many allocations from now on, of the device and of pinned memory, and no more; -1: all.
API void fake_grant(long allocations) {
    std::lock_guard const lock(fake::memory_mutex);
    fake::left = allocations;
}

API size_t fake_span(void const* address, void const** start) {
    fake::Span const span = fake::span_of(address);
    *start = reinterpret_cast<void const*>(span.start);
    return span.place == fake::Place::NOWHERE ? 0 : span.size;
}
