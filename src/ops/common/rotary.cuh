/*
 * rotary.cuh - one head of q or k in the registers of a warp: RMS norm and rotary embedding. The kernels that
 * do it give a head the same bits, because every multiplication and addition is written here.
 *
 * A lane has the pairs (i, i + D/2) with i = lane, lane + 32, ...: both halves of a rotation are in one lane.
 * most_pairs: a lane's pairs; those behind D/2 are zeros. (rope/wide.cuh has eight heads in a warp, by the
 * same operations.)
 */
#ifndef MB_OPS_COMMON_ROTARY_CUH
#define MB_OPS_COMMON_ROTARY_CUH

#include "ops/common/element.cuh"

template <int most_pairs> struct mb_head { float low[most_pairs], high[most_pairs]; };

/*
 * Sine and cosine of an angle in fp32. sincosf would keep the general case's table in local memory; instead
 * the angle is taken to quarter turns in fp64, whose 53 bits leave an error below 1e-9 for any position, and
 * sincospif has the rest, which is at most an eighth of a turn.
 */
static __device__ __forceinline__ void mb_sine_cosine(float angle, float *sine, float *cosine) {
    const double half_turns = (double)angle * 0.31830988618379067154; /* 1 / pi */
    const double quarter = rint(2.0 * half_turns);
    float s, c;
    sincospif((float)(half_turns - 0.5 * quarter), &s, &c);
    const int turn = (int)((long long)quarter & 3);
    *sine = turn == 0 ? s : turn == 1 ? c : turn == 2 ? -s : -c;
    *cosine = turn == 0 ? c : turn == 1 ? -s : turn == 2 ? -c : s;
}

/* `at`: the head's first element. */
template <int most_pairs>
static __device__ __forceinline__ void mb_head_load(mb_dtype dtype, const void *array, int64_t at, int half,
                                                    mb_head<most_pairs> *head) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < most_pairs; i++) {
        const int pair = lane + 32 * i;
        head->low[i] = pair < half ? mb_element_load(dtype, array, at + pair) : 0;
        head->high[i] = pair < half ? mb_element_load(dtype, array, at + half + pair) : 0;
    }
}

/* Of a head whose squares add up to `squares`: what multiplies it, times the weight. (A division by a power
 * of two is exact as a product; so the bits are those of the division.) */
static __device__ __forceinline__ float mb_head_norm_factor(float squares, float eps, int head_dim) {
    const float mean = (head_dim & (head_dim - 1)) == 0 ? __fmul_rn(squares, 1.0f / (float)head_dim)
                                                        : __fdiv_rn(squares, (float)head_dim);
    return __frcp_rn(__fsqrt_rn(__fadd_rn(mean, eps)));
}

static __device__ __forceinline__ float mb_normed(float x, float factor, float weight) {
    return __fmul_rn(x, __fmul_rn(factor, weight));
}

static __device__ __forceinline__ void mb_rotate_pair(float cosine, float sine, float *low, float *high) {
    const float a = *low, b = *high;
    *low = fmaf(a, cosine, -__fmul_rn(b, sine));
    *high = fmaf(b, cosine, __fmul_rn(a, sine));
}

template <int most_pairs>
static __device__ __forceinline__ void mb_head_norm(const mb_head<most_pairs> *weight, float eps,
                                                    int head_dim, mb_head<most_pairs> *head) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < most_pairs; i++)
        sum = fmaf(head->high[i], head->high[i], fmaf(head->low[i], head->low[i], sum));
    const float factor = mb_head_norm_factor(mb_warp_sum(sum), eps, head_dim);
#pragma unroll
    for (int i = 0; i < most_pairs; i++) {
        head->low[i] = mb_normed(head->low[i], factor, weight->low[i]);
        head->high[i] = mb_normed(head->high[i], factor, weight->high[i]);
    }
}

/* cosines, sines: of the pairs. */
template <int most_pairs>
static __device__ __forceinline__ void mb_head_rotate(const float *cosines, const float *sines, int half,
                                                      mb_head<most_pairs> *head) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < most_pairs; i++) {
        const int pair = lane + 32 * i;
        if (pair < half)
            mb_rotate_pair(cosines[pair], sines[pair], &head->low[i], &head->high[i]);
    }
}

/* An element for the cache, whose type is fp8 or one of activations. */
static __device__ __forceinline__ void mb_cache_store(mb_dtype dtype, void *array, int64_t i, float value) {
    if (dtype == MB_F8_E4M3)
        ((__nv_fp8_e4m3 *)array)[i] = __nv_fp8_e4m3(value);
    else
        mb_element_store(dtype, array, i, value);
}

#endif
