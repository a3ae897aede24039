/* host_device.h - marks what the CPU's operators and the GPU's kernels both compute with. */
#ifndef MB_OPS_COMMON_HOST_DEVICE_H
#define MB_OPS_COMMON_HOST_DEVICE_H

#ifdef __CUDACC__
#define MB_HOST_DEVICE __host__ __device__
#else
#define MB_HOST_DEVICE
#endif

#endif
