/* token_rounding.cuh - what the kernels of token rounding hand to each other. */
#ifndef MB_OPS_MOE_BACKWARD_TOKEN_ROUNDING_CUH
#define MB_OPS_MOE_BACKWARD_TOKEN_ROUNDING_CUH

#include "ops/moe/backward/nth_rank.cuh"
#include "ops/moe/backward/softmax_row.cuh"

enum { LISTED = MB_ROUNDING_LISTED, WORD = MB_ROUNDING_WORD };

typedef struct rounding_params {
    mb_moe_token_rounding_args args;
    mb_rounding_layout at;
} rounding_params;

/* What is known of an expert's tokens. */
static __device__ __forceinline__ const uint64_t *keys_of(const rounding_params *p, int32_t expert) {
    return p->at.score_keys + expert * p->at.n_words * WORD;
}
static __device__ __forceinline__ const uint32_t *chosen_of(const rounding_params *p, int32_t expert) {
    return p->at.chosen + expert * p->at.n_words;
}

static __device__ __forceinline__ int has_chosen(const uint32_t *chosen, uint32_t token) {
    return chosen[token / WORD] >> token % WORD & 1;
}

/* Whether the expert would go up, were there enough candidates. carry: of MB_ROUNDING_BALANCED. */
static __device__ __forceinline__ int goes_up(mb_rounding mode, int64_t over, int64_t carry, int64_t tile) {
    return mode == MB_ROUNDING_NEAREST    ? 2 * over >= tile
           : mode == MB_ROUNDING_BALANCED ? 2 * (over + carry) >= tile
                                          : mode == MB_ROUNDING_UP;
}

/* The sum over the CTA, in all threads. of_warps: [RANK_THREADS / 32] */
static __device__ __forceinline__ int32_t count_of_threads(int32_t mine, int32_t *of_warps) {
    const int32_t of_warp = __reduce_add_sync(ALL_LANES, mine);
    if (threadIdx.x % 32 == 0)
        of_warps[threadIdx.x / 32] = of_warp;
    __syncthreads();
    const int32_t all = __reduce_add_sync(ALL_LANES, of_warps[threadIdx.x % 32]);
    __syncthreads();
    return all;
}

#endif
