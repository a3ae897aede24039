/*
 * cutoff.cuh - the last candidate that top_k and top_p keep. Candidates have one order: larger z, then lower id.
 *
 *   bins    a pass over z counts the candidates in bins of 1/16 of z, and says in which bin the cutoff is
 *   list    a second pass lists the candidates down to that bin, 1024 at most, and each CTA sorts them all. Where there
 *           are more, as with top_p alone and a flat distribution, it lists those of that bin
 *   radix   where even those are more than 1024 (many equal logits, or top_k beyond e^-32 of the best token's weight):
 *           a radix search in four passes over z, eight bits of the key each
 *
 * Sums of weights are integers, 2^-40 of the best token's weight a unit. So the order in which threads and CTAs add
 * does not matter.
 */
#ifndef MB_OPS_SAMPLE_CUTOFF_CUH
#define MB_OPS_SAMPLE_CUTOFF_CUH

#include "ops/sample/row.cuh"

enum { N_BINS = 512, MOST_LISTED = SAMPLE_THREADS, UNIT_BITS = 40 };

static const uint32_t EVERY_LANE = 0xffffffff, NO_BIN = 0xffffffff, LAST_BIN = N_BINS - 1;
static const float BINS_PER_UNIT = 16;

/* Counts and weights, of a bin or of several. */
typedef struct amount {
    unsigned long long count, weight;
} amount;

/* One CTA's candidates by bins, which are in the order of candidates. A weight is in two halves, since shared memory
 * adds numbers of 32 bits at a time. */
typedef struct histogram {
    uint32_t counts[N_BINS], lows[N_BINS], highs[N_BINS];
} histogram;

/* A row's logits after the adjustments, relative to the best and divided by the temperature. */
typedef struct scaled_row {
    const float *z;
    float maximum, temperature;
} scaled_row;

typedef struct cutoff_shared {
    scaled_row row;
    histogram mine[2]; /* of one pass and of the next, so that the others have read the former in time */
    unsigned long long list[MOST_LISTED], sorted[MOST_LISTED];
    uint32_t n_listed;
    unsigned long long words[SAMPLE_WARPS];
    /* the bin in which the target is reached, what the bins before it hold, and what it holds */
    uint32_t found_bin;
    amount found_before, found_within;
    unsigned long long target, last_word;
    /* told by the warps of the cluster: one of each piece */
    unsigned long long equal[N_PIECES], last_id;
} cutoff_shared;

