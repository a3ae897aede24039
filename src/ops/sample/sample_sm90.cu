/*
 * sample_sm90.cu - the next token of each row of logits, one CTA a row, without sorting the vocabulary.
 *
 *   adjust    penalties, bias and mask, into the workspace (rows without any are read where they are)
 *   best      largest logit, lowest id first; greedy rows end here
 *   cutoff    top_k and top_p are a place in the order of candidates (larger z, then lower id). A radix
 *             search finds the place in four passes over z, eight bits of the key each, by counts (top_k) and
 *             by sums of weights (top_p). Sums are integers, 2^-40 of the best token's weight a unit, so that
 *             the order in which threads add does not matter.
 *   draw      warp w has the w-th share of the ids. The shares' weights say which warp the draw falls to, and
 *             that warp walks its ids 32 at a time.
 *
 * Each pass reads V floats from L2. A row's result depends on the row alone: every sum has one fixed order.
 */
#include "ops/common/workspace.h"
#include "ops/hopper/launch.cuh"
#include "ops/sample/philox.h"
#include "ops/sample/row.cuh"

enum { N_BINS = 256, UNIT_BITS = 40 };

/* Counts and weights, of a bin or of several. */
typedef struct amount {
    unsigned long long count, weight;
} amount;

typedef struct sample_shared {
    row_scratch scratch;
    unsigned long long weights[N_BINS];
    uint32_t counts[N_BINS];
    double share[SAMPLE_WARPS + 1]; /* kept weight in front of each warp's ids, and of all */
    amount found_above;
    uint32_t found_bin;
    int32_t found_id;
} sample_shared;

/* Numbers order as floats do, larger is larger; +0 and -0 are one. */
static __device__ __forceinline__ uint32_t key_of(float z) {
    const uint32_t bits = __float_as_uint(z + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* A row's logits after the adjustments, relative to the best and divided by the temperature. */
typedef struct scaled_row {
    const float *z;
    float maximum, temperature;
    int32_t vocab;
} scaled_row;

static __device__ __forceinline__ float scaled(const scaled_row *row, int32_t i) {
    return (row->z[i] - row->maximum) / row->temperature;
}

static __device__ __forceinline__ unsigned long long units_of(float z) {
    return (unsigned long long)((double)mb_exp(z) * (double)(1ull << UNIT_BITS));
}

/* ---- adjust */

static __device__ void adjust_logits(const mb_sample_row *row, const float *logits, int32_t vocab, float *z) {
    for (int32_t i = threadIdx.x; i < vocab; i += SAMPLE_THREADS) {
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
        int is_first = id >= 0 && id < vocab;
        for (int32_t j = 0; j < i && is_first; j++)
            is_first = row->bias_ids[j] != id;
        for (int32_t j = i; j < row->n_bias && is_first; j++)
            if (row->bias_ids[j] == id)
                z[id] += row->biases[j];
    }
    __syncthreads();
    if (row->allowed) {
        for (int32_t i = threadIdx.x; i < vocab; i += SAMPLE_THREADS)
            if (!(row->allowed[i / 32] >> (i % 32) & 1) && z[i] < CUDART_INF_F) /* a NaN stays to be seen */
                z[i] = -CUDART_INF_F;
        __syncthreads();
    }
}

/* ---- best */

/* The largest logit, the first of equal ones; -1 when a NaN or +infinity is there or nothing but
 * -infinity. */
static __device__ int32_t find_best(const float *z, int32_t vocab, sample_shared *s) {
    unsigned long long best = 0;
    int is_usable = 1;
    for (int32_t i = threadIdx.x; i < vocab; i += SAMPLE_THREADS) {
        const unsigned long long word = (unsigned long long)key_of(z[i]) << 32 | (0xffffffffu - (uint32_t)i);
        is_usable &= z[i] < CUDART_INF_F; /* false for NaN too */
        best = word > best ? word : best;
    }
    is_usable = __syncthreads_and(is_usable);
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        const unsigned long long other = __shfl_xor_sync(0xffffffff, best, distance);
        best = other > best ? other : best;
    }
    if (threadIdx.x % 32 == 0)
        s->scratch.words[threadIdx.x / 32] = best;
    __syncthreads();
    best = 0;
#pragma unroll
    for (int warp = 0; warp < SAMPLE_WARPS; warp++)
        best = s->scratch.words[warp] > best ? s->scratch.words[warp] : best;
    __syncthreads();
    const int32_t id = (int32_t)(0xffffffffu - (uint32_t)best);
    return is_usable && z[id] > -CUDART_INF_F ? id : -1;
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
            mine.count += s->counts[bin];
            mine.weight += s->weights[bin];
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
            while (bin > top - 7 &&
                   (by_count ? above.count + s->counts[bin] : above.weight + s->weights[bin]) < target) {
                above.count += s->counts[bin];
                above.weight += s->weights[bin];
                bin--;
            }
            s->found_bin = (uint32_t)bin;
            s->found_above = above;
        }
    }
    __syncthreads();
}

