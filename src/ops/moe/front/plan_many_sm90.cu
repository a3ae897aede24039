/*
 * plan_many_sm90.cu - the plan of more than FEW_EXPERTS local experts, up to 65536: three launches.
 *
 *   count   each choice's expert into counts[chunk][expert]
 *   scan    over experts and chunks: counts become first rows; offsets; tiles
 *   place   every choice its row
 *
 * The choices are divided into contiguous chunks, the experts into groups whose counters fit into
 * shared memory beside the rest; a CTA has one group of one chunk, so that a chunk's ids are read from
 * L2 once a group. Rows are written expert by expert: of each expert and chunk there is one line that
 * is not full yet, and what leaves L2 before it is full costs DRAM more than once. Fewer chunks have
 * fewer such lines, but more groups, each of which looks at all ids of its chunk. README.md has the
 * figures behind MAX_CHUNK_EXPERTS.
 *
 * In `place` a warp takes every n-th batch of the chunk. It packs the choices of its group together, ranks
 * them among 32 by ballots, waits for its turn to advance the counters, passes the turn on and writes. So the
 * order is that of the choices.
 */
#include "base/status.h"
#include "ops/hopper/barrier.cuh"
#include "ops/hopper/launch.cuh"
#include "ops/moe/front/plan.cuh"

enum { LOADS = 16 }; /* in flight a lane */

typedef struct many_params {
    mb_moe_plan_args plan;
    uint32_t *counts;    /* [n_chunks, n_local_experts], then first rows */
    uint64_t *sums;      /* [MAX_SCAN_CTAS]: rows and tiles of a part of the scan; 0: not known yet */
    uint64_t *next_part; /* of the scan: what no CTA has taken yet */
    int32_t *counters;
    int32_t n_counters;
    uint32_t n_choices, n_chunks, chunk_choices; /* a multiple of BATCH */
    uint32_t n_groups, group_experts;
} many_params;

/* A batch's choice as it waits for its row. */
typedef struct entry {
    uint32_t expert_choice; /* in the group and in the batch: EXPERT_BITS, the rest */
    uint32_t rank_or_row;   /* rank and last lane among those alike in its 32: 5 bits each; then the row */
} entry;

/* The first experts of this CTA's group, and how many. */
static __device__ __forceinline__ uint32_t group_size(const many_params *params, uint32_t first) {
    const uint32_t n_experts = (uint32_t)params->plan.n_local_experts;
    return first < n_experts ? min(params->group_experts, n_experts - first) : 0;
}

static __global__ void __launch_bounds__(MAX_THREADS) count_many(const __grid_constant__ many_params params) {
    extern __shared__ uint32_t counts[];
    const uint32_t chunk = blockIdx.x / params.n_groups, group = blockIdx.x % params.n_groups;
    const uint32_t first_expert = group * params.group_experts, n_experts = group_size(&params, first_expert);
    mb_grid_launch_dependents();
    for (uint32_t e = threadIdx.x; e < n_experts; e += blockDim.x)
        counts[e] = 0;
    __syncthreads();
    mb_grid_wait();
    set_counters_zero(params.counters, params.n_counters, blockIdx.x, gridDim.x);
    if (blockIdx.x == 0 && threadIdx.x < MAX_SCAN_CTAS)
        params.sums[threadIdx.x] = 0;
    if (blockIdx.x == 0 && threadIdx.x == 0)
        *params.next_part = 0;
    const uint64_t begin = (uint64_t)chunk * params.chunk_choices;
    const uint64_t end = min(begin + params.chunk_choices, (uint64_t)params.n_choices);
    const uint32_t base = (uint32_t)params.plan.first_expert + first_expert;
    for (uint64_t i = begin + threadIdx.x; i < end; i += LOADS * MAX_THREADS) {
        uint32_t expert[LOADS];
#pragma unroll
        for (uint32_t j = 0; j < LOADS; j++) {
            const uint64_t at = i + j * MAX_THREADS;
            expert[j] = at < end ? (uint32_t)params.plan.ids[at] - base : UINT32_MAX;
        }
#pragma unroll
        for (uint32_t j = 0; j < LOADS; j++)
            if (expert[j] < n_experts)
                atomicAdd(&counts[expert[j]], 1);
    }
    __syncthreads();
    uint32_t *to = params.counts + (uint64_t)chunk * (uint32_t)params.plan.n_local_experts + first_expert;
    for (uint32_t e = threadIdx.x; e < n_experts; e += blockDim.x)
        to[e] = counts[e];
}

