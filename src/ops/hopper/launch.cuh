/* launch.cuh - what a kernel says about its own registers and about the kernels before and after it. */
#ifndef MB_OPS_HOPPER_LAUNCH_CUH
#define MB_OPS_HOPPER_LAUNCH_CUH

#include "base/status.h"

#include <cuda_runtime.h>
#include <stdint.h>

/* All warps of a warpgroup together: give registers back, or take them. */
template <int n_registers> static __device__ __forceinline__ void mb_setmaxnreg_decrease(void) {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n_registers));
}
template <int n_registers> static __device__ __forceinline__ void mb_setmaxnreg_increase(void) {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n_registers));
}

/* threadIdx.x, read again. What is computed from it after a long loop is then not computed before the loop
 * and kept in registers. */
static __device__ __forceinline__ uint32_t mb_thread_index_again(void) {
    uint32_t index;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
    return index;
}

/* The kernels before this one in the stream have finished and their writes are visible. */
static __device__ __forceinline__ void mb_grid_wait(void) {
    asm volatile("griddepcontrol.wait;" ::: "memory");
}

/* The next kernel of the stream may start as soon as all CTAs have said so (it then waits in its own
 * mb_grid_wait until this one has finished). */
static __device__ __forceinline__ void mb_grid_launch_dependents(void) {
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}

/* Host side: the SMs of the current device. Without one it is what an H100 has: for sizes that a test
 * without a GPU asks for. */
static inline int mb_n_processors(void) {
    int device = 0, n_processors = 132;
    if (cudaGetDevice(&device) == cudaSuccess)
        cudaDeviceGetAttribute(&n_processors, cudaDevAttrMultiProcessorCount, device);
    return n_processors;
}

/* Host side: a launch that may start before the kernel in front of it has finished. The kernel must call
 * mb_grid_wait before it reads or writes anything that others touch. attributes: room for two. */
static inline void mb_launch_config(cudaLaunchConfig_t *config, cudaLaunchAttribute *attributes, dim3 grid,
                                    unsigned n_threads, size_t shared_bytes, void *stream) {
    attributes->id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes->val.programmaticStreamSerializationAllowed = 1;
    *config = cudaLaunchConfig_t();
    config->gridDim = grid;
    config->blockDim = dim3(n_threads);
    config->dynamicSmemBytes = shared_bytes;
    config->stream = (cudaStream_t)stream;
    config->attrs = attributes;
    config->numAttrs = 1;
}

/* Puts CTAs with consecutive numbers into clusters; call after mb_launch_config. */
static inline void mb_launch_clusters(cudaLaunchConfig_t *config, unsigned n_ctas) {
    cudaLaunchAttribute *attribute = &config->attrs[config->numAttrs++];
    attribute->id = cudaLaunchAttributeClusterDimension;
    attribute->val.clusterDim.x = n_ctas;
    attribute->val.clusterDim.y = attribute->val.clusterDim.z = 1;
}

/* Dynamic shared memory above 48 KB is granted to a kernel once asked for. */
template <class arguments>
static inline mb_status mb_launch_shared_bytes(const char *name, void (*kernel)(arguments), size_t n_bytes) {
    const cudaError_t error =
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)n_bytes);
    return error == cudaSuccess ? MB_OK
                                : mb_fail(MB_ERR_DEVICE, "%s: %zu bytes of shared memory were refused: %s",
                                          name, n_bytes, cudaGetErrorString(error));
}

/* Launches a kernel that takes one struct, as mb_launch_config says. `name` starts the error sentence. */
template <class arguments>
static inline mb_status mb_launch(const char *name, void (*kernel)(arguments), dim3 grid, unsigned n_threads,
                                  size_t shared_bytes, void *stream, const arguments *args) {
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
    mb_launch_config(&config, attributes, grid, n_threads, shared_bytes, stream);
    cudaError_t error = cudaLaunchKernelEx(&config, kernel, *args);
    if (error == cudaSuccess)
        return MB_OK;
    return mb_fail(MB_ERR_DEVICE, "%s: launch of %u x %u x %u CTAs of %u threads with %zu bytes failed: %s",
                   name, grid.x, grid.y, grid.z, n_threads, shared_bytes, cudaGetErrorString(error));
}

#endif
