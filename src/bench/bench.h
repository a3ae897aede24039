/* bench.h - one MoE layer timed on random data: what `moebius bench moe` prints. */
#ifndef MB_BENCH_BENCH_H
#define MB_BENCH_BENCH_H

#include "moebius/ops.h"

/* mb_moe_forward with its router, at one shape. Weights are normal with variance 1 / (their columns), tokens
 * normal, router logits normal, so that routing is uniform. */
typedef struct mb_bench_moe_args {
    int64_t n_tokens;
    int32_t hidden, intermediate, n_experts, top_k;
    const char *device; /* "cpu", "cuda", "cuda:1"; NULL: cuda when there is one, else cpu */
    const char *dtype; /* "bf16", "fp16", "tf32", "fp32", "fp8_block", "fp8_tensor" (the last two: of weights,
                          with bf16 tokens) */
    mb_activation activation;
    int has_bias;  /* both matrices have biases */
    int n_repeats; /* 0: 31 on a GPU, 5 on the CPU */
    int n_threads; /* of the CPU; 0: one per core that the process may use */
    uint64_t seed;
} mb_bench_moe_args;

typedef struct mb_bench_moe_result {
    char device[128];      /* "cpu", or the card's name */
    double us;             /* median */
    double flops;          /* of both GEMMs */
    double bytes;          /* of the weights of the experts that got tokens, with their scales */
    double floor_us;       /* that bytes or flops need at the card's rates, the larger; 0 on the CPU */
    int32_t n_experts_hit; /* by this routing */
    int n_repeats;
} mb_bench_moe_result;

/* Times a CUDA graph with 256 MiB written between its replays, so that nothing is in L2; on the CPU the wall
 * clock. Some runs warm up. Errors as mb_moe_forward, and MB_ERR_MEMORY when the shape does not fit. */
mb_status mb_bench_moe(const mb_bench_moe_args *args, mb_bench_moe_result *result);

#endif