/* Numbers order as floats do, larger is larger; +0 and -0 are one. */
static __device__ __forceinline__ uint32_t key_of(float z) {
    const uint32_t bits = __float_as_uint(z + 0.0f);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
static __device__ __forceinline__ float of_key(uint32_t key) {
    return __uint_as_float(key & 0x80000000u ? key & 0x7fffffffu : ~key);
}

static __device__ __forceinline__ float scaled(const scaled_row *row, float z) {
    return (z - row->maximum) / row->temperature;
}

static __device__ __forceinline__ unsigned long long units_of(float z) {
    return (unsigned long long)((double)mb_exp(z) * (double)(1ull << UNIT_BITS));
}

/* The last bin has all that is 32 or more below the best: of e^-32 not one unit is left. */
static __device__ __forceinline__ uint32_t bin_of(float z) {
    const float place = -z * BINS_PER_UNIT;
    return place < LAST_BIN ? (uint32_t)place : LAST_BIN;
}

/* The least weight that is top_p's share of all, 1 at least. */
static __device__ __forceinline__ unsigned long long share_of(float top_p, unsigned long long all) {
    const double share = ceil((double)top_p * (double)all);
    return share < 1 ? 1 : (unsigned long long)share;
}

/* visit(id, logit, is_there) for the ids of this warp's pieces, 32 at a time; lanes that are out of ids visit
 * too. The next logits are on their way meanwhile. width: how many logits a lane loads at once: 4, or 1 where a
 * visit takes many registers. */
template <int width, class visitor>
static __device__ __forceinline__ void each_candidate(const row_place *at, const float *logits,
                                                      const visitor &visit) {
    const int32_t my_first = width * (int32_t)(threadIdx.x % 32);
    for (int32_t p = at->first; p < N_PIECES; p += at->step) {
        const int32_t end = begin_of(at, p + 1);
        float next[1][4];
        const auto load = [&](int32_t i) {
            if (width == 4)
                load_chunk(logits, at->vocab, i, end, next);
            else if (i + my_first < end)
                next[0][0] = logits[i + my_first];
        };
        int32_t i = begin_of(at, p);
        load(i);
#pragma unroll 1
        for (; i < end; i += 32 * width) {
            float these[width];
#pragma unroll
            for (int e = 0; e < width; e++)
                these[e] = next[0][e];
            load(i + 32 * width);
#pragma unroll
            for (int e = 0; e < width; e++)
                visit(i + my_first + e, these[e], i + my_first + e < end);
        }
    }
}

/* The sum over this thread and those before it, in one fixed order; total: over all. All threads of the CTA call it. */
template <class number> static __device__ __forceinline__ number warp_scan(number value) {
#pragma unroll
    for (int distance = 1; distance < 32; distance *= 2) {
        const number other = __shfl_up_sync(EVERY_LANE, value, distance);
        value += (int)threadIdx.x % 32 >= distance ? other : 0;
    }
    return value;
}
template <class number>
static __device__ __forceinline__ number cta_scan(number value, number *scratch, number *total) {
    static_assert(SAMPLE_WARPS == 32, "a lane for each warp");
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const number through = warp_scan(value);
    if (lane == 31)
        scratch[warp] = through;
    __syncthreads();
    const number warps = warp_scan(scratch[lane]), before = __shfl_sync(EVERY_LANE, warps, (warp + 31) % 32);
    *total = __shfl_sync(EVERY_LANE, warps, 31);
    __syncthreads();
    return warp > 0 ? before + through : through;
}

/* ---- bins */

static __device__ __forceinline__ void clear_bins(histogram *mine) {
    for (int i = threadIdx.x; i < N_BINS; i += SAMPLE_THREADS)
        mine->counts[i] = mine->lows[i] = mine->highs[i] = 0;
    __syncthreads();
}

static __device__ __forceinline__ void add_to_bin(histogram *mine, uint32_t bin, uint32_t count,
                                                  unsigned long long weight) {
    const uint32_t low = (uint32_t)weight;
    uint32_t high = (uint32_t)(weight >> 32);
    atomicAdd(&mine->counts[bin], count);
    if (low)
        high += atomicAdd(&mine->lows[bin], low) > ~low; /* the carry */
    if (high)
        atomicAdd(&mine->highs[bin], high);
}

/* A candidate of each lane, or NO_BIN; the whole warp calls it. A place in shared memory takes one addition after the
 * other, so candidates that all have one bin, as equal logits do, are added up first. */
static __device__ __forceinline__ void add_candidates(histogram *mine, uint32_t bin,
                                                      unsigned long long weight) {
    const uint32_t lanes = __ballot_sync(EVERY_LANE, bin != NO_BIN);
    if (lanes == 0)
        return;
    const int first = __ffs(lanes) - 1;
    const uint32_t one_bin = __shfl_sync(EVERY_LANE, bin, first);
    if (__all_sync(EVERY_LANE, bin == NO_BIN || bin == one_bin)) {
        weight = mb_warp_sum(weight);
        if ((int)threadIdx.x % 32 == first)
            add_to_bin(mine, bin, __popc(lanes), weight);
    } else if (bin != NO_BIN) {
        add_to_bin(mine, bin, 1, weight);
    }
}

/* With weights or without. */
static __device__ void count_by_z(const row_place *at, const scaled_row *row, int with_weights,
                                  histogram *mine) {
    uint32_t n_last = 0; /* most candidates of a model that is sure */
    if (with_weights)
        each_candidate<1>(at, row->z, [&](int32_t, float logit, int is_there) {
            const float z = scaled(row, logit);
            const uint32_t bin = bin_of(z);
            const int is_counted = is_there && bin < LAST_BIN;
            n_last += is_there && bin == LAST_BIN;
            add_candidates(mine, is_counted ? bin : NO_BIN, is_counted ? units_of(z) : 0);
        });
    else
        each_candidate<1>(at, row->z, [&](int32_t, float logit, int is_there) {
            const uint32_t bin = bin_of(scaled(row, logit));
            n_last += is_there && bin == LAST_BIN;
            if (is_there && bin < LAST_BIN)
                atomicAdd(&mine->counts[bin], 1u);
        });
    n_last = mb_warp_sum(n_last);
    if (threadIdx.x % 32 == 0 && n_last > 0)
        add_to_bin(mine, LAST_BIN, n_last, 0);
}

/* The candidates whose key has `key` under `mask`, by the eight bits from `shift` on, largest first. */
static __device__ void count_by_key(const row_place *at, const scaled_row *row, uint32_t key, uint32_t mask,
                                    int shift, histogram *mine) {
    each_candidate<1>(at, row->z, [&](int32_t, float logit, int is_there) {
        const float z = scaled(row, logit);
        const uint32_t this_key = key_of(z);
        const int is_counted = is_there && (this_key & mask) == key;
        add_candidates(mine, is_counted ? 255 - (this_key >> shift & 0xff) : NO_BIN,
                       is_counted ? units_of(z) : 0);
    });
}

/* Bins are taken in order until they hold the target, which all of them together do: the bin in which that happens. A
 * target of 0 is top_p's share of all weights. */
static __device__ void choose_bin(const row_place *at, const histogram *mine, int by_count,
                                  unsigned long long target, float top_p, cutoff_shared *s) {
    amount within = {0, 0};
    if (threadIdx.x < N_BINS) {
        uint32_t counts[MOST_CTAS], lows[MOST_CTAS], highs[MOST_CTAS];
#pragma unroll
        for (uint32_t i = 0; i < MOST_CTAS; i++) { /* all are asked for before the first is here */
            const uint32_t rank = i & (at->n_ctas - 1);
            counts[i] = mb_load_cluster_u32(&mine->counts[threadIdx.x], rank);
            lows[i] = mb_load_cluster_u32(&mine->lows[threadIdx.x], rank);
            highs[i] = mb_load_cluster_u32(&mine->highs[threadIdx.x], rank);
        }
#pragma unroll
        for (uint32_t i = 0; i < MOST_CTAS; i++)
            if (i < at->n_ctas) {
                within.count += counts[i];
                within.weight += (unsigned long long)highs[i] << 32;
                within.weight += lows[i];
            }
    }
    amount all;
    const amount through = {cta_scan(within.count, s->words, &all.count),
                            cta_scan(within.weight, s->words, &all.weight)};
    if (target == 0)
        target = share_of(top_p, all.weight);
    const amount before = {through.count - within.count, through.weight - within.weight};
    if ((by_count ? before.count : before.weight) < target &&
        (by_count ? through.count : through.weight) >= target) {
        s->found_bin = threadIdx.x;
        s->found_before = before;
        s->found_within = within;
        s->target = target;
    }
    __syncthreads();
}

/* ---- list */

/* Thread t gets the t-th largest of the CTA's words. n: all from thread n on have 0; others have more. */
static __device__ unsigned long long sort_words(unsigned long long word, uint32_t n,
                                                unsigned long long *scratch) {
#pragma unroll 1
    for (uint32_t size = 2; size < 2 * n; size *= 2)
#pragma unroll 1
        for (uint32_t distance = size / 2; distance > 0; distance /= 2) {
            unsigned long long other;
            if (distance >= 32) {
                scratch[threadIdx.x] = word;
                __syncthreads();
                other = scratch[threadIdx.x ^ distance];
                __syncthreads();
            } else {
                other = __shfl_xor_sync(EVERY_LANE, word, distance);
            }
            const int takes_larger = ((threadIdx.x & distance) == 0) == ((threadIdx.x & size) == 0);
            word = (other > word) == takes_larger ? other : word;
        }
    return word;
}

/* The n candidates of the bins first .. last, MOST_LISTED at most, in order: thread t has the t-th, its key above its
 * id counted downwards; from thread n on 0. */
static __device__ unsigned long long list_candidates(const row_place *at, const scaled_row *row,
                                                     uint32_t first, uint32_t last, uint32_t n,
                                                     cutoff_shared *s) {
    /* A logit below this one is beyond the last bin, however it was rounded on the way. */
    const float span = row->temperature * ((float)(last + 1) / BINS_PER_UNIT);
    const float least =
        last == LAST_BIN ? -CUDART_INF_F : row->maximum - span - 1e-5f * (fabsf(row->maximum) + span);
    each_candidate<4>(at, row->z, [&](int32_t id, float logit, int is_there) {
        if (!is_there || logit < least)
            return;
        const float z = scaled(row, logit);
        const uint32_t bin = bin_of(z);
        if (bin >= first && bin <= last)
            s->list[atomicAdd(&s->n_listed, 1u)] =
                (unsigned long long)key_of(z) << 32 | (0xffffffffu - (uint32_t)id);
    });
    mb_cluster_sync();
    uint32_t n_there[MOST_CTAS];
#pragma unroll
    for (uint32_t i = 0; i < MOST_CTAS; i++)
        n_there[i] = mb_load_cluster_u32(&s->n_listed, i & (at->n_ctas - 1));
    uint32_t place = threadIdx.x, rank = 0; /* the thread's word is list[place] of that CTA */
#pragma unroll
    for (uint32_t i = 0; i + 1 < MOST_CTAS; i++)
        if (rank == i && place >= n_there[i] && i + 1 < at->n_ctas) {
            place -= n_there[i];
            rank++;
        }
    unsigned long long word = 0;
    if (threadIdx.x < n)
        word = mb_load_cluster_u64(&s->list[place], rank);
    mb_cluster_arrive(); /* this CTA has read the others' lists */
    word = sort_words(word, n, s->sorted);
    mb_cluster_wait();
    return word;
}

/* ---- radix */

/* A place in the order of candidates: all with a larger key, and the first n_equal ids of that key. */
typedef struct cut {
    uint32_t key;
    unsigned long long n_equal;
    unsigned long long sum; /* weights of all candidates up to the cut */
} cut;

/* Where the candidates in order first count `target` (by_count), or weigh as much. */
static __device__ cut find_cut(const row_place *at, const scaled_row *row, int by_count,
                               unsigned long long target, cutoff_shared *s) {
    uint32_t key = 0, mask = 0;
    unsigned long long left = target, weight_before = 0;
#pragma unroll 1
    for (int shift = 24; shift >= 0; shift -= 8) {
        histogram *mine = &s->mine[shift / 8 % 2];
        clear_bins(mine);
        count_by_key(at, row, key, mask, shift, mine);
        mb_cluster_sync();
        choose_bin(at, mine, by_count, left, 0, s);
        left -= by_count ? s->found_before.count : s->found_before.weight;
        weight_before += s->found_before.weight;
        key |= (255 - s->found_bin) << shift;
        mask |= 0xffu << shift;
    }
    /* All of the last bin have this one key, and so one weight; by weight it is above 0. */
    const unsigned long long weight = s->found_within.weight / s->found_within.count;
    cut found = {key, by_count ? left : (left + weight - 1) / weight, 0};
    found.sum = weight_before + found.n_equal * weight;
    return found;
}

/* The id of the n-th candidate with this key, in the order of ids. */
static __device__ int32_t find_equal(const row_place *at, const scaled_row *row, cut last, cutoff_shared *s) {
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
                EVERY_LANE, i + lane < end && key_of(scaled(row, row->z[i + lane])) == last.key);
            const int is_last =
                equal >> lane & 1 && before + __popc(equal & ((2u << lane) - 1)) == last.n_equal;
            const uint32_t is_here = __ballot_sync(EVERY_LANE, is_last);
            if (is_here)
                found = i + __ffs(is_here) - 1;
            before += __popc(equal);
        }
        tell_all(at, &s->last_id, (unsigned long long)found);
    }
    mb_cluster_sync();
    return (int32_t)s->last_id;
}

