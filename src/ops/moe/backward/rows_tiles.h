/* rows_tiles.h - the tiles of the backward's gradients of rows, and the compiled kinds. Both are tiles of
 * a pair of CTAs (experts/tiles.def tells the words): outputs by tokens. */
#ifndef MB_OPS_MOE_BACKWARD_ROWS_TILES_H
#define MB_OPS_MOE_BACKWARD_ROWS_TILES_H

#include "ops/moe/experts/params.cuh"

enum {
    /* Three regions of 64 outputs have room in a stage with 128 tokens a CTA, not with 144. */
    ROWS_OUTPUTS = 256,
    ROWS_TOKENS = 256,
    DX_OUTPUTS = 256,
    DX_TOKENS = 288,
    /* Of both. */
    ROWS_WARPGROUPS = 2,
    ROWS_STAGES = 4,
    ROWS_CTAS = 2,
};

cudaError_t mb_rows_launch_bf16(const experts_params *params, int n_processors, mb_stream stream);
cudaError_t mb_rows_launch_f16(const experts_params *params, int n_processors, mb_stream stream);
cudaError_t mb_dx_launch_bf16(const experts_params *params, int n_processors, mb_stream stream);
cudaError_t mb_dx_launch_f16(const experts_params *params, int n_processors, mb_stream stream);

#endif
