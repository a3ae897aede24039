/* widen_sm90.cu - a CTA brings a block of the cache, K or V, all kv heads of 64 positions, to 16 bits. */
#include "base/status.h"
#include "ops/attention/widen.h"
#include "ops/hopper/fp8.cuh"
#include "ops/hopper/launch.cuh"

#include <cuda_bf16.h>
#include <cuda_fp16.h>

enum { BLOCK = 64, N_THREADS = 256, PIECE = 16 }; /* a piece: numbers of 16 bytes of the cache */

/* K and V of the sequences that are widened at a time; one sequence may take more. */
static const int64_t AIM_BYTES = 256 << 20;

typedef struct widen_params {
    mb_attention_args args;
    uint16_t *k, *v; /* [sequences, most_blocks, Hkv, 64, D] */
    int32_t *table;  /* [sequences, most_blocks] */
    int32_t most_blocks;
} widen_params;

template <int dtype> static __device__ __forceinline__ uint32_t widen_pair(uint32_t e4m3x2) {
    const uint32_t halves = mb_from_e4m3x2((uint16_t)e4m3x2);
    if constexpr (dtype == MB_F16)
        return halves;
    const float2 pair = __half22float2(*(const __half2 *)&halves);
    const __nv_bfloat162 rounded = __floats2bfloat162_rn(pair.x, pair.y);
    return *(const uint32_t *)&rounded;
}

template <int dtype> static __global__ void __launch_bounds__(N_THREADS) widen(widen_params p) {
    mb_grid_wait();
    const mb_attention_args &args = p.args;
    const int32_t i = blockIdx.x, s = blockIdx.y, is_v = blockIdx.z;
    if (args.q_start[s + 1] == args.q_start[s] || (int64_t)i * BLOCK >= args.kv_len[s])
        return;
    const int64_t to_block = (int64_t)s * p.most_blocks + i;
    if (threadIdx.x == 0 && !is_v)
        p.table[to_block] = (int32_t)to_block;
    const int64_t block = args.block_table[(int64_t)s * args.max_blocks + i];
    const int32_t row_pieces = args.head_dim / PIECE, n_pieces = args.n_kv_heads * BLOCK * row_pieces;
    const int32_t n_rows = args.kv_len[s] - i * BLOCK; /* what follows is old memory, which nobody uses */
    const uint4 *from = (const uint4 *)(is_v ? args.v_cache : args.k_cache) + block * n_pieces;
    uint4 *to = (uint4 *)(is_v ? p.v : p.k) + to_block * n_pieces * 2;
#pragma unroll 4
    for (int32_t piece = threadIdx.x; piece < n_pieces; piece += N_THREADS) {
        if (n_rows < BLOCK && piece / row_pieces % BLOCK >= n_rows)
            continue;
        const uint4 x = from[piece];
        to[2 * piece] = make_uint4(widen_pair<dtype>(x.x & 0xffff), widen_pair<dtype>(x.x >> 16),
                                   widen_pair<dtype>(x.y & 0xffff), widen_pair<dtype>(x.y >> 16));
        to[2 * piece + 1] = make_uint4(widen_pair<dtype>(x.z & 0xffff), widen_pair<dtype>(x.z >> 16),
                                       widen_pair<dtype>(x.w & 0xffff), widen_pair<dtype>(x.w >> 16));
    }
    mb_grid_launch_dependents();
}

/* ---- host */

static int32_t most_blocks(const mb_attention_args *args) {
    return (args->max_kv_len + BLOCK - 1) / BLOCK;
}

/* K alone, of one sequence. */
static int64_t sequence_bytes(const mb_attention_args *args) {
    return (int64_t)most_blocks(args) * args->n_kv_heads * BLOCK * args->head_dim * 2;
}

/* Of one sequence: K, V, its row of the table (a multiple of 16 bytes or not: the table comes last). */
static int64_t all_bytes(const mb_attention_args *args) {
    return 2 * sequence_bytes(args) + most_blocks(args) * (int64_t)sizeof(int32_t);
}

int32_t mb_attention_widen_sequences(const mb_attention_args *args) {
    const int64_t one = all_bytes(args), fit = one > 0 ? AIM_BYTES / one : args->n_sequences;
    return fit < 1 ? 1 : fit < args->n_sequences ? (int32_t)fit : args->n_sequences;
}

size_t mb_attention_widen_bytes(const mb_attention_args *args) {
    const int64_t one = all_bytes(args), all = args->n_sequences * one;
    const int64_t aim = one > AIM_BYTES ? one : AIM_BYTES;
    return (size_t)(all < aim ? all : aim);
}

mb_status mb_attention_widen(const mb_attention_args *args, void *workspace, mb_attention_args *widened,
                             mb_stream stream) {
    widen_params p = {};
    p.args = *args;
    p.most_blocks = most_blocks(args);
    p.k = (uint16_t *)workspace;
    p.v = p.k + args->n_sequences * sequence_bytes(args) / 2;
    p.table = (int32_t *)(p.v + args->n_sequences * sequence_bytes(args) / 2);
    *widened = *args;
    widened->k_cache = p.k;
    widened->v_cache = p.v;
    widened->block_table = p.table;
    widened->max_blocks = p.most_blocks;
    widened->cache_dtype = args->dtype;
    return mb_launch("attention", args->dtype == MB_BF16 ? widen<MB_BF16> : widen<MB_F16>,
                     dim3((unsigned)p.most_blocks, (unsigned)args->n_sequences, 2), N_THREADS, 0, stream, &p);
}
