/* tiles.cuh - sums over a CTA, and the cutting of groups of rows into tiles by its threads. */
#ifndef MB_OPS_MOE_TILES_CUH
#define MB_OPS_MOE_TILES_CUH

#include "moebius/ops.h"

#include <stdint.h>

enum { MAX_THREADS = 1024, MAX_WARPS = MAX_THREADS / 32 };

static const uint32_t EVERY_LANE = 0xffffffff;

typedef struct row_sum {
    uint32_t rows, tiles;
} row_sum;

static __device__ __forceinline__ row_sum add(row_sum a, row_sum b) {
    return row_sum{a.rows + b.rows, a.tiles + b.tiles};
}

static __device__ __forceinline__ row_sum warp_reduce_add(row_sum a) {
    return row_sum{__reduce_add_sync(EVERY_LANE, a.rows), __reduce_add_sync(EVERY_LANE, a.tiles)};
}

/* The sum over the threads before this one; all threads of the CTA call it. total: over all. */
static __device__ __forceinline__ row_sum exclusive_scan(row_sum value, row_sum *total) {
    __shared__ row_sum warp_sums[MAX_WARPS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, n_warps = blockDim.x / 32;
    row_sum sum = value;
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const row_sum left = {__shfl_up_sync(EVERY_LANE, sum.rows, distance),
                              __shfl_up_sync(EVERY_LANE, sum.tiles, distance)};
        if (lane >= distance)
            sum = add(sum, left);
    }
    if (lane == 31)
        warp_sums[warp] = sum;
    __syncthreads();
    const row_sum none = {0, 0}, other = lane < n_warps ? warp_sums[lane] : none;
    *total = warp_reduce_add(other);
    const row_sum before = add(warp_reduce_add(lane < warp ? other : none), sum);
    __syncthreads();
    return row_sum{before.rows - value.rows, before.tiles - value.tiles};
}

/* (Few tokens: without a division.) */
static __device__ __forceinline__ uint32_t count_tiles(uint32_t n_rows, uint32_t tile_rows) {
    if (n_rows <= tile_rows)
        return n_rows > 0;
    return n_rows / tile_rows + (n_rows % tile_rows != 0);
}

/* Of a group's n_tiles tiles but the last: as even as tile_step allows. */
static __device__ __forceinline__ uint32_t tile_size(uint32_t n_rows, uint32_t n_tiles, uint32_t tile_step) {
    if (n_tiles <= 1)
        return n_rows;
    const uint32_t even = n_rows / n_tiles + (n_rows % n_tiles != 0);
    return (even + tile_step - 1) / tile_step * tile_step;
}

/* Where the tiles of one CTA's groups go. */
typedef struct tile_cut {
    mb_moe_token_tile *tiles;
    uint32_t tile_rows, tile_step;
    uint32_t first_group, first_tile; /* of this CTA */
    uint32_t part, n_parts;           /* CTAs that share these groups' tiles */
} tile_cut;

static __device__ __forceinline__ void store_tile(const tile_cut *cut, uint32_t i, uint32_t group,
                                                  uint32_t first_row, uint32_t n_rows) {
    *(int4 *)(cut->tiles + cut->first_tile + i) =
        make_int4((int32_t)(cut->first_group + group), (int32_t)first_row, (int32_t)n_rows, 0);
}

/*
 * Thread i holds group first_group + i: its first row, how many, how many tiles, and how many of this CTA's
 * are before its own. It writes its tile if no group has several. Else thread i writes the CTA's tiles i, i +
 * blockDim, ...: it searches their group, so that a group with all the rows is cut by all threads.
 */
static __device__ __forceinline__ void write_tiles(const tile_cut *cut, uint32_t first_row, uint32_t n_rows,
                                                   uint32_t my_tiles, uint32_t tiles_before,
                                                   uint32_t n_tiles) {
    __shared__ uint32_t group_tile[MAX_THREADS], group_row[MAX_THREADS], group_rows[MAX_THREADS];
    group_tile[threadIdx.x] = tiles_before;
    group_row[threadIdx.x] = first_row;
    group_rows[threadIdx.x] = n_rows;
    if (!__syncthreads_or(my_tiles > 1)) {
        if (my_tiles > 0 && cut->part == 0)
            store_tile(cut, tiles_before, threadIdx.x, first_row, n_rows);
        return;
    }
    for (uint64_t i = cut->part * blockDim.x + threadIdx.x; i < n_tiles; i += cut->n_parts * blockDim.x) {
        uint32_t group = 0, beyond = blockDim.x; /* the last group with group_tile <= i */
        while (beyond - group > 1) {
            const uint32_t middle = (group + beyond) / 2;
            if (group_tile[middle] <= i)
                group = middle;
            else
                beyond = middle;
        }
        const uint32_t rows = group_rows[group];
        const uint32_t size = tile_size(rows, count_tiles(rows, cut->tile_rows), cut->tile_step);
        const uint32_t begin = ((uint32_t)i - group_tile[group]) * size;
        store_tile(cut, (uint32_t)i, group, group_row[group] + begin, min(rows - begin, size));
    }
}

#endif
