// libcublas.so.13 and libcublasLt.so.13: products are written down with their sizes, not computed.
#include <cstring>
#include <set>

#include "gpu.h"

using namespace fake;

namespace {

struct Handle {
    void* stream = nullptr;
    int mode = 0;
};

std::string field(char const* name, int64_t value) {
    return std::string(", \"") + name + "\": " + std::to_string(value);
}

std::string sizes(int64_t m, int64_t n, int64_t k, int64_t batch) {
    return field("m", m) + field("n", n) + field("k", k) + field("batch", batch);
}

int product(void* handle, char const* name, std::string const& more = "") {
    auto const fields = std::string("\"kind\": \"blas\", \"name\": \"") + name + "\"" + more;
    return submit(static_cast<Handle*>(handle)->stream, fields, nullptr);
}

struct Layout {
    int type;
    uint64_t rows, columns;
    int32_t batch = 1;
};

struct Description {
    int32_t transpose_a = 0, transpose_b = 0;
};

}  // namespace

API int cublasCreate_v2(void** handle) { return *handle = new Handle, OK; }
API int cublasDestroy_v2(void* handle) { return delete static_cast<Handle*>(handle), OK; }
API int cublasSetStream_v2(void* handle, void* stream) {
    return static_cast<Handle*>(handle)->stream = stream, OK;
}
API int cublasSetMathMode(void* handle, int mode) {
    return static_cast<Handle*>(handle)->mode = mode, OK;
}
API int cublasGetMathMode(void* handle, int* mode) {
    return *mode = static_cast<Handle*>(handle)->mode, OK;
}
API char const* cublasGetStatusName(int status) {
    return status ? "CUBLAS_STATUS_EXECUTION_FAILED" : "CUBLAS_STATUS_SUCCESS";
}
API char const* cublasGetStatusString(int status) {
    return status ? "the function failed to launch on the GPU" : "success";
}

API int cublasGemmEx(void* handle, int, int, int m, int n, int k) {
    return product(handle, "cublasGemmEx", sizes(m, n, k, 1));
}
API int cublasSgemm_v2(void* handle, int, int, int m, int n, int k) {
    return product(handle, "cublasSgemm", sizes(m, n, k, 1));
}
API int cublasDgemm_v2(void* handle, int, int, int m, int n, int k) {
    return product(handle, "cublasDgemm", sizes(m, n, k, 1));
}
API int cublasGemmBatchedEx(void* handle, int, int, int m, int n, int k, void*, void*, int, int,
                            void*, int, int, void*, void*, int, int, int batch) {
    return product(handle, "cublasGemmBatchedEx", sizes(m, n, k, batch));
}
API int cublasGemmStridedBatchedEx(void* handle, int, int, int m, int n, int k, void*, void*, int,
                                   int, long long, void*, int, int, long long, void*, void*, int,
                                   int, long long, int batch) {
    return product(handle, "cublasGemmStridedBatchedEx", sizes(m, n, k, batch));
}
API int cublasSgemmStridedBatched(void* handle, int, int, int m, int n, int k, void*, void*, int,
                                  long long, void*, int, long long, void*, void*, int, long long,
                                  int batch) {
    return product(handle, "cublasSgemmStridedBatched", sizes(m, n, k, batch));
}

// Those whose sizes nobody has asked for.
#define NAMED(name) \
    API int name(void* handle) { return product(handle, #name); }
NAMED(cublasDgeam)
NAMED(cublasDgemmBatched)
NAMED(cublasDgemmStridedBatched)
NAMED(cublasDgetrfBatched)
NAMED(cublasDgetriBatched)
NAMED(cublasScopy_v2)
NAMED(cublasSgeam)
NAMED(cublasSgemmBatched)
NAMED(cublasSgetrfBatched)
NAMED(cublasSgetriBatched)
NAMED(cublasSscal_v2)

// --- cublasLt: descriptions are made first, and given with each product.
API int cublasLtCreate(void** handle) { return cublasCreate_v2(handle); }
API int cublasLtDestroy(void* handle) { return cublasDestroy_v2(handle); }
API int cublasLtMatrixLayoutCreate(void** made, int type, uint64_t rows, uint64_t columns) {
    return *made = new Layout{type, rows, columns}, OK;
}
API int cublasLtMatrixLayoutDestroy(void* layout) {
    return delete static_cast<Layout*>(layout), OK;
}
API int cublasLtMatrixLayoutSetAttribute(void* layout, int attribute, void const* value) {
    // CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT
    if (attribute == 5) std::memcpy(&static_cast<Layout*>(layout)->batch, value, sizeof(int32_t));
    return OK;
}
API int cublasLtMatmulDescCreate(void** made) { return *made = new Description, OK; }
API int cublasLtMatmulDescDestroy(void* made) {
    return delete static_cast<Description*>(made), OK;
}
API int cublasLtMatmulDescSetAttribute(void* made, int attribute, void const* value) {
    // CUBLASLT_MATMUL_DESC_TRANSA
    if (attribute == 3)
        std::memcpy(&static_cast<Description*>(made)->transpose_a, value, sizeof(int32_t));
    return OK;
}
API int cublasLtMatmul(void*, void* described, void const*, void const*, void* a, void const*,
                       void*, void const*, void const*, void*, void*, void* d, void const*, void*,
                       size_t, void* stream) {
    auto const out = static_cast<Layout*>(d), first = static_cast<Layout*>(a);
    bool const transposed = static_cast<Description*>(described)->transpose_a != 0;
    auto const k = static_cast<int64_t>(transposed ? first->rows : first->columns);
    auto const m = static_cast<int64_t>(out->rows), n = static_cast<int64_t>(out->columns);
    Handle on{stream};
    return product(&on, "cublasLtMatmul", sizes(m, n, k, out->batch));
}
API int cublasLtMatrixTransform(void*, void*, void const*, void const*, void*, void const*,
                                void const*, void*, void*, void*, void* stream) {
    Handle on{stream};
    return product(&on, "cublasLtMatrixTransform");
}
// One algorithm that needs no workspace; cublasLtMatmulHeuristicResult_t has 96 bytes.
API int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int asked,
                                       void* results, int* found) {
    *found = asked > 0;
    if (asked > 0) std::memset(results, 0, 96);
    return OK;
}

// What is set up of what nothing depends on here.
#define MADE(name)                                \
    API int name##Create(void** made) {           \
        return *made = new Handle, OK;            \
    }                                             \
    API int name##Destroy(void* made) {           \
        return delete static_cast<Handle*>(made), OK; \
    }
MADE(cublasLtMatmulPreference)
MADE(cublasLtMatrixTransformDesc)
API int cublasLtMatmulPreferenceSetAttribute() { return OK; }
API int cublasLtMatmulAlgoInit() { return OK; }
API int cublasLtMatmulAlgoConfigSetAttribute() { return OK; }
