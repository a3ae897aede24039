/*
 * sample_sm90.cu - the next token of each row of logits, without sorting the vocabulary. A row has one CTA, or where
 * there are few rows the CTAs of a cluster: row.cuh says which ids each warp has.
 *
 *   adjust    penalties, bias and mask, into the workspace (rows without any are read where they are)
 *   best      largest logit, lowest id first; greedy rows end here
 *   cutoff    what top_k and top_p keep: cutoff.cuh. Up to 1024 kept candidates come as a sorted list
 *   draw      from the list, in the order of ids; without one the weights of the pieces say which piece the draw
 *             falls to, and that piece's warp walks its ids 32 at a time
 *
 * Each pass reads V floats from L2, or from L1 what fits there. What CTAs tell each other has a place of its own in
 * shared memory for each purpose, and a barrier of the cluster between writing and reading. A row's result depends on
 * the row alone: every sum of fp64 numbers has one fixed order.
 */
#include "ops/common/workspace.h"
#include "ops/sample/cutoff.cuh"
#include "ops/sample/philox.h"

#include <float.h>

typedef struct sample_shared {
    /* told by the CTAs of the cluster: one of each */
    unsigned long long best[MOST_CTAS], maxima[MOST_CTAS];
    /* told by the warps of the cluster: one of each piece */
    double sums[N_PIECES], weights[N_PIECES];
    double share[N_PIECES + 1]; /* kept weight in front of each piece, and of all */
    unsigned long long words[SAMPLE_WARPS];
    double doubles[SAMPLE_WARPS];
    float floats[SAMPLE_WARPS];
    cutoff_shared cutoff;
} sample_shared;

/* ---- adjust */

/* Each warp has its pieces' ids, and the CTA of an id's piece adds the biases. */
static __device__ void adjust_logits(const mb_sample_row *row, const row_place *at, const float *logits,
                                     float *z) {
    const int lane = threadIdx.x % 32;
    for (int32_t p = at->first; p < N_PIECES; p += at->step)
        for (int32_t i = begin_of(at, p) + lane; i < begin_of(at, p + 1); i += 32) {
            const int32_t seen = row->seen ? row->seen[i] : 0, count = seen / 2;
            float logit = logits[i];
            if (seen != 0)
                logit = logit > 0 ? logit / row->repetition_penalty : logit * row->repetition_penalty;
            if (count > 0)
                logit -= row->presence_penalty + row->frequency_penalty * (float)count;
            z[i] = logit;
        }
    __syncthreads();
    /* The thread of an id's first bias adds all of the id's, in order. */
    for (int32_t i = threadIdx.x; i < row->n_bias; i += SAMPLE_THREADS) {
        const int32_t id = row->bias_ids[i];
        int is_first = id >= 0 && id < at->vocab &&
                       (uint32_t)(id / at->piece) % (at->n_ctas * SAMPLE_WARPS) / SAMPLE_WARPS == at->rank;
        for (int32_t j = 0; j < i && is_first; j++)
            is_first = row->bias_ids[j] != id;
        for (int32_t j = i; j < row->n_bias && is_first; j++)
            if (row->bias_ids[j] == id)
                z[id] += row->biases[j];
    }
    __syncthreads();
    if (row->allowed) {
        for (int32_t p = at->first; p < N_PIECES; p += at->step)
            for (int32_t i = begin_of(at, p) + lane; i < begin_of(at, p + 1); i += 32)
                if (!(row->allowed[i / 32] >> (i % 32) & 1) &&
                    z[i] < CUDART_INF_F) /* a NaN stays to be seen */
                    z[i] = -CUDART_INF_F;
        __syncthreads();
    }
}

/* ---- best */

static __device__ __forceinline__ unsigned long long warp_max(unsigned long long value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        const unsigned long long other = __shfl_xor_sync(0xffffffff, value, distance);
        value = other > value ? other : value;
    }
    return value;
}

/* The largest logit and the first of its ids. */
typedef struct best_token {
    float z;
    int32_t id;    /* -1 when a NaN or +infinity is there or nothing but -infinity */
    float maximum; /* of the logits before they were adjusted; a NaN is passed over */
} best_token;

