/*
 * cuda.c - an NVIDIA GPU of compute capability 9.0 as a device: memory, streams, copies, events, graphs.
 *
 * The runtime is linked statically and finds the driver by itself, so a build with CUDA starts on a machine
 * without one. mb_stream is a cudaStream_t, mb_event a cudaEvent_t, mb_graph a cudaGraphExec_t.
 */
#include "base/alloc.h"
#include "base/status.h"
#include "device/device.h"
#include "device/nvml.h"
#include "ops/moe/backward/backward_sm90.h"
#include "ops/moe/backward/router_sm90.h"
#include "ops/moe/moe_sm90.h"

#include <cuda_runtime.h>
#include <stdio.h>

typedef struct cuda_device {
    mb_device base;
    int ordinal;
    char name[256];
    mb_nvml *nvml; /* NULL: not asked for yet, or not there */
} cuda_device;

static const mb_ops sm90_ops = {
    .name = "sm90",
    .wants_x8 = mb_gemm_sm90_wants_x8,
    .moe_block = mb_moe_block_sm90,
    .embed = mb_embed_sm90,
    .rms_norm = mb_rms_norm_sm90,
    .gemm_workspace = mb_gemm_sm90_workspace,
    .gemm = mb_gemm_sm90,
    .qk_norm_rope_store = mb_qk_norm_rope_store_sm90,
    .attention_workspace = mb_attention_sm90_workspace,
    .attention = mb_attention_sm90,
    .decode_attention_workspace = mb_decode_attention_sm90_workspace,
    .decode_attention = mb_decode_attention_sm90,
    .gated_activation = mb_gated_activation_sm90,
    .moe_router_gemm_workspace = mb_moe_router_gemm_sm90_workspace,
    .moe_router_gemm = mb_moe_router_gemm_sm90,
    .moe_route = mb_moe_route_sm90,
    .moe_plan_workspace = mb_moe_plan_sm90_workspace,
    .moe_plan = mb_moe_plan_sm90,
    .grouped_gemm_workspace = mb_grouped_gemm_sm90_workspace,
    .grouped_gemm = mb_grouped_gemm_sm90,
    .moe_experts_workspace = mb_moe_experts_sm90_workspace,
    .moe_experts = mb_moe_experts_sm90,
    .moe_reduce = mb_moe_reduce_sm90,
    .moe_forward_workspace = mb_moe_forward_sm90_workspace,
    .moe_forward = mb_moe_forward_sm90,
    .moe_backward_workspace = mb_moe_backward_sm90_workspace,
    .moe_backward = mb_moe_backward_sm90,
    .moe_router_losses_workspace = mb_moe_router_losses_sm90_workspace,
    .moe_router_losses = mb_moe_router_losses_sm90,
    .moe_route_backward = mb_moe_route_backward_sm90,
    .moe_token_rounding_workspace = mb_moe_token_rounding_sm90_workspace,
    .moe_token_rounding = mb_moe_token_rounding_sm90,
    .count_tokens = mb_count_tokens_sm90,
    .sample_workspace = mb_sample_sm90_workspace,
    .sample = mb_sample_sm90,
    .log_softmax = mb_log_softmax_sm90,
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

/* Returns from the calling function with what the call gave. `name` stands in the sentence of a failure. */
#define RETURN_CALL(device, name, expression) \
    do {                                      \
        MB_TRY(make_current(device));         \
        return check((expression), name);     \
    } while (0)

/* For functions that free something and return nothing: a failure here must not replace the sentence of an
 * earlier one. */
static int is_current(mb_device *device) {
    return cudaSetDevice(((cuda_device *)device)->ordinal) == cudaSuccess;
}

/* ---- Memory ---------------------------------------------------------------------------------------- */

static mb_status cuda_allocate(mb_device *device, size_t n_bytes, void **pointer) {
    *pointer = NULL;
    MB_TRY(make_current(device));
    mb_status status = check(cudaMalloc(pointer, n_bytes ? n_bytes : 1), "cudaMalloc");
    return status == MB_OK ? MB_OK : mb_fail_context(status, "%zu bytes", n_bytes);
}

static void cuda_free(mb_device *device, void *pointer) {
    if (pointer && is_current(device))
        cudaFree(pointer);
}

static mb_status cuda_allocate_pinned(mb_device *device, size_t n_bytes, void **pointer) {
    *pointer = NULL;
    MB_TRY(make_current(device));
    mb_status status = check(cudaMallocHost(pointer, n_bytes ? n_bytes : 1), "cudaMallocHost");
    return status == MB_OK ? MB_OK : mb_fail_context(status, "%zu bytes", n_bytes);
}

static void cuda_free_pinned(mb_device *device, void *pointer) {
    if (pointer && is_current(device))
        cudaFreeHost(pointer);
}

static mb_status cuda_memory(mb_device *device, uint64_t *total_bytes, uint64_t *free_bytes) {
    size_t total, left;
    MB_TRY(make_current(device));
    MB_TRY(check(cudaMemGetInfo(&left, &total), "cudaMemGetInfo"));
    *total_bytes = total;
    *free_bytes = left;
    return MB_OK;
}

static void cuda_state(mb_device *device, mb_device_state *state) {
    cuda_device *cuda = (cuda_device *)device;
    char pci_bus_id[32];
    if (!cuda->nvml && cudaDeviceGetPCIBusId(pci_bus_id, sizeof pci_bus_id, cuda->ordinal) == cudaSuccess)
        cuda->nvml = mb_nvml_open(pci_bus_id);
    mb_nvml_read(cuda->nvml, state);
}

/* ---- Streams --------------------------------------------------------------------------------------- */

static mb_status cuda_stream_open(mb_device *device, mb_stream *stream) {
    *stream = NULL;
    RETURN_CALL(device, "cudaStreamCreate",
                cudaStreamCreateWithFlags((cudaStream_t *)stream, cudaStreamNonBlocking));
}

static void cuda_stream_close(mb_device *device, mb_stream stream) {
    if (stream && is_current(device))
        cudaStreamDestroy((cudaStream_t)stream);
}

static mb_status cuda_synchronize(mb_device *device, mb_stream stream) {
    RETURN_CALL(device, "cudaStreamSynchronize", cudaStreamSynchronize((cudaStream_t)stream));
}

static mb_status cuda_upload(mb_device *device, void *to, const void *from_host, size_t n_bytes,
                             mb_stream stream) {
    RETURN_CALL(device, "cudaMemcpyAsync to the device",
                cudaMemcpyAsync(to, from_host, n_bytes, cudaMemcpyHostToDevice, (cudaStream_t)stream));
}

static mb_status cuda_download(mb_device *device, void *to_host, const void *from, size_t n_bytes,
                               mb_stream stream) {
    RETURN_CALL(device, "cudaMemcpyAsync to the host",
                cudaMemcpyAsync(to_host, from, n_bytes, cudaMemcpyDeviceToHost, (cudaStream_t)stream));
}

/* The block is uploaded once. Then all that has been written is copied to the memory that follows, which
 * doubles it each time. */
static mb_status cuda_fill(mb_device *device, void *to, size_t n_bytes, const void *block, size_t block_bytes,
                           mb_stream stream) {
    if (block_bytes == 1)
        RETURN_CALL(device, "cudaMemsetAsync",
                    cudaMemsetAsync(to, *(const unsigned char *)block, n_bytes, (cudaStream_t)stream));
    size_t done = n_bytes < block_bytes ? n_bytes : block_bytes;
    MB_TRY(cuda_upload(device, to, block, done, stream));
    while (done < n_bytes) {
        size_t next = n_bytes - done < done ? n_bytes - done : done;
        MB_TRY(check(
            cudaMemcpyAsync((char *)to + done, to, next, cudaMemcpyDeviceToDevice, (cudaStream_t)stream),
            "cudaMemcpyAsync on the device"));
        done += next;
    }
    return MB_OK;
}

/* ---- Events ---------------------------------------------------------------------------------------- */

static mb_status cuda_event_open(mb_device *device, int is_timed, mb_event **event) {
    *event = NULL;
    RETURN_CALL(
        device, "cudaEventCreate",
        cudaEventCreateWithFlags((cudaEvent_t *)event, is_timed ? cudaEventDefault : cudaEventDisableTiming));
}

static void cuda_event_close(mb_device *device, mb_event *event) {
    if (event && is_current(device))
        cudaEventDestroy((cudaEvent_t)event);
}

static mb_status cuda_event_record(mb_device *device, mb_event *event, mb_stream stream) {
    RETURN_CALL(device, "cudaEventRecord", cudaEventRecord((cudaEvent_t)event, (cudaStream_t)stream));
}

/* While a stream is captured, a plain record is no more than a place that another captured stream can wait
 * for. With the external flag the record is a node of the graph. */
static mb_status cuda_event_mark(mb_device *device, mb_event *event, mb_stream stream) {
    enum cudaStreamCaptureStatus capture;
    MB_TRY(make_current(device));
    MB_TRY(check(cudaStreamIsCapturing((cudaStream_t)stream, &capture), "cudaStreamIsCapturing"));
    unsigned flags =
        capture == cudaStreamCaptureStatusNone ? cudaEventRecordDefault : cudaEventRecordExternal;
    return check(cudaEventRecordWithFlags((cudaEvent_t)event, (cudaStream_t)stream, flags),
                 "cudaEventRecordWithFlags");
}

static mb_status cuda_event_wait(mb_device *device, mb_event *event, mb_stream stream) {
    RETURN_CALL(device, "cudaStreamWaitEvent",
                cudaStreamWaitEvent((cudaStream_t)stream, (cudaEvent_t)event, 0));
}

static mb_status cuda_event_synchronize(mb_device *device, mb_event *event) {
    RETURN_CALL(device, "cudaEventSynchronize", cudaEventSynchronize((cudaEvent_t)event));
}

static mb_status cuda_event_query(mb_device *device, mb_event *event, int *was_reached) {
    *was_reached = 0;
    MB_TRY(make_current(device));
    cudaError_t error = cudaEventQuery((cudaEvent_t)event);
    *was_reached = error == cudaSuccess;
    return error == cudaErrorNotReady ? MB_OK : check(error, "cudaEventQuery");
}

static mb_status cuda_event_elapsed(mb_device *device, mb_event *from, mb_event *to, double *us) {
    float ms = 0;
    MB_TRY(make_current(device));
    MB_TRY(check(cudaEventElapsedTime(&ms, (cudaEvent_t)from, (cudaEvent_t)to), "cudaEventElapsedTime"));
    *us = (double)ms * 1e3;
    return MB_OK;
}

/* ---- Graphs ---------------------------------------------------------------------------------------- */

/* ThreadLocal: other threads may allocate and synchronise while this one captures. */
static mb_status cuda_capture_begin(mb_device *device, mb_stream stream) {
    RETURN_CALL(device, "cudaStreamBeginCapture",
                cudaStreamBeginCapture((cudaStream_t)stream, cudaStreamCaptureModeThreadLocal));
}

static mb_status cuda_capture_end(mb_device *device, mb_stream stream, mb_graph **graph) {
    cudaGraph_t captured = NULL;
    *graph = NULL;
    MB_TRY(make_current(device));
    mb_status status = check(cudaStreamEndCapture((cudaStream_t)stream, &captured), "cudaStreamEndCapture");
    if (status == MB_OK)
        status = check(cudaGraphInstantiate((cudaGraphExec_t *)graph, captured, 0), "cudaGraphInstantiate");
    if (captured)
        cudaGraphDestroy(captured);
    return status;
}

static mb_status cuda_replay(mb_device *device, mb_graph *graph, mb_stream stream) {
    RETURN_CALL(device, "cudaGraphLaunch", cudaGraphLaunch((cudaGraphExec_t)graph, (cudaStream_t)stream));
}

static void cuda_graph_close(mb_device *device, mb_graph *graph) {
    if (graph && is_current(device))
        cudaGraphExecDestroy((cudaGraphExec_t)graph);
}

static void cuda_close(mb_device *device) {
    mb_nvml_close(((cuda_device *)device)->nvml);
    mb_free(device);
}

/* ---- Opening --------------------------------------------------------------------------------------- */

static mb_status wrong_card(const char *name, int major, int minor) {
    return mb_fail(MB_ERR_UNSUPPORTED,
                   "cuda: %s has compute capability %d.%d, the kernels need 9.0 (H100, H200); use the CPU "
                   "(--device cpu)",
                   name, major, minor);
}

/* The runtime gives the same error without a driver and with one that is too old; the driver's version
 * tells them apart. */
static mb_status no_cards(cudaError_t error) {
    int driver = 0, runtime = 0;
    if (error == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) == cudaSuccess && driver > 0 &&
        cudaRuntimeGetVersion(&runtime) == cudaSuccess)
        return mb_fail(
            MB_ERR_UNSUPPORTED,
            "cuda: the driver supports CUDA %d.%d, this build needs %d.%d; update the driver, or use "
            "--device cpu",
            driver / 1000, driver % 1000 / 10, runtime / 1000, runtime % 1000 / 10);
    int is_absent = error == cudaErrorInsufficientDriver || error == cudaErrorNoDevice;
    return mb_fail(is_absent ? MB_ERR_NOT_FOUND : MB_ERR_DEVICE,
                   "cuda: no usable GPU or driver: %s; use --device cpu", cudaGetErrorString(error));
}

