/*
 * sample_sm90.cu - the next token of each row of logits, without sorting the vocabulary. A row has one CTA, or where
 * there are few rows the CTAs of a cluster: row.cuh says which ids each warp has.
 *
 *   adjust    penalties, bias and mask, into the workspace (rows without any are read where they are)
 *   best      largest logit, lowest id first; greedy rows end here
 *   cutoff    top_k and top_p are a place in the order of candidates (larger z, then lower id). A radix
 *             search finds the place in four passes over z, eight bits of the key each, by counts (top_k) and
 *             by sums of weights (top_p). Sums are integers, 2^-40 of the best token's weight a unit, so that
 *             the order in which threads and CTAs add does not matter.
 *   draw      the weights of the pieces say which piece the draw falls to, and that piece's warp walks its ids
 *             32 at a time.
 *
 * Each pass reads V floats from L2, or from L1 what fits there. What CTAs tell each other has a place of its own in
 * shared memory for each purpose, and a barrier of the cluster between writing and reading. A row's result depends on
 * the row alone: every sum of fp64 numbers has one fixed order.
 */
#include "ops/common/workspace.h"
#include "ops/sample/philox.h"
#include "ops/sample/row.cuh"

enum { N_BINS = 256, UNIT_BITS = 40 };

/* Counts and weights, of a bin or of several. */
typedef struct amount {
    unsigned long long count, weight;
} amount;

/* Of candidates by eight bits of their key. */
typedef struct histogram {
    unsigned long long weights[N_BINS];
    uint32_t counts[N_BINS];
} histogram;

typedef struct sample_shared {
    /* told by the CTAs of the cluster: one of each */
    unsigned long long best[MOST_CTAS], maxima[MOST_CTAS], totals[MOST_CTAS];
    /* told by the warps of the cluster: one of each piece */
    double sums[N_PIECES], weights[N_PIECES];
    unsigned long long equal[N_PIECES], last_id;
    histogram mine[2],
        all; /* mine: of one pass and of the next, so that the others have read the former in time */
    double share[N_PIECES + 1]; /* kept weight in front of each piece, and of all */
    unsigned long long words[SAMPLE_WARPS];
    float floats[SAMPLE_WARPS];
    amount found_above;
    uint32_t found_bin;
} sample_shared;