static __device__ best_token find_best(const row_place *at, const float *logits, const float *z,
                                       sample_shared *s) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    unsigned long long best = 0;
    float maximum = -CUDART_INF_F;
    for (int32_t p = at->first; p < N_PIECES; p += at->step) {
        const int32_t end = begin_of(at, p + 1);
        for (int32_t chunk = begin_of(at, p); chunk < end; chunk += CHUNK) {
            float v[AT_ONCE][4];
            load_chunk(z, at->vocab, chunk, end, v);
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const uint32_t id = (uint32_t)(id_of(chunk, k) + e);
                    const unsigned long long word =
                        (unsigned long long)key_of(v[k][e]) << 32 | (0xffffffffu - id);
                    best = word > best ? word : best;
                    if (!(v[k][e] < CUDART_INF_F)) /* NaN too */
                        best = ~0ull;
                    if (z == logits)
                        maximum = fmaxf(maximum, v[k][e]);
                }
            if (z != logits) {
                load_chunk(logits, at->vocab, chunk, end, v);
#pragma unroll
                for (int k = 0; k < AT_ONCE; k++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        maximum = fmaxf(maximum, v[k][e]);
            }
        }
    }
    best = warp_max(best);
    maximum = mb_warp_max(maximum);
    if (lane == 0) {
        s->words[warp] = best;
        s->floats[warp] = maximum;
    }
    __syncthreads();
    if (warp == 0) {
        tell_all(at, &s->best[at->rank], warp_max(s->words[lane]));
        tell_all(at, &s->maxima[at->rank], __float_as_uint(mb_warp_max(s->floats[lane])));
    }
    mb_cluster_sync();
    best = s->best[0];
    maximum = __uint_as_float((uint32_t)s->maxima[0]);
    for (uint32_t rank = 1; rank < at->n_ctas; rank++) {
        best = s->best[rank] > best ? s->best[rank] : best;
        maximum = fmaxf(maximum, __uint_as_float((uint32_t)s->maxima[rank]));
    }
    const float largest = of_key((uint32_t)(best >> 32));
    const int is_usable = best != ~0ull && largest > -CUDART_INF_F;
    return {largest, is_usable ? (int32_t)(0xffffffffu - (uint32_t)best) : -1, maximum};
}

/* ---- draw */

static __device__ __forceinline__ double kept_weight(const scaled_row *row, const kept_set *kept, float logit,
                                                     int32_t id) {
    const float z = scaled(row, logit), weight = mb_exp(z);
    const uint32_t key = key_of(z);
    const int is_kept =
        (key > kept->key || (key == kept->key && id <= kept->id)) && !(weight < kept->min_weight);
    return is_kept ? (double)weight : 0;
}

/* The id that the draw falls to within a piece; `before`: the kept weight in front of the piece. A whole warp. */
static __device__ int32_t walk_piece(const row_place *at, const scaled_row *row, const kept_set *kept,
                                     int32_t piece, double before, double target) {
    const int lane = threadIdx.x % 32;
    const int32_t end = begin_of(at, piece + 1);
    int32_t last = -1;
    for (int32_t i = begin_of(at, piece); i < end; i += 32) {
        const double mine = i + lane < end ? kept_weight(row, kept, row->z[i + lane], i + lane) : 0;
        double through = mine;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const double other = __shfl_up_sync(0xffffffff, through, distance);
            through += lane >= distance ? other : 0;
        }
        const uint32_t passed = __ballot_sync(0xffffffff, mine > 0 && before + through > target);
        const uint32_t kept_lanes = __ballot_sync(0xffffffff, mine > 0);
        if (passed)
            return i + __ffs(passed) - 1;
        if (kept_lanes)
            last = i + 31 - __clz(kept_lanes);
        before += __shfl_sync(0xffffffff, through, 31);
    }
    return last; /* rounding may put the end of a piece before the target */
}

/* Where in the weight of all kept tokens, which is above 0, the draw falls; it stays below when it is rounded up. */
static __device__ __forceinline__ double target_of(const mb_sample_row *parameters, double total) {
    return fmin(mb_philox_uniform(parameters->seed, parameters->position) * total,
                __longlong_as_double(__double_as_longlong(total) - 1));
}

/* The id that the draw falls to; each thread has a kept candidate or 0. Every CTA finds it, in every thread. */
static __device__ int32_t draw_listed(const mb_sample_row *parameters, const kept_set *kept,
                                      sample_shared *s) {
    const float weight = kept->word ? mb_exp(of_key((uint32_t)(kept->word >> 32))) : 0;
    /* Ids are counted downwards, so the largest word is the first id. */
    unsigned long long word = 0;
    if (weight > 0 && !(weight < kept->min_weight))
        word = kept->word << 32 | __float_as_uint(weight);
    const int32_t n = __syncthreads_count(word != 0);
    word = sort_words(word, kept->n_listed, s->cutoff.sorted);
    double total;
    const double through = cta_scan((double)__uint_as_float((uint32_t)word), s->doubles, &total);
    const double target = target_of(parameters, total);
    const uint32_t passed = __ballot_sync(EVERY_LANE, word != 0 && through > target);
    s->cutoff.sorted[threadIdx.x] = word;
    if (threadIdx.x % 32 == 0)
        s->words[threadIdx.x / 32] = passed;
    __syncthreads();
    int32_t chosen = n - 1; /* rounding may put the end before the target */
    for (int warp = SAMPLE_WARPS - 1; warp >= 0; warp--)
        if (s->words[warp])
            chosen = 32 * warp + __ffs((int)s->words[warp]) - 1;
    return (int32_t)(0xffffffffu - (uint32_t)(s->cutoff.sorted[chosen] >> 32));
}

