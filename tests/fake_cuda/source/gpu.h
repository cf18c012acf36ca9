// A GPU that is not there: its memory is memory of this machine, its streams run at once and in
// order, and what it is asked for is written down. The CUDA libraries of this folder are thin over
// it. Numbers and layouts are those of CUDA 13's binary interface.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#define API extern "C" __attribute__((visibility("default")))

namespace fake {

// The driver and the runtime number their errors alike.
enum Error : int {
    OK = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_CONFIGURATION = 9,
    INSUFFICIENT_DRIVER = 35,
    INVALID_FUNCTION = 98,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_IMAGE_FOR_GPU = 209,
    INVALID_HANDLE = 400,
    ILLEGAL_STATE = 401,
    NOT_FOUND = 500,
    LAUNCH_FAILED = 719,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_UNMATCHED = 903,
    CAPTURE_IMPLICIT = 906,
    CAPTURED_EVENT = 907,
};

struct ErrorText {
    int code;
    char const *driver_name, *runtime_name, *text;
};
ErrorText const& describe(int code);

// What processes are told by their environment; see tests/fake_cuda/__init__.py.
struct Settings {
    int sm = 90;
    size_t memory = size_t(80) << 30;  // bytes
    int driver = 13000;                // as cuDriverGetVersion says it
    bool present = true;               // whether there is a GPU
    int fill = 0;                      // of every byte of fresh memory
};
Settings const& settings();

// The numbers of cudaDeviceAttr, which are CUdevice_attribute's too: what is not yes or no.
enum Attribute : int {
    BLOCK_THREADS = 1,
    BLOCK_X = 2,
    BLOCK_Y = 3,
    BLOCK_Z = 4,
    GRID_X = 5,
    GRID_Y = 6,
    GRID_Z = 7,
    BLOCK_SHARED = 8,
    CONSTANT_BYTES = 9,
    WARP = 10,
    BLOCK_REGISTERS = 12,
    CLOCK = 13,
    MULTIPROCESSORS = 16,
    INTEGRATED = 18,
    COMPUTE_MODE = 20,
    ECC = 32,
    PCI_BUS = 33,
    PCI_DEVICE = 34,
    MEMORY_CLOCK = 36,
    BUS_BITS = 37,
    L2_BYTES = 38,
    MULTIPROCESSOR_THREADS = 39,
    COPY_ENGINES = 40,
    PCI_DOMAIN = 50,
    MAJOR = 75,
    MINOR = 76,
    MULTIPROCESSOR_SHARED = 81,
    MULTIPROCESSOR_REGISTERS = 82,
    PAGEABLE_ACCESS = 88,
    BLOCK_SHARED_OPTIN = 97,
    MULTIPROCESSOR_BLOCKS = 106,
};
int device_attribute(int attribute);

// --- The log: a line of JSON each. Fields are written `"key": value, "key": value`.
void note(std::string const& fields);
std::string quoted(std::string const& text);
std::string demangled(char const* name);

// --- Memory
enum class Place { NOWHERE, HOST, DEVICE };  // NOWHERE: not of CUDA, so pageable memory
struct Span {
    uintptr_t start = 0;
    size_t size = 0;
    Place place = Place::NOWHERE;
};
// by: "driver" or "runtime", whichever was asked.
Error allocate(void** address, size_t bytes, Place place, char const* by);
Error release(void* address, char const* by);
Span span_of(void const* address);  // the allocation that it lies in; empty where there is none
size_t bytes_in_use();

// --- Streams. What is submitted runs at once; on a stream that is being captured it is kept.
using Work = std::function<Error()>;
enum { GLOBAL = 0, THREAD_LOCAL = 1, RELAXED = 2 };  // modes of captures
Error create_stream(void** stream, unsigned flags);
Error destroy_stream(void* stream);
Error submit(void* stream, std::string const& fields, Work const& work);
Error copy(void* to, void const* from, size_t bytes, char const* way, void* stream);
struct Lines {
    size_t width, height;        // bytes of a line, and how many
    size_t to_pitch, from_pitch;  // from one to the next
};
Error copy_lines(void* to, void const* from, Lines const& lines, void* stream);  // on the device
Error wait(char const* what, void* stream);  // null stream: waits for the device
// An error where a capture forbids what may wait for the device: the capture is lost with it.
Error may_wait();
Error copy_now(void* to, void const* from, size_t bytes, char const* way);
// Writes the low `item` bytes of a value over and over.
Error fill(void* to, unsigned value, size_t item, size_t bytes, void* stream);

Error create_event(void** event);
Error destroy_event(void* event);
Error record_event(void* event, void* stream);
Error wait_event(void* stream, void* event);
Error synchronize_event(void* event);

Error begin_capture(void* stream, int mode);
Error end_capture(void* stream, void** graph);
Error capture_status(void* stream, int* status);  // 0 none, 1 active, 2 invalidated
// Of this thread: which captures of others forbid it what may wait. Takes a mode, gives the last.
Error exchange_mode(int* mode);
Error instantiate(void** executable, void* graph);
Error launch_graph(void* executable, void* stream);
Error destroy_graph(void* graph_or_executable);
Error count_nodes(void* graph, size_t* count);

// --- Kernels
struct Shape {
    unsigned x, y, z;
};
std::string launch_fields(std::string const& name, char const* api, Shape grid, Shape block,
                          size_t shared);
// Whether a block and a grid are within what the GPU has; dynamic shared memory up to `allowed`.
bool can_launch(Shape grid, Shape block, size_t shared, size_t allowed);

}  // namespace fake
