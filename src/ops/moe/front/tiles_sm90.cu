/*
 * tiles_sm90.cu - the tiles of rows that are grouped already, in one launch. A CTA takes MAX_THREADS groups
 * and counts the tiles of all groups before them itself: 256 KB from L2 at most, and no CTA waits for
 * another.
 */
#include "base/status.h"
#include "ops/hopper/launch.cuh"
#include "ops/moe/front/tiles.cuh"
#include "ops/moe/moe_sm90.h"

enum { MAX_GROUPS = 65536, TILES_PER_CTA = 8192, MAX_PARTS = 64 };

static __device__ __forceinline__ uint32_t rows_of(const mb_moe_tiles_args *args, uint32_t group) {
    return args->offsets ? (uint32_t)(args->offsets[group + 1] - args->offsets[group])
                         : (uint32_t)args->n_rows;
}

/* blockIdx.x: which MAX_THREADS groups; blockIdx.y: which part of their tiles. */
static __global__ void __launch_bounds__(MAX_THREADS)
    cut_tiles(const __grid_constant__ mb_moe_tiles_args args) {
    mb_grid_launch_dependents();
    mb_grid_wait();
    const uint32_t n_groups = (uint32_t)args.n_groups, first_group = blockIdx.x * MAX_THREADS;
    const uint32_t cta = blockIdx.y * gridDim.x + blockIdx.x, n_ctas = gridDim.x * gridDim.y;
    for (uint32_t i = cta * blockDim.x + threadIdx.x; i < (uint32_t)args.n_counters; i += n_ctas * blockDim.x)
        args.counters[i] = 0;

    row_sum before = {0, 0}, all_before, of_cta;
#pragma unroll 8
    for (uint32_t group = threadIdx.x; group < first_group; group += MAX_THREADS)
        before.tiles += count_tiles(rows_of(&args, group), (uint32_t)args.tile_rows);
    exclusive_scan(before, &all_before);

    const uint32_t group = first_group + threadIdx.x;
    const uint32_t n_rows = group < n_groups ? rows_of(&args, group) : 0;
    const uint32_t first_row = group < n_groups && args.offsets ? (uint32_t)args.offsets[group] : 0;
    const row_sum mine = {n_rows, count_tiles(n_rows, (uint32_t)args.tile_rows)};
    const row_sum in_cta = exclusive_scan(mine, &of_cta);
    const tile_cut cut = {args.tiles,  (uint32_t)args.tile_rows, (uint32_t)args.tile_step,
                          first_group, all_before.tiles,         blockIdx.y,
                          gridDim.y};
    write_tiles(&cut, first_row, n_rows, mine.tiles, in_cta.tiles, of_cta.tiles);
    if (blockIdx.x == gridDim.x - 1 && blockIdx.y == 0 && threadIdx.x == 0)
        *args.n_tiles = (int32_t)(all_before.tiles + of_cta.tiles);
}

static mb_status check(const mb_moe_tiles_args *args) {
    if (args->n_groups < 1 || args->n_groups > MAX_GROUPS || (!args->offsets && args->n_groups != 1))
        return mb_fail(
            MB_ERR_ARGUMENT,
            "moe_tiles: n_groups is %d and offsets %s; it must be in 1 .. %d, and 1 without offsets",
            args->n_groups, args->offsets ? "is given" : "NULL", MAX_GROUPS);
    if (args->n_rows < 0 || args->n_rows > INT32_MAX)
        return mb_fail(MB_ERR_ARGUMENT, "moe_tiles: n_rows is %lld, not in 0 .. 2^31 - 1",
                       (long long)args->n_rows);
    if (args->tile_rows < 1 || args->tile_step < 1 || args->tile_rows % args->tile_step != 0)
        return mb_fail(
            MB_ERR_ARGUMENT,
            "moe_tiles: tile_rows is %d, tile_step %d; the step must divide the rows, both at least 1",
            args->tile_rows, args->tile_step);
    if (mb_moe_max_tiles(args->n_rows, args->n_groups, args->tile_rows) > INT32_MAX)
        return mb_fail(MB_ERR_ARGUMENT, "moe_tiles: %lld rows in tiles of %d can be more than 2^31 - 1 tiles",
                       (long long)args->n_rows, args->tile_rows);
    if (!args->tiles || !args->n_tiles || (uintptr_t)args->tiles % 16)
        return mb_fail(MB_ERR_ARGUMENT,
                       "moe_tiles: tiles or n_tiles is NULL, or tiles is not 16-byte aligned");
    if (args->n_counters < 0 || (args->n_counters > 0 && !args->counters))
        return mb_fail(MB_ERR_ARGUMENT, "moe_tiles: n_counters is %d, and counters %s", args->n_counters,
                       args->counters ? "is given" : "NULL");
    return MB_OK;
}

extern "C" mb_status mb_moe_tiles_sm90(const mb_moe_tiles_args *args, mb_stream stream) {
    MB_TRY(check(args));
    const unsigned n_group_ctas = ((unsigned)args->n_groups + MAX_THREADS - 1) / MAX_THREADS;
    const int64_t max_tiles = mb_moe_max_tiles(args->n_rows, args->n_groups, args->tile_rows);
    const int64_t n_parts = (max_tiles / n_group_ctas + TILES_PER_CTA - 1) / TILES_PER_CTA;
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
    mb_launch_config(&config, attributes,
                     dim3(n_group_ctas, n_parts < 1           ? 1
                                        : n_parts < MAX_PARTS ? (unsigned)n_parts
                                                              : MAX_PARTS),
                     MAX_THREADS, 0, stream);
    const cudaError_t error = cudaLaunchKernelEx(&config, cut_tiles, *args);
    if (error != cudaSuccess)
        return mb_fail(MB_ERR_DEVICE, "moe_tiles: launch failed: %s", cudaGetErrorString(error));
    return MB_OK;
}
