/*
 * nth_rank.cuh - the n-th of an expert's tokens in the order in which token rounding takes them, by one
 * CTA: radix selection, a digit of 8 bits in each look at the tokens, from the highest on.
 */
#ifndef MB_OPS_MOE_BACKWARD_NTH_RANK_CUH
#define MB_OPS_MOE_BACKWARD_NTH_RANK_CUH

#include "ops/moe/backward/router_layout.h"
#include "ops/moe/rounding_score.h"

enum { RANK_THREADS = 1024, DIGIT_VALUES = 256, SCORE_DIGITS = 8, RANK_DIGITS = 12 };

typedef mb_token_rank rank;

/* What tokens are taken for. */
enum taking {
    ADDING,   /* the largest score, of equal ones the first token */
    DROPPING, /* the least score, of equal ones the last token */
};

/* The score as an unsigned integer in the order of the scores, which are not NaN. -0 equals 0. Never 0. */
static __device__ __forceinline__ uint64_t key_of_score(double score) {
    const uint64_t bits = score == 0 ? 0 : (uint64_t)__double_as_longlong(score);
    return bits ^ ((uint64_t)((int64_t)bits >> 63) | 0x8000000000000000ull);
}

static __device__ __forceinline__ rank rank_of(uint64_t score_key, uint32_t token, enum taking purpose) {
    return purpose == ADDING ? rank{score_key, ~token} : rank{~score_key, token};
}

static __device__ __forceinline__ int is_before(rank a, rank b) {
    return a.score > b.score || (a.score == b.score && a.token > b.token);
}

static __device__ __forceinline__ uint32_t digit_of(rank r, int digit) {
    return (digit < SCORE_DIGITS ? (uint32_t)(r.score >> (56 - 8 * digit)) : r.token >> (88 - 8 * digit)) &
           (DIGIT_VALUES - 1);
}

/* The digits before this one are equal. */
static __device__ __forceinline__ int has_prefix(rank r, rank prefix, int digit) {
    if (digit <= SCORE_DIGITS)
        return digit == 0 || (r.score ^ prefix.score) >> (64 - 8 * digit) == 0;
    return r.score == prefix.score && (r.token ^ prefix.token) >> (96 - 8 * digit) == 0;
}

typedef struct rank_search {
    int32_t bins[DIGIT_VALUES]; /* tokens with each value of the digit */
    int32_t digit, n_before, n_equal;
} rank_search;

/* By the first warp: the digit of the n-th token, how many tokens are before that digit, and how many
 * have it. */
static __device__ __forceinline__ void find_digit(rank_search *s, int32_t n) {
    enum { OF_LANE = DIGIT_VALUES / 32 };
    const int lane = threadIdx.x;
    int32_t mine = 0;
    for (int i = 0; i < OF_LANE; i++)
        mine += s->bins[lane * OF_LANE + i];
    int32_t up_to = mine; /* of this lane and those of larger digits */
    for (int distance = 1; distance < 32; distance *= 2) {
        const int32_t other = __shfl_down_sync(0xffffffff, up_to, distance);
        up_to += lane + distance < 32 ? other : 0;
    }
    int32_t before = up_to - mine;
    if (before >= n || up_to < n)
        return;
    int digit = lane * OF_LANE + OF_LANE - 1;
    for (; before + s->bins[digit] < n; digit--)
        before += s->bins[digit];
    s->digit = digit;
    s->n_before = before;
    s->n_equal = s->bins[digit];
}

/* Of the eligible tokens, of which there are n at least and n is not 0, exactly n have this rank or one
 * before it. All threads of the CTA call it, and have the same result. */
template <class eligible_token>
static __device__ __forceinline__ rank nth_rank(const uint64_t *score_keys, uint32_t n_tokens,
                                                enum taking purpose, int32_t n,
                                                const eligible_token &is_eligible, rank_search *s) {
    rank found = {0, 0};
#pragma unroll 1
    for (int digit = 0; digit < RANK_DIGITS; digit++) {
        for (int i = threadIdx.x; i < DIGIT_VALUES; i += RANK_THREADS)
            s->bins[i] = 0;
        __syncthreads();
#pragma unroll 4
        for (uint32_t t = threadIdx.x; t < n_tokens; t += RANK_THREADS) {
            const rank r = rank_of(score_keys[t], t, purpose);
            if (is_eligible(t) && has_prefix(r, found, digit))
                atomicAdd(&s->bins[digit_of(r, digit)], 1);
        }
        __syncthreads();
        if (threadIdx.x < 32)
            find_digit(s, n);
        __syncthreads();
        if (digit < SCORE_DIGITS)
            found.score |= (uint64_t)s->digit << (56 - 8 * digit);
        else
            found.token |= (uint32_t)s->digit << (88 - 8 * digit);
        n -= s->n_before;
        if (s->n_equal == n) /* all of them: the digits that are left stay 0 */
            break;
        __syncthreads(); /* bins are cleared, and digit is written again */
    }
    __syncthreads();
    return found;
}

#endif
