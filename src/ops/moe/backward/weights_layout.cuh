/*
 * weights_layout.cuh - sizes of the weights' gradient kernel, and where what lies in its shared memory: plain
 * arithmetic, for the host as well.
 */
#ifndef MB_OPS_MOE_BACKWARD_WEIGHTS_LAYOUT_CUH
#define MB_OPS_MOE_BACKWARD_WEIGHTS_LAYOUT_CUH

#include "ops/common/host_device.h"

#include <stdint.h>

enum {
    LINE_BYTES = 128, /* the width of the swizzle */
    STEP = 64,        /* rows of an expert in a stage */
    PANEL = 64,       /* columns of an operand in a line */
    PANEL_BYTES = STEP * LINE_BYTES,
    CTA_P = 128,
    PAIR_P = 2 * CTA_P, /* columns of the gathered operand: of a CTA, of a pair */
    PAIR_Q = 256,       /* of the other operand: both CTAs have all of them */
    GROUP_P = 64,       /* of the gathered operand, a consumer warpgroup */
    P_BYTES = CTA_P / PANEL * PANEL_BYTES,
    Q_BYTES = PAIR_Q / PANEL * PANEL_BYTES,
    STAGE_BYTES = P_BYTES + Q_BYTES,
    PIECE_BYTES = 8192, /* of the finished tile that a warpgroup stores at once */
    CHUNKS = CTA_P / 8, /* pieces of 16 bytes in a gathered row */
};

/* 16 bytes `chunk` of line `line`, in an array of lines that begins at a multiple of 1024. */
static inline MB_HOST_DEVICE uint32_t chunk_of_line(uint32_t line, uint32_t chunk) {
    return line * LINE_BYTES + (chunk ^ line % 8) * 16;
}

/* Where eight columns, number 8 * chunk on, of the stage's row go in the gathered operand. */
static inline MB_HOST_DEVICE uint32_t gathered_at(uint32_t row, uint32_t chunk) {
    return chunk / 8 * PANEL_BYTES + chunk_of_line(row, chunk % 8);
}

/*
 * A piece of the finished tile: lines of 128 bytes, swizzled, rows of `out`. Not turned, lines are of P: 64
 * lines of 64 (16-bit) or 32 (fp32) of Q. Turned, lines are of Q: 64 lines of 64 of P, or 32 lines of 32 of
 * P and then 32 lines of the next 32 of P.
 *
 * The accumulators of warp w, lane l are of P 16 w + l / 4 and + 8, and of Q 8 j + 2 (l % 4) and + 1, with
 * j = 0, 1 ... counted from the piece's first.
 */

/* Where lane l's 16 bytes of a stmatrix go, which stores j and j + 1. */
static inline MB_HOST_DEVICE uint32_t matrices_at(uint32_t warp, uint32_t lane, uint32_t j) {
    return chunk_of_line(16 * warp + lane % 16, j + lane / 16);
}
static inline MB_HOST_DEVICE uint32_t turned_matrices_at(uint32_t warp, uint32_t lane, uint32_t j) {
    return chunk_of_line(8 * (j + lane / 16) + lane % 8, 2 * warp + lane / 8 % 2);
}

/* Where two fp32 sums go, of P 16 w + l / 4. (Those of P + 8 are 8 lines further.) */
static inline MB_HOST_DEVICE uint32_t floats_at(uint32_t warp, uint32_t lane, uint32_t j) {
    return chunk_of_line(16 * warp + lane / 4, 2 * j + lane % 4 / 2) + lane % 2 * 8;
}

/* Where one fp32 sum goes: right: 1 for the second of Q, below: 1 for the second of P. */
static inline MB_HOST_DEVICE uint32_t turned_float_at(uint32_t warp, uint32_t lane, uint32_t j,
                                                      uint32_t right, uint32_t below) {
    return warp / 2 * (PIECE_BYTES / 2) +
           chunk_of_line(8 * j + 2 * (lane % 4) + right, warp % 2 * 4 + lane / 16 + 2 * below) +
           lane / 4 % 4 * 4;
}

#endif
