// Streams, events and graphs: work in order, or kept for later.
#include <cstring>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "gpu.h"

namespace fake {
namespace {

struct Node {
    std::string fields;
    Work work;
};

struct Graph {
    int number;
    std::shared_ptr<std::vector<Node>> nodes;
};

struct Capture {
    Graph* graph;
    struct Stream* origin;
    int mode;
    std::thread::id thread;
    bool broken = false;
};

struct Stream {
    int number;
    bool blocking;  // whether it waits for the default stream
    Capture* capture = nullptr;
};

struct Event {
    Capture* capture = nullptr;
};

std::recursive_mutex mutex;
std::set<void*> streams, events, graphs;
std::set<Capture*> captures;
thread_local int thread_mode = GLOBAL;
int last_stream = 0, last_graph = 0;
Stream default_stream{0, true};

template <typename T>
T* live(std::set<void*> const& known, void* handle) {
    return known.count(handle) ? static_cast<T*>(handle) : nullptr;
}

Stream* stream_of(void* handle) {
    // 0, 1 and 2 are the default stream: as it is, the legacy one, that of the thread.
    if (reinterpret_cast<uintptr_t>(handle) <= 2) return &default_stream;
    return live<Stream>(streams, handle);
}

std::string on(Stream const& stream) {
    return ", \"stream\": " + std::to_string(stream.number);
}

std::string in_graph(char const* how, Graph const& graph) {
    return std::string(", \"") + how + "\": " + std::to_string(graph.number);
}

// Whether work on the default stream would wait for one that is being captured.
bool captures_blocking_stream() {
    for (Capture const* one : captures)
        if (one->origin->blocking) return true;
    return false;
}

std::string copy_fields(char const* way, size_t bytes) {
    return std::string("\"kind\": \"copy\", \"way\": \"") + way +
           "\", \"bytes\": " + std::to_string(bytes);
}

// Whether a copy stays within allocations that are where its way says.
bool copy_fits(void const* address, size_t bytes, char side) {
    Span const span = span_of(address);
    if ((span.place == Place::DEVICE) != (side == 'D')) return false;
    auto const at = reinterpret_cast<uintptr_t>(address);
    return span.place == Place::NOWHERE || at + bytes <= span.start + span.size;
}

// "default" is the way that the addresses say.
std::string way_of(void const* to, void const* from, char const* way) {
    if (std::strcmp(way, "default") != 0) return way;
    auto const letter = [](void const* at) {
        return span_of(at).place == Place::DEVICE ? 'D' : 'H';
    };
    return std::string{letter(from)} + "to" + letter(to);
}

}  // namespace

Error create_stream(void** stream, unsigned flags) {
    std::lock_guard const lock(mutex);
    *stream = new Stream{++last_stream, !(flags & 1)};
    streams.insert(*stream);
    return OK;
}

Error destroy_stream(void* handle) {
    std::lock_guard const lock(mutex);
    Stream* const stream = live<Stream>(streams, handle);
    if (!stream) return INVALID_HANDLE;
    streams.erase(handle);
    delete stream;
    return OK;
}

Error submit(void* handle, std::string const& fields, Work const& work) {
    {
        std::lock_guard const lock(mutex);
        Stream* const stream = stream_of(handle);
        if (!stream) return INVALID_HANDLE;
        if (stream == &default_stream && captures_blocking_stream()) {
            for (Capture* one : captures) one->broken = true;
            return CAPTURE_IMPLICIT;
        }
        std::string const whole = fields + on(*stream);
        if (Capture* const capture = stream->capture) {
            if (capture->broken) return CAPTURE_INVALIDATED;
            note(whole + in_graph("captured", *capture->graph));
            capture->graph->nodes->push_back({whole, work});
            return OK;
        }
        note(whole);
    }
    // Not under the lock: the work may be Python, which waits for its own.
    return work ? work() : OK;
}

Error copy(void* to, void const* from, size_t bytes, char const* given, void* stream) {
    if (!bytes) return OK;
    std::string const way = way_of(to, from, given);
    if (!copy_fits(from, bytes, way.front()) || !copy_fits(to, bytes, way.back()))
        return INVALID_VALUE;
    return submit(stream, copy_fields(way.c_str(), bytes), [=] {
        std::memmove(to, from, bytes);
        return OK;
    });
}

Error copy_lines(void* to, void const* from, Lines const& lines, void* stream) {
    if (!lines.width || !lines.height) return OK;
    size_t const last = lines.height - 1;
    if (!copy_fits(from, last * lines.from_pitch + lines.width, 'D') ||
        !copy_fits(to, last * lines.to_pitch + lines.width, 'D'))
        return INVALID_VALUE;
    return submit(stream, copy_fields("DtoD", lines.width * lines.height), [=] {
        for (size_t i = 0; i < lines.height; ++i)
            std::memmove(static_cast<char*>(to) + i * lines.to_pitch,
                         static_cast<char const*>(from) + i * lines.from_pitch, lines.width);
        return OK;
    });
}

Error copy_now(void* to, void const* from, size_t bytes, char const* way) {
    if (Error const error = may_wait()) return error;
    if (Error const error = copy(to, from, bytes, way, nullptr)) return error;
    return wait("copy", nullptr);
}

Error fill(void* to, unsigned value, size_t item, size_t bytes, void* stream) {
    if (!bytes) return OK;
    if (!copy_fits(to, bytes, 'D')) return INVALID_VALUE;
    auto const fields = "\"kind\": \"fill\", \"bytes\": " + std::to_string(bytes);
    return submit(stream, fields, [=] {
        auto start = static_cast<char*>(to);
        for (size_t at = 0; at < bytes; at += item) std::memcpy(start + at, &value, item);
        return OK;
    });
}

Error may_wait() {
    std::lock_guard const lock(mutex);
    bool forbidden = false;
    for (Capture* one : captures) {
        bool const mine = one->thread == std::this_thread::get_id();
        bool const forbids = mine ? one->mode != RELAXED : one->mode == GLOBAL && !thread_mode;
        if (forbids && thread_mode != RELAXED) {
            one->broken = true;
            forbidden = true;
        }
    }
    return forbidden ? CAPTURE_UNSUPPORTED : OK;
}

Error exchange_mode(int* mode) {
    if (*mode < GLOBAL || *mode > RELAXED) return INVALID_VALUE;
    std::swap(*mode, thread_mode);
    return OK;
}

Error wait(char const* what, void* handle) {
    std::lock_guard const lock(mutex);
    Stream* const stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream->capture) {
        stream->capture->broken = true;
        return CAPTURE_UNSUPPORTED;
    }
    note(std::string("\"kind\": \"wait\", \"for\": \"") + what + "\"" + on(*stream));
    return OK;
}

