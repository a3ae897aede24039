/* launch_sm90.h - the host side of the experts' kernel, for forward_sm90.cu and grouped_gemm_sm90.cu. */
#ifndef MB_OPS_MOE_EXPERTS_LAUNCH_SM90_H
#define MB_OPS_MOE_EXPERTS_LAUNCH_SM90_H

#include "ops/moe/moe_sm90.h"

/* enum experts_kind of weights. */
int mb_experts_kind(const mb_weight *weight);

/* How many zeros the kernel wants for that many tiles, whose first GEMM has `width` outputs. */
int64_t mb_experts_n_counters(int64_t max_tiles, int32_t width);

typedef struct mb_experts_rows {
    const mb_moe_token_tile *tiles;
    const int32_t *n_tiles;
    int32_t *counters;
    int64_t max_tiles;
} mb_experts_rows;

/* One grouped GEMM. scratch: [R, columns of out] of 16 bits, with an fp8 out. */
mb_status mb_experts_one_gemm(const mb_grouped_gemm_args *args, const mb_experts_rows *rows, void *scratch,
                              int tile, mb_stream stream);

#endif
