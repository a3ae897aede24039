/*
 * weights_kernel.cuh - gradients of the experts' weights: a grouped GEMM whose K are the rows of an expert,
 * one persistent launch. README.md has the numbers and the reasons.
 *
 * Items, in order: for every expert all pair tiles, 256 columns of P by 256 of Q. Pair of CTAs number i works
 * on items i, i + the number of pairs, and so on. So pairs that run together share an expert's rows in L2. No
 * CTA waits for another one but its partner, and a pair always runs together.
 *
 *   producers' warpgroup    copies rows of P by index, each CTA its own 128 columns      weights_load.cuh
 *                           thread 0 has the copy engine bring Q: each CTA half of the
 *                           256 columns, to both
 *                             | full[stage]                              empty[stage] ^
 *   2 consumer warpgroups   multiply 64 columns of P by 256 of Q each                    weights_multiply.cuh
 *                           and store them, in pieces, by the copy engine                weights_store.cuh
 *
 *   stage   P: 2 panels of 64 columns | Q: 4 panels; a panel is 64 rows of 128 bytes, swizzled by 128 bytes
 *
 * Rows are K, and both operands lie with K across: memory has them so, and wgmma transposes on the way.
 * An output is summed over its expert's rows in order, whatever the other experts have.
 */
#ifndef MB_OPS_MOE_BACKWARD_WEIGHTS_KERNEL_CUH
#define MB_OPS_MOE_BACKWARD_WEIGHTS_KERNEL_CUH

#include "ops/hopper/launch.cuh"
#include "ops/moe/backward/weights_load.cuh"
#include "ops/moe/backward/weights_multiply.cuh"
#include "ops/moe/backward/weights_store.cuh"

/* A CTA starts with 168 registers a thread, the most for three warpgroups. What the producers give back
 * must be as many as the consumers take, or they wait for ever. */
enum { START_REGISTERS = 168, PRODUCER_REGISTERS = 88, CONSUMER_REGISTERS = 208 };
static_assert(PRODUCER_REGISTERS + N_CONSUMERS * CONSUMER_REGISTERS <= (N_CONSUMERS + 1) * START_REGISTERS,
              "consumers would wait for registers");

/* The consumers' role. */
template <int dtype, int out_is_f32>
static __device__ __forceinline__ void consume_items(const weights_params *p, weights_shared *s,
                                                     int warpgroup, int rank) {
    mb_ring_cursor stage = {0, 0};
    row_range next = rows_of_item(p, first_item());
#pragma unroll 1
    for (int32_t item = first_item(); item < p->n_items; item += n_pairs()) {
        const int32_t n_rows = next.end - next.begin;
        next = rows_of_item(p, item + n_pairs()); /* there when this item is done */
        if (n_rows == 0 && p->accumulate)
            continue;
        float sum[128];
#pragma unroll
        for (int i = 0; i < 128; i++)
            sum[i] = 0;
        multiply<dtype>(s, warpgroup, n_rows, &stage, sum);
        const weights_tile tile = {item / p->n_tiles, p_of_item(p, item) + rank * CTA_P + warpgroup * GROUP_P,
                                   q_of_item(p, item)};
        if (p->turned)
            store_pieces<dtype, out_is_f32, 1, 0>(p, s, warpgroup, &tile, sum);
        else
            store_pieces<dtype, out_is_f32, 0, 0>(p, s, warpgroup, &tile, sum);
    }
    if (threadIdx.x % WARPGROUP == 0)
        mb_tma_store_wait_read<0>(); /* shared memory is read to the end */
}

static __device__ __forceinline__ void init_barriers(weights_shared *s) {
    for (int i = 0; i < N_STAGES; i++) {
        mb_mbarrier_init(&s->full[i], WARPGROUP + 1);
        mb_mbarrier_init(&s->empty[i], N_CTAS * N_CONSUMERS * WARPGROUP);
    }
    mb_mbarrier_init_fence();
}

template <int dtype, int out_is_f32>
static __global__ void __launch_bounds__(N_THREADS, 1)
    backward_weights(const __grid_constant__ weights_params p) {
    extern __shared__ __align__(1024) unsigned char shared_bytes[];
    weights_shared *s = (weights_shared *)shared_bytes;
    if (threadIdx.x == 0) {
        init_barriers(s);
        mb_tma_prefetch_map(&p.q);
        mb_tma_prefetch_map(&p.out);
    }
    mb_cluster_sync();
    mb_grid_wait();
    const int rank = mb_cluster_rank();
    const int warpgroup = __shfl_sync(0xffffffff, threadIdx.x / WARPGROUP, 0);
    if (warpgroup == N_CONSUMERS) {
        mb_setmaxnreg_decrease<PRODUCER_REGISTERS>();
        load_steps(&p, s, rank);
    } else {
        mb_setmaxnreg_increase<CONSUMER_REGISTERS>();
        consume_items<dtype, out_is_f32>(&p, s, warpgroup, rank);
    }
    mb_cluster_sync(); /* neither ends while the other may still write to it */
}

template <int dtype, int out_is_f32>
static cudaError_t launch_kernel(const weights_params *params, int n_processors, mb_stream stream) {
    static_assert(sizeof(weights_shared) <= 227 * 1024, "the stages do not fit into shared memory");
    auto kernel = backward_weights<dtype, out_is_f32>;
    const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                                   (int)sizeof(weights_shared));
    if (error != cudaSuccess)
        return error;
    const int most = n_processors / N_CTAS, n = params->n_items < most ? params->n_items : most;
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
    mb_launch_config(&config, attributes, dim3(n * N_CTAS), N_THREADS, sizeof(weights_shared), stream);
    mb_launch_clusters(&config, N_CTAS);
    return cudaLaunchKernelEx(&config, kernel, *params);
}

template <int dtype>
static cudaError_t launch_weights(const weights_params *params, int out_is_f32, int n_processors,
                                  mb_stream stream) {
    return out_is_f32 ? launch_kernel<dtype, 1>(params, n_processors, stream)
                      : launch_kernel<dtype, 0>(params, n_processors, stream);
}

#endif