/* The next part of the scan. A part that was taken belongs to a CTA that runs and waits for earlier parts
 * only: so waiting for earlier parts ends, however few CTAs run at once. */
static __device__ __forceinline__ uint32_t take_part(uint64_t *next_part) {
    __shared__ uint32_t part;
    if (threadIdx.x == 0)
        part = (uint32_t)atomicAdd((unsigned long long *)next_part, 1ull);
    __syncthreads();
    return part;
}

/* Rows and tiles of the parts before this one. */
static __device__ __forceinline__ row_sum sum_parts_before(volatile uint64_t *sums, uint32_t part) {
    __shared__ row_sum before;
    if (threadIdx.x < 32) {
        row_sum mine = {0, 0};
        for (uint32_t earlier = threadIdx.x; earlier < part; earlier += 32) {
            uint64_t sum = 0;
            while (sum == 0)
                sum = sums[earlier];
            mine = add(mine, row_sum{(uint32_t)sum & INT32_MAX, (uint32_t)(sum >> 32)});
        }
        mine = warp_reduce_add(mine);
        if (threadIdx.x == 0)
            before = mine;
    }
    __syncthreads();
    return before;
}

/* A CTA takes MAX_THREADS experts, one for each thread. */
static __global__ void __launch_bounds__(MAX_THREADS) scan_many(const __grid_constant__ many_params params) {
    const mb_moe_plan_args *plan = &params.plan;
    const uint32_t n_experts = (uint32_t)plan->n_local_experts;
    mb_grid_launch_dependents();
    mb_grid_wait();
    const uint32_t part = take_part(params.next_part);
    const uint32_t first_expert = part * MAX_THREADS, expert = first_expert + threadIdx.x;
    const int is_last_part = part == gridDim.x - 1;
    uint32_t n_rows = 0;
    if (expert < n_experts) {
#pragma unroll 8
        for (uint32_t chunk = 0; chunk < params.n_chunks; chunk++)
            n_rows += params.counts[(uint64_t)chunk * n_experts + expert];
    }
    const row_sum mine = {n_rows, plan->tiles ? count_tiles(n_rows, (uint32_t)plan->tile_rows) : 0};
    row_sum of_cta = {0, 0};
    const row_sum in_cta = exclusive_scan(mine, &of_cta);
    if (threadIdx.x == 0) /* one store: whoever sees a part of it sees all */
        *(volatile uint64_t *)&params.sums[part] = (uint64_t)of_cta.tiles << 32 | 1u << 31 | of_cta.rows;
    const row_sum before = sum_parts_before(params.sums, part);
    const uint32_t offset = before.rows + in_cta.rows;
    if (expert < n_experts && plan->offsets) {
        plan->offsets[expert] = (int32_t)offset;
        if (expert == n_experts - 1)
            plan->offsets[n_experts] = (int32_t)(offset + n_rows);
    }
    if (expert < n_experts) {
        uint32_t next = offset;
#pragma unroll 8
        for (uint32_t chunk = 0; chunk < params.n_chunks; chunk++) {
            uint32_t *at = &params.counts[(uint64_t)chunk * n_experts + expert];
            const uint32_t n = *at;
            *at = next;
            next += n;
        }
    }
    if (!plan->tiles)
        return;
    if (is_last_part && threadIdx.x == 0)
        *plan->n_tiles = (int32_t)(before.tiles + of_cta.tiles);
    const tile_cut cut = {
        plan->tiles, (uint32_t)plan->tile_rows, (uint32_t)plan->tile_step, first_expert, before.tiles, 0, 1};
    write_tiles(&cut, offset, n_rows, mine.tiles, in_cta.tiles, of_cta.tiles);
}

/* Packs the choices of this group that a warp's batch has into entries; how many. Choices of no local expert
 * get their -1 from group 0. */