/* There is such a card, and it is one that the kernels are made for. */
static mb_status examine_card(int ordinal, struct cudaDeviceProp *properties) {
    int n_cards = 0;
    cudaError_t error = cudaGetDeviceCount(&n_cards);
    if (error != cudaSuccess)
        return no_cards(error);
    if (ordinal < 0 || ordinal >= n_cards)
        return mb_fail(MB_ERR_NOT_FOUND, "cuda: there is no GPU %d; this machine has %d", ordinal, n_cards);
    MB_TRY(check(cudaGetDeviceProperties(properties, ordinal), "cudaGetDeviceProperties"));
    if (properties->major != 9 || properties->minor != 0)
        return wrong_card(properties->name, properties->major, properties->minor);
    return MB_OK;
}

/* The memory's nominal rate (clock times width of the bus) times the share of it that reads of 2 GiB reach:
 * 3.0 of an H100's 3.35 TB/s. 0 when the driver does not know the nominal rate. */
static double read_rate(int ordinal) {
    const double share = 0.895;
    int kilohertz = 0, bus_bits = 0;
    if (cudaDeviceGetAttribute(&kilohertz, cudaDevAttrMemoryClockRate, ordinal) != cudaSuccess ||
        cudaDeviceGetAttribute(&bus_bits, cudaDevAttrGlobalMemoryBusWidth, ordinal) != cudaSuccess)
        return 0;
    return share * 2 * 1e3 * kilohertz * bus_bits / 8; /* double data rate */
}