/* Numbers order as floats do, larger is larger; +0 and -0 are one. */
static __device__ __forceinline__ uint32_t key_of(float z) {
    const uint32_t bits = __float_as_uint(z + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
static __device__ __forceinline__ float of_key(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

/* A row's logits after the adjustments, relative to the best and divided by the temperature. */
typedef struct scaled_row {
    const float *z;
    float maximum, temperature;
} scaled_row;

static __device__ __forceinline__ float scaled(const scaled_row *row, float z) {
    return (z - row->maximum) / row->temperature;
}

static __device__ __forceinline__ unsigned long long units_of(float z) {
    return (unsigned long long)((double)mb_exp(z) * (double)(1ull << UNIT_BITS));
}

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

/* ---- cutoff */

/* A place in the order of candidates: all with a larger key, and the first n_equal ids of that key. */
typedef struct cut {
    uint32_t key;
    unsigned long long n_equal;
    unsigned long long sum; /* weights of all candidates up to the cut */
} cut;

/* Bins are taken from the top until they hold the target, which all of them together do: the bin in
 * which that happens, and what the bins above it hold. */
static __device__ void choose_bin(sample_shared *s, int by_count, unsigned long long target) {
    if (threadIdx.x < 32) {
        const int lane = threadIdx.x, top = N_BINS - 1 - 8 * lane; /* a lane has bins top .. top - 7 */
        amount mine = {0, 0};
        for (int bin = top; bin > top - 8; bin--) {
            mine.count += s->all.counts[bin];
            mine.weight += s->all.weights[bin];
        }
        amount through = mine;
#pragma unroll
        for (int distance = 1; distance < 32; distance *= 2) {
            const unsigned long long count = __shfl_up_sync(0xffffffff, through.count, distance);
            const unsigned long long weight = __shfl_up_sync(0xffffffff, through.weight, distance);
            through.count += lane >= distance ? count : 0;
            through.weight += lane >= distance ? weight : 0;
        }
        const uint32_t reached =
            __ballot_sync(0xffffffff, (by_count ? through.count : through.weight) >= target);
        if (lane == __ffs(reached) - 1) {
            amount above = {through.count - mine.count, through.weight - mine.weight};
            int bin = top;
            while (bin > top - 7 && (by_count ? above.count + s->all.counts[bin]
                                              : above.weight + s->all.weights[bin]) < target) {
                above.count += s->all.counts[bin];
                above.weight += s->all.weights[bin];
                bin--;
            }
            s->found_bin = (uint32_t)bin;
            s->found_above = above;
        }
    }
    __syncthreads();
}

/* Where the candidates in order first count `target` (by_count), or weigh as much. */
static __device__ cut find_cut(const row_place *at, const scaled_row *row, int by_count,
                               unsigned long long target, sample_shared *s) {
    uint32_t key = 0, mask = 0;
    unsigned long long left = target, weight_above = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        histogram *mine = &s->mine[shift / 8 % 2];
        for (int i = threadIdx.x; i < N_BINS; i += SAMPLE_THREADS) {
            mine->weights[i] = 0;
            mine->counts[i] = 0;
        }
        __syncthreads();
        for (int32_t p = at->first; p < N_PIECES; p += at->step)
            for (int32_t i = begin_of(at, p) + threadIdx.x % 32; i < begin_of(at, p + 1); i += 32) {
                const float z = scaled(row, row->z[i]);
                const uint32_t this_key = key_of(z);
                if ((this_key & mask) != key)
                    continue;
                atomicAdd(&mine->counts[this_key >> shift & 0xff], 1u);
                atomicAdd(&mine->weights[this_key >> shift & 0xff], units_of(z));
            }
        mb_cluster_sync();
        for (int i = threadIdx.x; i < N_BINS; i += SAMPLE_THREADS) {
            uint32_t count = 0;
            unsigned long long weight = 0;
            for (uint32_t rank = 0; rank < at->n_ctas; rank++) {
                count += mb_load_cluster_u32(&mine->counts[i], rank);
                weight += mb_load_cluster_u64(&mine->weights[i], rank);
            }
            s->all.counts[i] = count;
            s->all.weights[i] = weight;
        }
        __syncthreads();
        choose_bin(s, by_count, left);
        const uint32_t bin = s->found_bin;
        left -= by_count ? s->found_above.count : s->found_above.weight;
        weight_above += s->found_above.weight;
        key |= bin << shift;
        mask |= 0xffu << shift;
        __syncthreads();
    }
    /* All of the last bin have this one key, and so one weight; by weight it is above 0. */
    const unsigned long long n = s->all.counts[key & 0xff], weight = s->all.weights[key & 0xff] / n;
    cut found = {key, by_count ? left : (left + weight - 1) / weight, 0};
    found.sum = weight_above + found.n_equal * weight;
    __syncthreads();
    return found;
}

/* The id of the n-th candidate with this key, in the order of ids. */
static __device__ int32_t find_equal(const row_place *at, const scaled_row *row, cut last, sample_shared *s) {
    const int lane = threadIdx.x % 32;
    for (int32_t p = at->first; p < N_PIECES; p += at->step) {
        const int32_t end = begin_of(at, p + 1);
        uint32_t n = 0;
        for (int32_t i = begin_of(at, p) + lane; i < end; i += 32)
            n += key_of(scaled(row, row->z[i])) == last.key;
        tell_all(at, &s->equal[p], mb_warp_sum(n));
    }
    mb_cluster_sync();
    for (int32_t p = at->first; p < N_PIECES; p += at->step) {
        unsigned long long before = 0;
        for (int32_t other = lane; other < p; other += 32)
            before += s->equal[other];
        before = mb_warp_sum(before);
        if (!(before < last.n_equal && before + s->equal[p] >= last.n_equal))
            continue;
        const int32_t begin = begin_of(at, p), end = begin_of(at, p + 1);
        int32_t found = -1;
        for (int32_t i = begin; i < end && found < 0; i += 32) {
            const uint32_t equal = __ballot_sync(
                0xffffffff, i + lane < end && key_of(scaled(row, row->z[i + lane])) == last.key);
            const int is_last =
                equal >> lane & 1 && before + __popc(equal & ((2u << lane) - 1)) == last.n_equal;
            const uint32_t is_here = __ballot_sync(0xffffffff, is_last);
            if (is_here)
                found = i + __ffs(is_here) - 1;
            before += __popc(equal);
        }
        tell_all(at, &s->last_id, (unsigned long long)found);
    }
    mb_cluster_sync();
    return (int32_t)s->last_id;
}

/* ---- draw */

typedef struct kept_set {
    uint32_t key; /* of the last candidate that is kept */
    int32_t id;
    float min_weight;
} kept_set;

static __device__ __forceinline__ double kept_weight(const scaled_row *row, const kept_set *kept, float logit,
                                                     int32_t id) {
    const float z = scaled(row, logit), weight = mb_exp(z);
    const uint32_t key = key_of(z);
    const int is_kept =
        (key > kept->key || (key == kept->key && id <= kept->id)) && !(weight < kept->min_weight);
    return is_kept ? (double)weight : 0;
}

static __device__ kept_set find_kept(const row_place *at, const mb_sample_row *parameters,
                                     const scaled_row *row, sample_shared *s) {
    kept_set kept = {0, at->vocab, fminf(parameters->min_p, 1.0f)};
    const int has_top_k = parameters->top_k > 0 && parameters->top_k < at->vocab;
    if (!has_top_k && !(parameters->top_p < 1.0f))
        return kept;
    cut last = {0, 0, 0};
    if (has_top_k)
        last = find_cut(at, row, 1, (unsigned long long)parameters->top_k, s);
    if (parameters->top_p < 1.0f) {
        unsigned long long total = last.sum;
        if (!has_top_k) {
            unsigned long long mine = 0;
            for (int32_t p = at->first; p < N_PIECES; p += at->step)
                for (int32_t i = begin_of(at, p) + threadIdx.x % 32; i < begin_of(at, p + 1); i += 32)
                    mine += units_of(scaled(row, row->z[i]));
            mine = mb_cta_sum<SAMPLE_THREADS>(mine, s->words);
            if (threadIdx.x < 32)
                tell_all(at, &s->totals[at->rank], mine);
            mb_cluster_sync();
            for (uint32_t rank = 0; rank < at->n_ctas; rank++)
                total += s->totals[rank];
        }
        const double target = ceil((double)parameters->top_p * (double)total);
        const cut by_weight = find_cut(at, row, 0, target < 1 ? 1 : (unsigned long long)target, s);
        if (!has_top_k || by_weight.key > last.key ||
            (by_weight.key == last.key && by_weight.n_equal < last.n_equal))
            last = by_weight;
    }
    kept.key = last.key;
    kept.id = find_equal(at, row, last, s);
    return kept;
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

/* All CTAs call it; the warp that has the piece of the draw gets its id, all others -1. */
static __device__ int32_t draw(const row_place *at, const mb_sample_row *parameters, const scaled_row *row,
                               sample_shared *s) {
    const kept_set kept = find_kept(at, parameters, row, s);
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
    const double total = s->share[N_PIECES]; /* above 0; the target stays below it when it is rounded up */
    const double target = fmin(mb_philox_uniform(parameters->seed, parameters->position) * total,
                               __longlong_as_double(__double_as_longlong(total) - 1));
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
        const scaled_row row = {z, best.z, parameters->temperature};
        const int32_t id = draw(&at, parameters, &row, &s);
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
