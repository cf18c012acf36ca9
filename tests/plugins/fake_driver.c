/* A libcuda.so.1 that runs nothing: it writes down what it is asked for, one line each. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static char record[1 << 20];
static int device_sm = 89;
static int image_bytes = 0;

/* For the test: which GPU to be, how long an image is, and what was asked for. */
void fake_device(int sm, int bytes) { device_sm = sm; image_bytes = bytes; }
char const* fake_record(void) { return record; }

#define WRITE(...) \
    snprintf(record + strlen(record), sizeof record - strlen(record), __VA_ARGS__)

static void write_hex(void const* start, size_t size) {
    for (size_t i = 0; i < size; ++i) WRITE("%02x", ((unsigned char const*)start)[i]);
    WRITE("\n");
}

int cuGetErrorName(int result, char const** name) {
    (void)result;
    *name = "CUDA_ERROR_NOT_FOUND";
    return 0;
}

int cuCtxGetCurrent(void** context) { *context = (void*)0xc0; return 0; }
int cuCtxPushCurrent_v2(void* context) { (void)context; return 0; }
int cuCtxPopCurrent_v2(void** context) { *context = (void*)0xc0; return 0; }
int cuCtxGetDevice(int* device) { *device = 0; return 0; }

int cuDeviceGetAttribute(int* value, int attribute, int device) {
    (void)device;
    *value = attribute == 75 ? device_sm / 10 : device_sm % 10;
    return 0;
}

int cuModuleLoadData(void** module, void const* image) {
    *module = (void*)0x3000;
    WRITE("load ");
    write_hex(image, image_bytes);
    return 0;
}

int cuModuleUnload(void* module) { (void)module; WRITE("unload\n"); return 0; }

int cuModuleGetFunction(void** function, void* module, char const* name) {
    (void)module;
    *function = (void*)0x4000;
    WRITE("function %s\n", name);
    return strcmp(name, "missing") ? 0 : 500;
}

int cuFuncSetAttribute(void* function, int attribute, int value) {
    (void)function;
    WRITE("attribute %d %d\n", attribute, value);
    return 0;
}

int cuMemcpyDtoDAsync_v2(uint64_t to, uint64_t from, size_t bytes, void* stream) {
    WRITE("copy %llx %llx %zu %zx\n", (unsigned long long)to, (unsigned long long)from, bytes,
          (size_t)stream);
    return 0;
}

int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned threads,
                   unsigned threads_y, unsigned threads_z, unsigned shared, void* stream,
                   void** parameters, void** extra) {
    (void)function;
    (void)parameters;
    WRITE("launch %u %u %u %u %u %u %u %zx ", x, y, z, threads, threads_y, threads_z, shared,
          (size_t)stream);
    write_hex(extra[1], *(size_t*)extra[3]);
    return 0;
}