static __device__ __forceinline__ uint32_t pack_batch(const many_params *params, uint32_t first_choice,
                                                      uint32_t first_expert, uint32_t n_experts,
                                                      entry *entries) {
    const uint32_t lane = threadIdx.x % 32;
    const uint32_t n_choices = min((uint32_t)BATCH, params->n_choices - first_choice);
    const int32_t *ids = params->plan.ids + first_choice;
    uint32_t n = 0;
#pragma unroll 1
    for (uint32_t i = 0; i < n_choices; i += 32 * LOADS) {
        uint32_t expert[LOADS];
#pragma unroll
        for (uint32_t j = 0; j < LOADS; j++) {
            const uint32_t at = i + 32 * j + lane;
            expert[j] = UINT32_MAX;
            if (at < n_choices)
                expert[j] = local_expert(&params->plan, ids[at]);
        }
#pragma unroll
        for (uint32_t j = 0; j < LOADS; j++) {
            const uint32_t at = i + 32 * j + lane, e = expert[j] - first_expert;
            const int is_ours = expert[j] != UINT32_MAX && e < n_experts;
            const uint32_t ours = __ballot_sync(EVERY_LANE, is_ours);
            if (is_ours)
                entries[n + __popc(ours & ((1u << lane) - 1))].expert_choice = e | at << EXPERT_BITS;
            if (expert[j] == UINT32_MAX && at < n_choices && first_expert == 0)
                params->plan.token_row[first_choice + at] = -1;
            n += __popc(ours);
        }
    }
    __syncwarp();
    return n;
}

/* Each entry's rank among those of its expert in its 32, and the last of them. */
static __device__ __forceinline__ void rank_entries(entry *entries, uint32_t n) {
    const uint32_t lane = threadIdx.x % 32;
    for (uint32_t i = lane; i - lane < n; i += 32) {
        const uint32_t value = i < n ? entries[i].expert_choice : 0;
        const uint32_t alike = lanes_alike<EXPERT_BITS>(value, __ballot_sync(EVERY_LANE, i < n));
        const uint32_t rank = __popc(alike & ((1u << lane) - 1)), last = 31 - __clz(alike);
        if (i < n)
            entries[i].rank_or_row = rank | last << 5;
    }
    __syncwarp();
}

/* Gives ranked entries their rows. The last lane of those alike advances their expert's counter, AT_ONCE
 * steps of 32 entries in order but none waiting for another. */
static __device__ __forceinline__ void advance(uint32_t *next_row, entry *entries, uint32_t n) {
    enum { AT_ONCE = 8 };
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll 1
    for (uint32_t first = lane; first - lane < n; first += 32 * AT_ONCE) {
        uint32_t rank[AT_ONCE], last[AT_ONCE], base[AT_ONCE], expert[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const uint32_t i = first + 32 * j;
            const entry e = i < n ? entries[i] : entry{0, 0};
            expert[j] = e.expert_choice & (MAX_GROUP_EXPERTS - 1);
            rank[j] = e.rank_or_row & 31;
            last[j] = i < n ? e.rank_or_row >> 5 : 32;
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            base[j] = 0;
            if (last[j] == lane)
                base[j] = atomicAdd(&next_row[expert[j]], rank[j] + 1);
            __syncwarp();
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const uint32_t row = __shfl_sync(EVERY_LANE, base[j], last[j] & 31) + rank[j];
            if (last[j] < 32)
                entries[first + 32 * j].rank_or_row = row;
        }
    }
}