mb_status mb_device_open_cuda(int ordinal, mb_device **device) {
    *device = NULL;
    struct cudaDeviceProp properties;
    MB_TRY(examine_card(ordinal, &properties));
    MB_TRY(check(cudaSetDevice(ordinal), "cudaSetDevice"));
    cuda_device *cuda = mb_calloc(1, sizeof *cuda);
    if (!cuda)
        return mb_fail(MB_ERR_MEMORY, "cuda: %zu bytes could not be allocated", sizeof *cuda);
    cuda->ordinal = ordinal;
    snprintf(cuda->name, sizeof cuda->name, "%s", properties.name);
    cuda->base = (mb_device){
        .name = cuda->name,
        .ops = &sm90_ops,
        .n_sms = properties.multiProcessorCount,
        .bytes_per_second = read_rate(ordinal),
        .allocate = cuda_allocate,
        .free = cuda_free,
        .allocate_pinned = cuda_allocate_pinned,
        .free_pinned = cuda_free_pinned,
        .memory = cuda_memory,
        .state = cuda_state,
        .stream_open = cuda_stream_open,
        .stream_close = cuda_stream_close,
        .synchronize = cuda_synchronize,
        .upload = cuda_upload,
        .download = cuda_download,
        .fill = cuda_fill,
        .event_open = cuda_event_open,
        .event_close = cuda_event_close,
        .event_record = cuda_event_record,
        .event_mark = cuda_event_mark,
        .event_wait = cuda_event_wait,
        .event_synchronize = cuda_event_synchronize,
        .event_query = cuda_event_query,
        .event_elapsed = cuda_event_elapsed,
        .capture_begin = cuda_capture_begin,
        .capture_end = cuda_capture_end,
        .replay = cuda_replay,
        .graph_close = cuda_graph_close,
        .close = cuda_close,
    };
    *device = &cuda->base;
    return MB_OK;
}

/* ---- Where memory is ------------------------------------------------------------------------------- */

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
