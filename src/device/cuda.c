/*
 * cuda.c - an NVIDIA GPU of compute capability 9.0 as a device: memory, one stream, copies.
 *
 * The runtime is linked statically and finds the driver by itself, so a build with CUDA starts on a machine
 * without one. A device opens only when its op table is complete: a forward pass can then call every entry.
 */
#include "base/alloc.h"
#include "base/status.h"
#include "device/device.h"
#include "ops/moe/moe_sm90.h"

#include <cuda_runtime.h>
#include <stdio.h>

typedef struct cuda_device {
    mb_device base;
    int ordinal;
    char name[256];
} cuda_device;

static const mb_ops sm90_ops = {
    .name = "sm90",
    .moe_router_gemm_workspace = mb_moe_router_gemm_sm90_workspace,
    .moe_router_gemm = mb_moe_router_gemm_sm90,
    .moe_route = mb_moe_route_sm90,
    .moe_plan_workspace = mb_moe_plan_sm90_workspace,
    .moe_plan = mb_moe_plan_sm90,
    .grouped_gemm_workspace = mb_grouped_gemm_sm90_workspace,
    .grouped_gemm = mb_grouped_gemm_sm90,
    .moe_reduce = mb_moe_reduce_sm90,
    .moe_forward_workspace = mb_moe_forward_sm90_workspace,
    .moe_forward = mb_moe_forward_sm90,
};

static mb_status check(cudaError_t error, const char *call) {
    if (error == cudaSuccess)
        return MB_OK;
    mb_status status = error == cudaErrorMemoryAllocation ? MB_ERR_MEMORY : MB_ERR_DEVICE;
    return mb_fail(status, "cuda: %s: %s (%s)", call, cudaGetErrorString(error), cudaGetErrorName(error));
}

/* The runtime keeps the current device per thread, so every entry makes its own current first. */
static mb_status make_current(mb_device *device) {
    return check(cudaSetDevice(((cuda_device *)device)->ordinal), "cudaSetDevice");
}

static mb_status cuda_allocate(mb_device *device, size_t n_bytes, void **pointer) {
    *pointer = NULL;
    MB_TRY(make_current(device));
    mb_status status = check(cudaMalloc(pointer, n_bytes ? n_bytes : 1), "cudaMalloc");
    return status == MB_OK ? MB_OK : mb_fail_context(status, "%zu bytes", n_bytes);
}

static void cuda_free(mb_device *device, void *pointer) {
    if (pointer && make_current(device) == MB_OK)
        check(cudaFree(pointer), "cudaFree");
}

static mb_status cuda_allocate_pinned(mb_device *device, size_t n_bytes, void **pointer) {
    *pointer = NULL;
    MB_TRY(make_current(device));
    mb_status status = check(cudaMallocHost(pointer, n_bytes ? n_bytes : 1), "cudaMallocHost");
    return status == MB_OK ? MB_OK : mb_fail_context(status, "%zu bytes", n_bytes);
}

static void cuda_free_pinned(mb_device *device, void *pointer) {
    if (pointer && make_current(device) == MB_OK)
        check(cudaFreeHost(pointer), "cudaFreeHost");
}

static mb_status cuda_upload(mb_device *device, void *to, const void *from_host, size_t n_bytes) {
    MB_TRY(make_current(device));
    return check(
        cudaMemcpyAsync(to, from_host, n_bytes, cudaMemcpyHostToDevice, (cudaStream_t)device->stream),
        "cudaMemcpyAsync to the device");
}

static mb_status cuda_download(mb_device *device, void *to_host, const void *from, size_t n_bytes) {
    MB_TRY(make_current(device));
    return check(
        cudaMemcpyAsync(to_host, from, n_bytes, cudaMemcpyDeviceToHost, (cudaStream_t)device->stream),
        "cudaMemcpyAsync to the host");
}

static mb_status cuda_synchronize(mb_device *device) {
    MB_TRY(make_current(device));
    return check(cudaStreamSynchronize((cudaStream_t)device->stream), "cudaStreamSynchronize");
}

static mb_status cuda_memory(mb_device *device, uint64_t *total_bytes, uint64_t *free_bytes) {
    size_t total, left;
    MB_TRY(make_current(device));
    MB_TRY(check(cudaMemGetInfo(&left, &total), "cudaMemGetInfo"));
    *total_bytes = total;
    *free_bytes = left;
    return MB_OK;
}

static void cuda_close(mb_device *device) {
    if (make_current(device) == MB_OK)
        check(cudaStreamDestroy((cudaStream_t)device->stream), "cudaStreamDestroy");
    mb_free(device);
}

