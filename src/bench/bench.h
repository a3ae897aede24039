/* bench.h - one MoE layer timed on random data: what `moebius bench moe` and `moebius bench train` print. */
#ifndef MB_BENCH_BENCH_H
#define MB_BENCH_BENCH_H

#include "moebius/train.h"

/* mb_moe_forward with its router, at one shape. Weights are normal with variance 1 / (their columns), tokens
 * normal, router logits normal, so that routing is uniform, or such that the experts' probabilities are Zipf's. */
typedef struct mb_bench_moe_args {
    int64_t n_tokens;
    int32_t hidden, intermediate, n_experts, top_k;
    const char *device; /* "cpu", "cuda", "cuda:1"; NULL: cuda when there is one, else cpu */
    const char *dtype; /* "bf16", "fp16", "tf32", "fp32", "fp8_block", "fp8_tensor" (the last two: of weights,
                          with bf16 tokens) */
    mb_activation activation;
    int has_bias; /* both matrices have biases */
    int is_zipf; /* routing: a token draws experts, without putting back, in proportion to 1 / n (n: 1, 2, ...) */
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

/* The same layer trained: forward, backward, and the router's gradient. */
typedef struct mb_bench_train_args {
    int64_t n_tokens;
    int32_t hidden, intermediate, n_experts, top_k;
    const char *device; /* as above */
    const char *dtype;  /* "bf16", "fp16", "fp32" */
    mb_activation activation;
    int narrow_gradients; /* of weights and biases: of dtype, not fp32 */
    int has_bias;
    mb_rounding rounding; /* of each expert's count of tokens to a multiple of tile_rows */
    int32_t tile_rows;
    int skip_check; /* results are not compared: the reference needs minutes for a large layer */
    int n_repeats;  /* 0: 31 on a GPU, 3 on the CPU */
    int n_threads;
    uint64_t seed;
} mb_bench_train_args;

/* A result beside the same layer computed by the CPU's reference in fp32, from the same values. */
typedef struct mb_bench_check {
    const char *name; /* "o", "dx", "dw1", "dw2", "db1", "db2", "drouter": of the router's logits */
    double max_reference, mean_reference; /* of absolute values */
    double max_difference;                /* absolute */
    double mean_relative; /* mean absolute difference / mean_reference, the mean of absolute values */
} mb_bench_check;

typedef enum mb_bench_pass {
    MB_PASS_INFERENCE, /* route (top-k) and forward */
    MB_PASS_FORWARD,   /* route, token rounding if it is asked for, and the forward that keeps p */
    MB_PASS_BOTH,
    MB_PASS_BACKWARD,
    MB_N_PASSES,
} mb_bench_pass;

typedef struct mb_bench_train_result {
    char device[128];
    double us[MB_N_PASSES];    /* medians; a GPU has rested before */
    double flops[MB_N_PASSES]; /* of the experts' matrices; of rows that are computed, without padding */
    /* On a GPU, while the pass runs again and again; 0: not known. */
    double sustained_us[MB_N_PASSES];
    double sm_mhz[MB_N_PASSES], watts[MB_N_PASSES], limit_watts;
    int watts_are_mean; /* of the last second, not of the moment */
    int n_repeats;
    mb_moe_rounding_report report; /* of the training forward; hardware: in tiles of tile_rows */
    double saved_bytes;            /* p */
    int n_checks;                  /* 0: skipped */
    mb_bench_check checks[7];
    double limit; /* of mean_relative */
    int is_right; /* no check is above the limit */
} mb_bench_train_result;

mb_status mb_bench_train(const mb_bench_train_args *args, mb_bench_train_result *result);

#endif