/* All CTAs call it. One warp of the cluster gets the id, all others -1. */
static __device__ int32_t draw(const row_place *at, const mb_sample_row *parameters, const scaled_row *row,
                               sample_shared *s) {
    const kept_set kept = find_kept(at, parameters, row, &s->cutoff);
    if (kept.n_listed > 0) {
        const int32_t id = draw_listed(parameters, &kept, s);
        return at->rank == 0 && threadIdx.x < 32 ? id : -1;
    }
    const int lane = threadIdx.x % 32;
    for (int32_t p = at->first; p < N_PIECES; p += at->step) {
        const int32_t end = begin_of(at, p + 1);
        double weight = 0;
        for (int32_t i = begin_of(at, p) + lane; i < end; i += 32)
            weight += kept_weight(row, &kept, row->z[i], i);
        tell_all(at, &s->weights[p], mb_warp_sum(weight));
    }
    mb_cluster_sync();
    if (threadIdx.x < 32) {
        double before, within = 0;
        sum_groups(s->weights, &before);
        for (int i = 0; i < 16 && lane < 16; i++) {
            s->share[16 * lane + i] = before + within;
            within += s->weights[16 * lane + i];
        }
        if (lane == 16)
            s->share[N_PIECES] = before;
    }
    __syncthreads();
    const double target = target_of(parameters, s->share[N_PIECES]);
    for (int32_t p = at->first; p < N_PIECES; p += at->step)
        if (s->share[p] <= target && target < s->share[p + 1])
            return walk_piece(at, row, &kept, p, s->share[p], target);
    return -1;
}

/* What becomes of a row. A whole warp calls it, when all of the pieces' sums are there. */
static __device__ void finish(const mb_sample_args *args, int64_t i_row, int32_t id, float maximum,
                              const sample_shared *s) {
    const double normaliser = log_sum_exp(maximum, s->sums);
    if (threadIdx.x % 32 != 0)
        return;
    int32_t *seen = args->rows[i_row].seen;
    if (seen && id >= 0)
        seen[id] += 2;
    args->ids[i_row] = id;
    args->logprobs[i_row] =
        id < 0 ? -CUDART_INF_F : (float)((double)args->logits[i_row * args->vocab + id] - normaliser);
}

typedef struct sample_params {
    mb_sample_args args;
    float *adjusted; /* [n_rows, V] */
} sample_params;

static __global__ void __launch_bounds__(SAMPLE_THREADS) sample(sample_params p) {
    const mb_sample_args &args = p.args;
    __shared__ sample_shared s;
    const row_place at = find_place(args.vocab);
    mb_cluster_arrive_relaxed();
    mb_grid_launch_dependents();
    mb_grid_wait();
    mb_cluster_wait(); /* all CTAs have begun */
    const int64_t i_row = blockIdx.x / at.n_ctas;
    const mb_sample_row *parameters = &args.rows[i_row];
    const float *logits = args.logits + i_row * args.vocab, *z = logits;
    if (parameters->seen || parameters->n_bias > 0 || parameters->allowed) {
        float *adjusted = p.adjusted + i_row * args.vocab;
        adjust_logits(parameters, &at, logits, adjusted);
        z = adjusted;
    }
    const best_token best = find_best(&at, logits, z, &s);
    sum_pieces(&at, logits, best.maximum, s.sums);
    if (best.id >= 0 && parameters->temperature > 0) {
        if (threadIdx.x == 0) /* -inf over an infinite one would be NaN */
            s.cutoff.row = {z, best.z, fminf(parameters->temperature, FLT_MAX)};
        __syncthreads();
        const int32_t id = draw(&at, parameters, &s.cutoff.row, &s);
        if (id >= 0)
            finish(&args, i_row, id, best.maximum, &s);
        return;
    }
    mb_cluster_sync();
    if (at.rank == 0 && threadIdx.x < 32)
        finish(&args, i_row, best.id, best.maximum, &s);
}

mb_status mb_sample_sm90_workspace(const mb_sample_args *most, size_t *bytes) {
    MB_TRY(mb_sample_check_sizes(most));
    *bytes = sizeof(float) * (size_t)most->n_rows * (size_t)most->vocab;
    return MB_OK;
}

mb_status mb_sample_sm90(const mb_sample_args *args, void *workspace, size_t workspace_bytes,
                         mb_stream stream) {
    MB_TRY(mb_sample_check(args));
    if (args->n_rows == 0)
        return MB_OK;
    size_t needed;
    MB_TRY(mb_sample_sm90_workspace(args, &needed));
    MB_TRY(mb_workspace_check("sample", workspace, workspace_bytes, needed));
    const sample_params params = {*args, (float *)workspace};
    return launch_rows("sample", sample, args->n_rows, stream, &params);
}