/* ---- what is kept */

typedef struct kept_set {
    uint32_t key; /* of the last candidate that is kept */
    int32_t id;
    float min_weight;
    /* the kept candidates, where they are few: how many, and the thread's own, or 0 */
    uint32_t n_listed;
    unsigned long long word;
} kept_set;

static __device__ void search_by_radix(const row_place *at, const mb_sample_row *parameters,
                                       const scaled_row *row, int has_top_k, kept_set *kept,
                                       cutoff_shared *s) {
    cut last = {0, 0, 0};
    unsigned long long target = s->target;
    if (has_top_k) {
        last = find_cut(at, row, 1, target, s);
        target = share_of(parameters->top_p, last.sum);
    }
    if (parameters->top_p < 1.0f) {
        const cut by_weight = find_cut(at, row, 0, target, s);
        if (!has_top_k || by_weight.key > last.key ||
            (by_weight.key == last.key && by_weight.n_equal < last.n_equal))
            last = by_weight;
    }
    kept->key = last.key;
    kept->id = find_equal(at, row, last, s);
}

static __device__ kept_set find_kept(const row_place *at, const mb_sample_row *parameters,
                                     const scaled_row *row, cutoff_shared *s) {
    kept_set kept = {0, at->vocab, fminf(parameters->min_p, 1.0f), 0, 0};
    const int has_top_k = parameters->top_k > 0 && parameters->top_k < at->vocab;
    const int has_top_p = parameters->top_p < 1.0f;
    if (!has_top_k && !has_top_p)
        return kept;
    if (threadIdx.x == 0)
        s->n_listed = 0;
    clear_bins(&s->mine[0]);
    count_by_z(at, row, !has_top_k, &s->mine[0]); /* beside top_k, top_p needs the weights of few */
    mb_cluster_sync();
    choose_bin(at, &s->mine[0], has_top_k, has_top_k ? (unsigned long long)parameters->top_k : 0,
               parameters->top_p, s);
    amount before = s->found_before;
    uint32_t first = s->found_bin, n = (uint32_t)s->found_within.count;
    const int are_few = before.count + n <= MOST_LISTED;
    if (are_few) {
        n += (uint32_t)before.count;
        before = {0, 0};
        first = 0;
    }
    if (n > MOST_LISTED || (!are_few && has_top_k && has_top_p)) {
        search_by_radix(at, parameters, row, has_top_k, &kept, s);
        return kept;
    }
    const unsigned long long word = list_candidates(at, row, first, s->found_bin, n, s);
    const int is_in_k = threadIdx.x < n && (!has_top_k || before.count + threadIdx.x < s->target);
    const unsigned long long units = is_in_k ? units_of(of_key((uint32_t)(word >> 32))) : 0;
    unsigned long long all;
    const unsigned long long through = before.weight + cta_scan(units, s->words, &all);
    const unsigned long long target = has_top_k ? share_of(parameters->top_p, all) : s->target;
    const int is_kept = is_in_k && (!has_top_p || through - units < target);
    const uint32_t n_kept = (uint32_t)__syncthreads_count(is_kept);
    if (threadIdx.x == n_kept - 1)
        s->last_word = word;
    __syncthreads();
    kept.key = (uint32_t)(s->last_word >> 32);
    kept.id = (int32_t)(0xffffffffu - (uint32_t)s->last_word);
    kept.n_listed = are_few ? n : 0;
    kept.word = is_kept ? word : 0;
    return kept;
}

#endif