/* Where the candidates in order first count `target` (by_count), or weigh as much. */
static __device__ cut find_cut(const scaled_row *row, int by_count, unsigned long long target,
                               sample_shared *s) {
    uint32_t key = 0, mask = 0;
    unsigned long long left = target, weight_above = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        for (int i = threadIdx.x; i < N_BINS; i += SAMPLE_THREADS) {
            s->weights[i] = 0;
            s->counts[i] = 0;
        }
        __syncthreads();
        for (int32_t i = threadIdx.x; i < row->vocab; i += SAMPLE_THREADS) {
            const float z = scaled(row, i);
            const uint32_t this_key = key_of(z);
            if ((this_key & mask) != key)
                continue;
            atomicAdd(&s->counts[this_key >> shift & 0xff], 1u);
            atomicAdd(&s->weights[this_key >> shift & 0xff], units_of(z));
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
    const unsigned long long n = s->counts[key & 0xff], weight = s->weights[key & 0xff] / n;
    cut found = {key, by_count ? left : (left + weight - 1) / weight, 0};
    found.sum = weight_above + found.n_equal * weight;
    __syncthreads();
    return found;
}

/* The id of the n-th candidate with this key, in the order of ids. */
static __device__ int32_t find_equal(const scaled_row *row, cut at, sample_shared *s) {
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int32_t share = (row->vocab + SAMPLE_WARPS - 1) / SAMPLE_WARPS;
    const int32_t begin = min(warp * share, row->vocab), end = min(begin + share, row->vocab);
    uint32_t n = 0;
    for (int32_t i = begin; i < end; i += 32)
        n += __popc(__ballot_sync(0xffffffff, i + lane < end && key_of(scaled(row, i + lane)) == at.key));
    if (lane == 0)
        s->scratch.words[warp] = n;
    __syncthreads();
    unsigned long long before = 0;
    for (int w = 0; w < warp; w++)
        before += s->scratch.words[w];
    if (before < at.n_equal && before + n >= at.n_equal) {
        for (int32_t i = begin; i < end; i += 32) {
            const uint32_t equal =
                __ballot_sync(0xffffffff, i + lane < end && key_of(scaled(row, i + lane)) == at.key);
            const uint32_t mine = equal >> lane & 1;
            if (mine && before + __popc(equal & ((2u << lane) - 1)) == at.n_equal)
                s->found_id = i + lane;
            before += __popc(equal);
        }
    }
    __syncthreads();
    return s->found_id;
}

/* ---- draw */

typedef struct kept_set {
    uint32_t key; /* of the last candidate that is kept */
    int32_t id;
    float min_weight;
} kept_set;

static __device__ __forceinline__ double kept_weight(const scaled_row *row, const kept_set *kept, int32_t i) {
    const float z = scaled(row, i), weight = mb_exp(z);
    const uint32_t key = key_of(z);
    const int is_kept =
        (key > kept->key || (key == kept->key && i <= kept->id)) && !(weight < kept->min_weight);
    return is_kept ? (double)weight : 0;
}

static __device__ kept_set find_kept(const mb_sample_row *parameters, const scaled_row *row,
                                     sample_shared *s) {
    kept_set kept = {0, row->vocab, fminf(parameters->min_p, 1.0f)};
    const int has_top_k = parameters->top_k > 0 && parameters->top_k < row->vocab;
    if (!has_top_k && !(parameters->top_p < 1.0f))
        return kept;
    cut last = {0, 0, 0};
    if (has_top_k)
        last = find_cut(row, 1, (unsigned long long)parameters->top_k, s);
    if (parameters->top_p < 1.0f) {
        unsigned long long total = last.sum;
        if (!has_top_k) {
            unsigned long long mine = 0;
            for (int32_t i = threadIdx.x; i < row->vocab; i += SAMPLE_THREADS)
                mine += units_of(scaled(row, i));
            total = mb_cta_sum<SAMPLE_THREADS>(mine, s->scratch.words);
        }
        const double target = ceil((double)parameters->top_p * (double)total);
        const cut by_weight = find_cut(row, 0, target < 1 ? 1 : (unsigned long long)target, s);
        if (!has_top_k || by_weight.key > last.key ||
            (by_weight.key == last.key && by_weight.n_equal < last.n_equal))
            last = by_weight;
    }
    kept.key = last.key;
    kept.id = find_equal(row, last, s);
    return kept;
}

static __device__ int32_t draw(const mb_sample_row *parameters, const scaled_row *row, sample_shared *s) {
    const kept_set kept = find_kept(parameters, row, s);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int32_t share = (row->vocab + SAMPLE_WARPS - 1) / SAMPLE_WARPS;
    const int32_t begin = min(warp * share, row->vocab), end = min(begin + share, row->vocab);
    double weight = 0;
    for (int32_t i = begin + lane; i < end; i += 32)
        weight += kept_weight(row, &kept, i);
    weight = mb_warp_sum(weight);
    if (lane == 0)
        s->scratch.doubles[warp] = weight;
    __syncthreads();
    if (threadIdx.x == 0) {
        s->share[0] = 0;
        for (int w = 0; w < SAMPLE_WARPS; w++)
            s->share[w + 1] = s->share[w] + s->scratch.doubles[w];
    }
    __syncthreads();
    const double total =
        s->share[SAMPLE_WARPS]; /* above 0; the target stays below it when it is rounded up */
    const double target = fmin(mb_philox_uniform(parameters->seed, parameters->position) * total,
                               __longlong_as_double(__double_as_longlong(total) - 1));
    if (s->share[warp] <= target && target < s->share[warp + 1]) {
        double before = s->share[warp];
        int32_t last = -1, found = -1;
        for (int32_t i = begin; i < end && found < 0; i += 32) {
            const double mine = i + lane < end ? kept_weight(row, &kept, i + lane) : 0;
            double through = mine;
#pragma unroll
            for (int distance = 1; distance < 32; distance *= 2) {
                const double other = __shfl_up_sync(0xffffffff, through, distance);
                through += lane >= distance ? other : 0;
            }
            const uint32_t passed = __ballot_sync(0xffffffff, mine > 0 && before + through > target);
            const uint32_t kept_lanes = __ballot_sync(0xffffffff, mine > 0);
            if (passed)
                found = i + __ffs(passed) - 1;
            if (kept_lanes)
                last = i + 31 - __clz(kept_lanes);
            before += __shfl_sync(0xffffffff, through, 31);
        }
        if (lane == 0)
            s->found_id =
                found >= 0 ? found : last; /* rounding may put the end of a share before the target */
    }
    __syncthreads();
    return s->found_id;
}

typedef struct sample_params {
    mb_sample_args args;
    float *adjusted; /* [n_rows, V] */
} sample_params;

static __global__ void __launch_bounds__(SAMPLE_THREADS) sample(sample_params p) {
    const mb_sample_args &args = p.args;
    __shared__ sample_shared s;
    mb_grid_wait();
    const mb_sample_row *parameters = &args.rows[blockIdx.x];
    const float *logits = args.logits + (int64_t)blockIdx.x * args.vocab, *z = logits;
    if (parameters->seen || parameters->n_bias > 0 || parameters->allowed) {
        float *adjusted = p.adjusted + (int64_t)blockIdx.x * args.vocab;
        adjust_logits(parameters, logits, args.vocab, adjusted);
        z = adjusted;
    }
    int32_t id = find_best(z, args.vocab, &s);
    if (id >= 0 && parameters->temperature > 0) {
        const scaled_row row = {z, z[id], parameters->temperature, args.vocab};
        id = draw(parameters, &row, &s);
    }
    const double normaliser = log_sum_exp(logits, args.vocab, &s.scratch);
    if (threadIdx.x == 0) {
        if (parameters->seen && id >= 0)
            parameters->seen[id] += 2;
        args.ids[blockIdx.x] = id;
        args.logprobs[blockIdx.x] = id < 0 ? -CUDART_INF_F : (float)((double)logits[id] - normaliser);
    }
    mb_grid_launch_dependents();
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
    return mb_launch("sample", sample, dim3((unsigned)args->n_rows), SAMPLE_THREADS, 0, stream, &params);
}