static mb_status wrong_card(const char *name, int major, int minor) {
    return mb_fail(MB_ERR_UNSUPPORTED,
                   "cuda: %s has compute capability %d.%d, the kernels need 9.0 (H100, H200); use the CPU "
                   "(--device cpu)",
                   name, major, minor);
}

/* There is such a card, and it is one that the kernels are made for. */
static mb_status examine_card(int ordinal, struct cudaDeviceProp *properties) {
    int n_cards = 0;
    cudaError_t error = cudaGetDeviceCount(&n_cards);
    if (error != cudaSuccess)
        return mb_fail(MB_ERR_NOT_FOUND, "cuda: no usable GPU or driver: %s; use --device cpu",
                       cudaGetErrorString(error));
    if (ordinal < 0 || ordinal >= n_cards)
        return mb_fail(MB_ERR_NOT_FOUND, "cuda: there is no GPU %d; this machine has %d", ordinal, n_cards);
    MB_TRY(check(cudaGetDeviceProperties(properties, ordinal), "cudaGetDeviceProperties"));
    if (properties->major != 9 || properties->minor != 0)
        return wrong_card(properties->name, properties->major, properties->minor);
    return MB_OK;
}

mb_status mb_device_open_cuda(int ordinal, mb_device **device) {
    *device = NULL;
    struct cudaDeviceProp properties;
    MB_TRY(examine_card(ordinal, &properties));
    char names[512];
    if (mb_ops_missing(&sm90_ops, names, sizeof names) > 0)
        return mb_fail(MB_ERR_UNSUPPORTED, "cuda: this build has no kernel for %s; use --device cpu", names);

    cuda_device *cuda = mb_calloc(1, sizeof *cuda);
    if (!cuda)
        return mb_fail(MB_ERR_MEMORY, "cuda: %zu bytes could not be allocated", sizeof *cuda);
    cudaStream_t stream = NULL;
    mb_status status = check(cudaSetDevice(ordinal), "cudaSetDevice");
    if (status == MB_OK)
        status = check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cudaStreamCreate");
    if (status != MB_OK) {
        mb_free(cuda);
        return status;
    }
    cuda->ordinal = ordinal;
    snprintf(cuda->name, sizeof cuda->name, "%s", properties.name);
    cuda->base = (mb_device){
        .name = cuda->name,
        .ops = &sm90_ops,
        .stream = stream,
        .allocate = cuda_allocate,
        .free = cuda_free,
        .allocate_pinned = cuda_allocate_pinned,
        .free_pinned = cuda_free_pinned,
        .upload = cuda_upload,
        .download = cuda_download,
        .synchronize = cuda_synchronize,
        .memory = cuda_memory,
        .close = cuda_close,
    };
    *device = &cuda->base;
    return MB_OK;
}

/* On a machine without GPU or driver every call of the runtime fails; the caller's own cudaGetLastError is
 * left as it was. Where there is a GPU, a failure is the GPU's: memory of a GPU must not be taken for the
 * CPU's. */
static mb_status find_memory(const void *pointer, struct cudaPointerAttributes *attributes) {
    cudaError_t before = cudaPeekAtLastError();
    cudaError_t error = cudaPointerGetAttributes(attributes, pointer);
    if (error == cudaSuccess)
        return MB_OK;
    int n_cards = 0;
    int no_gpu = cudaGetDeviceCount(&n_cards) != cudaSuccess || n_cards == 0;
    if (before == cudaSuccess)
        cudaGetLastError();
    if (!no_gpu)
        return check(error, "cudaPointerGetAttributes");
    attributes->type = cudaMemoryTypeUnregistered;
    return MB_OK;
}

mb_status mb_device_cuda_enter(const void *pointer, const mb_ops **ops, int *former) {
    *ops = NULL;
    struct cudaPointerAttributes attributes;
    MB_TRY(find_memory(pointer, &attributes));
    if (attributes.type != cudaMemoryTypeDevice && attributes.type != cudaMemoryTypeManaged)
        return MB_OK;
    int major, minor;
    MB_TRY(check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, attributes.device),
                 "cudaDeviceGetAttribute"));
    MB_TRY(check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, attributes.device),
                 "cudaDeviceGetAttribute"));
    if (major != 9 || minor != 0)
        return wrong_card("the memory's GPU", major, minor);
    MB_TRY(check(cudaGetDevice(former), "cudaGetDevice"));
    if (*former != attributes.device)
        MB_TRY(check(cudaSetDevice(attributes.device), "cudaSetDevice"));
    *ops = &sm90_ops;
    return MB_OK;
}

void mb_device_cuda_leave(int former) {
    int current;
    if (check(cudaGetDevice(&current), "cudaGetDevice") == MB_OK && current != former)
        check(cudaSetDevice(former), "cudaSetDevice");
}