Error create_event(void** event) {
    std::lock_guard const lock(mutex);
    *event = new Event;
    events.insert(*event);
    return OK;
}

Error destroy_event(void* handle) {
    std::lock_guard const lock(mutex);
    Event* const event = live<Event>(events, handle);
    if (!event) return INVALID_HANDLE;
    events.erase(handle);
    delete event;
    return OK;
}

Error record_event(void* event_handle, void* stream_handle) {
    std::lock_guard const lock(mutex);
    Event* const event = live<Event>(events, event_handle);
    Stream* const stream = stream_of(stream_handle);
    if (!event || !stream) return INVALID_HANDLE;
    event->capture = stream->capture;
    return OK;
}

Error wait_event(void* stream_handle, void* event_handle) {
    std::lock_guard const lock(mutex);
    Event* const event = live<Event>(events, event_handle);
    Stream* const stream = stream_of(stream_handle);
    if (!event || !stream) return INVALID_HANDLE;
    // A stream that waits for captured work is captured too, until the capture ends.
    if (event->capture && captures.count(event->capture)) stream->capture = event->capture;
    return OK;
}

Error synchronize_event(void* handle) {
    std::lock_guard const lock(mutex);
    Event* const event = live<Event>(events, handle);
    if (!event) return INVALID_HANDLE;
    if (event->capture && captures.count(event->capture)) {
        event->capture->broken = true;
        return CAPTURED_EVENT;
    }
    note("\"kind\": \"wait\", \"for\": \"event\"");
    return OK;
}

Error begin_capture(void* handle, int mode) {
    std::lock_guard const lock(mutex);
    Stream* const stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream == &default_stream) return CAPTURE_UNSUPPORTED;
    if (stream->capture) return ILLEGAL_STATE;
    auto* const graph = new Graph{++last_graph, std::make_shared<std::vector<Node>>()};
    stream->capture = new Capture{graph, stream, mode, std::this_thread::get_id()};
    captures.insert(stream->capture);
    note("\"kind\": \"capture\", \"mode\": " + std::to_string(mode) + on(*stream) +
         in_graph("captured", *graph));
    return OK;
}

Error end_capture(void* handle, void** made) {
    std::lock_guard const lock(mutex);
    *made = nullptr;
    Stream* const stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    Capture* const capture = stream->capture;
    if (!capture) return ILLEGAL_STATE;
    if (capture->origin != stream) {
        capture->broken = true;
        return CAPTURE_UNMATCHED;
    }
    for (void* one : streams) {
        Stream* const joined = static_cast<Stream*>(one);
        if (joined->capture == capture) joined->capture = nullptr;
    }
    captures.erase(capture);
    std::unique_ptr<Capture> const ended(capture);
    if (ended->broken) {
        delete ended->graph;
        return CAPTURE_INVALIDATED;
    }
    graphs.insert(ended->graph);
    *made = ended->graph;
    return OK;
}

Error capture_status(void* handle, int* status) {
    std::lock_guard const lock(mutex);
    Stream* const stream = stream_of(handle);
    if (!stream) return INVALID_HANDLE;
    *status = !stream->capture ? 0 : stream->capture->broken ? 2 : 1;
    return OK;
}

Error instantiate(void** made, void* handle) {
    std::lock_guard const lock(mutex);
    Graph* const graph = live<Graph>(graphs, handle);
    if (!graph) return INVALID_HANDLE;
    *made = new Graph(*graph);
    graphs.insert(*made);
    return OK;
}

Error launch_graph(void* handle, void* stream_handle) {
    Graph graph;
    std::string where;
    {
        std::lock_guard const lock(mutex);
        Graph* const found = live<Graph>(graphs, handle);
        if (!found) return INVALID_HANDLE;
        graph = *found;
    }
    auto const fields =
        "\"kind\": \"graph\", \"nodes\": " + std::to_string(graph.nodes->size()) +
        in_graph("graph", graph);
    return submit(stream_handle, fields, [graph] {
        for (Node const& node : *graph.nodes) {
            note(node.fields + in_graph("graph", graph));
            if (!node.work) continue;
            if (Error const error = node.work()) return error;
        }
        return OK;
    });
}

Error destroy_graph(void* handle) {
    std::lock_guard const lock(mutex);
    Graph* const graph = live<Graph>(graphs, handle);
    if (!graph) return INVALID_HANDLE;
    graphs.erase(handle);
    delete graph;
    return OK;
}

Error count_nodes(void* handle, size_t* count) {
    std::lock_guard const lock(mutex);
    Graph* const graph = live<Graph>(graphs, handle);
    if (!graph) return INVALID_HANDLE;
    *count = graph->nodes->size();
    return OK;
}

}  // namespace fake