static __global__ void __launch_bounds__(PLACE_THREADS)
    place_many(const __grid_constant__ many_params params) {
    extern __shared__ __align__(16) unsigned char shared[]; /* entries [warps, BATCH], next_row */
    __shared__ uint64_t turn[PLACE_WARPS];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const uint32_t chunk = blockIdx.x / params.n_groups, group = blockIdx.x % params.n_groups;
    const uint32_t first_expert = group * params.group_experts, n_experts = group_size(&params, first_expert);
    entry *entries = (entry *)shared + warp * BATCH;
    uint32_t *next_row = (uint32_t *)((entry *)shared + PLACE_WARPS * BATCH);
    mb_grid_launch_dependents();
    if (threadIdx.x < PLACE_WARPS)
        mb_mbarrier_init(&turn[threadIdx.x], 32);
    mb_grid_wait();
    const uint32_t *from =
        params.counts + (uint64_t)chunk * (uint32_t)params.plan.n_local_experts + first_expert;
    for (uint32_t e = threadIdx.x; e < n_experts; e += PLACE_THREADS)
        next_row[e] = from[e];
    __syncthreads();

    const uint64_t begin = (uint64_t)chunk * params.chunk_choices;
    const uint64_t end = min(begin + params.chunk_choices, (uint64_t)params.n_choices);
    uint32_t parity = warp == 0; /* warp 0's first turn needs no one before it */
    for (uint64_t at = begin + warp * BATCH; at < end; at += PLACE_WARPS * BATCH) {
        const uint32_t first = (uint32_t)at;
        const uint32_t n = pack_batch(&params, first, first_expert, n_experts, entries);
        rank_entries(entries, n);

        mb_mbarrier_wait(&turn[warp], parity);
        parity ^= 1;
        advance(next_row, entries, n);
        mb_mbarrier_arrive(&turn[(warp + 1) % PLACE_WARPS]);

        for (uint32_t i = lane; i < n; i += 32) {
            const uint32_t choice = first + (entries[i].expert_choice >> EXPERT_BITS);
            const uint32_t row = entries[i].rank_or_row;
            params.plan.token_row[choice] = (int32_t)row;
            params.plan.row_token[row] = (int32_t)(choice / (uint32_t)params.plan.top_k);
        }
        __syncwarp();
    }
}

static many_params cut_many(const mb_moe_plan_args *args, void *workspace) {
    const mb_plan_grid grid = mb_plan_grid_of_many(args, mb_n_processors());
    many_params params = {};
    params.plan = *args;
    params.n_choices = (uint32_t)(args->n_tokens * args->top_k);
    params.n_chunks = grid.n_chunks;
    params.chunk_choices = grid.chunk_choices;
    params.n_groups = grid.n_groups;
    params.group_experts = grid.group_experts;
    params.sums = (uint64_t *)workspace;
    params.next_part = params.sums + MAX_SCAN_CTAS;
    params.counts = (uint32_t *)(params.next_part + 1);
    return params;
}

static cudaError_t launch(const many_params *params, mb_stream stream) {
    const size_t group_bytes = sizeof(uint32_t) * params->group_experts;
    const size_t place_bytes = group_bytes + sizeof(entry) * PLACE_WARPS * BATCH;
    const unsigned n_ctas = params->n_chunks * params->n_groups;
    const unsigned n_scan_ctas = ((unsigned)params->plan.n_local_experts + MAX_THREADS - 1) / MAX_THREADS;
    cudaLaunchConfig_t config;
    cudaLaunchAttribute attributes[2];
    cudaError_t error = cudaFuncSetAttribute(count_many, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             (int)(sizeof(uint32_t) * MAX_GROUP_EXPERTS));
    if (error == cudaSuccess)
        error = cudaFuncSetAttribute(
            place_many, cudaFuncAttributeMaxDynamicSharedMemorySize,
            (int)(sizeof(uint32_t) * MAX_GROUP_EXPERTS + sizeof(entry) * PLACE_WARPS * BATCH));
    if (error == cudaSuccess) {
        mb_launch_config(&config, attributes, dim3(n_ctas), MAX_THREADS, group_bytes, stream);
        error = cudaLaunchKernelEx(&config, count_many, *params);
    }
    if (error == cudaSuccess) {
        mb_launch_config(&config, attributes, dim3(n_scan_ctas), MAX_THREADS, 0, stream);
        error = cudaLaunchKernelEx(&config, scan_many, *params);
    }
    if (error == cudaSuccess) {
        mb_launch_config(&config, attributes, dim3(n_ctas), PLACE_THREADS, place_bytes, stream);
        error = cudaLaunchKernelEx(&config, place_many, *params);
    }
    return error;
}

mb_status mb_moe_plan_many_launch(const mb_moe_plan_args *args, int32_t *counters, int32_t n_counters,
                                  void *workspace, mb_stream stream) {
    many_params params = cut_many(args, workspace);
    params.counters = counters;
    params.n_counters = n_counters;
    const cudaError_t error = launch(&params, stream);
    if (error != cudaSuccess)
        return mb_fail(MB_ERR_DEVICE, "moe_plan: launch failed: %s", cudaGetErrorString(error));
    return MB_OK;
}
