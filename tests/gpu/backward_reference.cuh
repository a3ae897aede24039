/*
 * backward_reference.cuh - the MoE backward in fp64 by naive kernels that share no code with the operators.
 * All of dx, dweights and the biases' gradients; of dw13 and dw2 sampled rows. As in the contract p is
 * rounded to dtype, and nothing else is.
 */
#ifndef MB_TESTS_BACKWARD_REFERENCE_CUH
#define MB_TESTS_BACKWARD_REFERENCE_CUH

#include "backward_problem.cuh"

enum { SAMPLED_ROWS = 384 }; /* of dw13, and of dw2 */

/* What the kernels read; all on the GPU. */
typedef struct reference {
    mb_moe_backward_args a;
    sorted_rows rows;
    int64_t width13;
    int gated;
    float *p;                      /* [n, width13], values of dtype */
    float *dp;                     /* [n, width13] */
    float *h;                      /* [n, I] */
    double *h_dh;                  /* [n, I] */
    int64_t *sampled13, *sampled2; /* [SAMPLED_ROWS] rows of [E * width13, H] and [E * H, I] */
} reference;

/* What a comparison adds up. */
typedef struct difference {
    double size, apart, squares_apart, squares;
} difference;

#define FOR_EACH(i, n)                                                                       \
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x, n_##i = (n); i < n_##i; \
         i += (int64_t)gridDim.x * blockDim.x)

static __global__ void reference_p(reference r) {
    const int lane = threadIdx.x % 32;
    const int64_t H = r.a.hidden, n = r.rows.n * r.width13;
    for (int64_t i = (blockIdx.x * (int64_t)blockDim.x + threadIdx.x) / 32; i < n;
         i += (int64_t)gridDim.x * blockDim.x / 32) {
        const int64_t row = i / r.width13, j = i % r.width13, e = r.rows.expert[row], t = r.rows.token[row];
        double sum = 0;
        for (int64_t c = lane; c < H; c += 32)
            sum += (double)load_value(r.a.x, t * H + c, r.a.dtype) *
                   (double)load_value(r.a.w13.data, (e * r.width13 + j) * H + c, r.a.dtype);
        for (int distance = 16; distance > 0; distance /= 2)
            sum += __shfl_xor_sync(0xffffffff, sum, distance);
        if (r.a.bias13)
            sum += (double)load_value(r.a.bias13, e * r.width13 + j, r.a.dtype);
        if (lane == 0)
            r.p[i] = rounded((float)sum, r.a.dtype);
    }
}

static __device__ inline double activated(mb_activation activation, double x, double *slope) {
    if (activation == MB_ACT_SWIGLU || activation == MB_ACT_SILU) {
        const double sigmoid = 1 / (1 + exp(-x));
        *slope = sigmoid * (1 + x * (1 - sigmoid));
        return x * sigmoid;
    }
    if (activation == MB_ACT_GEGLU || activation == MB_ACT_GELU) {
        const double scale = sqrt(2 / 3.14159265358979323846), u = scale * (x + 0.044715 * x * x * x);
        const double rise = scale * (1 + 3 * 0.044715 * x * x), t = tanh(u);
        *slope = 0.5 * (1 + t) + 0.5 * x * (1 - t * t) * rise;
        return 0.5 * x * (1 + t);
    }
    const double positive = x > 0 ? x : 0;
    const int is_square = activation == MB_ACT_RELU2;
    *slope = is_square ? 2 * positive : x > 0;
    return is_square ? positive * positive : positive;
}

static __global__ void reference_rows(reference r) {
    const int64_t H = r.a.hidden, I = r.a.intermediate;
    FOR_EACH(i, r.rows.n * I) {
        const int64_t row = i / I, c = i % I, e = r.rows.expert[row], t = r.rows.token[row];
        double dh = 0, slope;
        for (int64_t k = 0; k < H; k++)
            dh += (double)load_value(r.a.d_out, t * H + k, r.a.dtype) *
                  (double)load_value(r.a.w2.data, (e * H + k) * I + c, r.a.dtype);
        const double gate = r.p[row * r.width13 + c], up = r.gated ? r.p[row * r.width13 + I + c] : 1;
        const double value = activated(r.a.activation, gate, &slope), s = r.rows.weight[row];
        r.h[i] = (float)(value * up);
        r.h_dh[i] = value * up * dh;
        r.dp[row * r.width13 + c] = (float)(s * dh * up * slope);
        if (r.gated)
            r.dp[row * r.width13 + I + c] = (float)(s * dh * value);
    }
}

static __device__ inline void compare_one(const gradient *got, int64_t at, double expected, int accumulate,
                                          difference *sum) {
    if (accumulate && got->is_added)
        expected += (double)start_value(at, got->dtype);
    const double value = load_value(got->memory, at, got->dtype), apart = fabs(value - expected);
    sum->size += fabs(expected);
    sum->apart += apart;
    sum->squares_apart += apart * apart;
    sum->squares += value * value + expected * expected;
}

static __device__ inline void add_to(difference *out, const difference *mine) {
    atomicAdd(&out->size, mine->size);
    atomicAdd(&out->apart, mine->apart);
    atomicAdd(&out->squares_apart, mine->squares_apart);
    atomicAdd(&out->squares, mine->squares);
}

static __global__ void compare_dweights(reference r, gradient got, difference *out) {
    const int64_t H = r.a.hidden, I = r.a.intermediate;
    difference mine = {};
    FOR_EACH(choice, r.a.n_tokens * r.a.top_k) {
        const int64_t row = r.rows.of_choice[choice], t = choice / r.a.top_k;
        double sum = 0;
        for (int64_t i = 0; row >= 0 && i < I; i++)
            sum += r.h_dh[row * I + i];
        for (int64_t c = 0; row >= 0 && r.a.bias2 && c < H; c++)
            sum += (double)load_value(r.a.bias2, r.rows.expert[row] * H + c, r.a.dtype) *
                   (double)load_value(r.a.d_out, t * H + c, r.a.dtype);
        compare_one(&got, choice, sum, 0, &mine);
    }
    add_to(out, &mine);
}

static __global__ void compare_dx(reference r, gradient got, difference *out) {
    const int64_t H = r.a.hidden;
    difference mine = {};
    FOR_EACH(i, r.a.n_tokens * H) {
        const int64_t t = i / H, c = i % H;
        double sum = 0;
        for (int64_t k = 0; k < r.a.top_k; k++) {
            const int64_t row = r.rows.of_choice[t * r.a.top_k + k];
            for (int64_t j = 0; row >= 0 && j < r.width13; j++)
                sum +=
                    (double)r.dp[row * r.width13 + j] *
                    (double)load_value(r.a.w13.data, (r.rows.expert[row] * r.width13 + j) * H + c, r.a.dtype);
        }
        compare_one(&got, i, sum, 0, &mine);
    }
    add_to(out, &mine);
}

static __global__ void compare_dw13(reference r, gradient got, int accumulate, difference *out) {
    const int64_t H = r.a.hidden;
    difference mine = {};
    FOR_EACH(i, SAMPLED_ROWS * H) {
        const int64_t at = r.sampled13[i / H], c = i % H, e = at / r.width13, j = at % r.width13;
        double sum = 0;
        for (int64_t row = r.rows.offsets[e]; row < r.rows.offsets[e + 1]; row++)
            sum += (double)r.dp[row * r.width13 + j] *
                   (double)load_value(r.a.x, r.rows.token[row] * H + c, r.a.dtype);
        compare_one(&got, at * H + c, sum, accumulate, &mine);
    }
    add_to(out, &mine);
}

static __global__ void compare_dw2(reference r, gradient got, int accumulate, difference *out) {
    const int64_t H = r.a.hidden, I = r.a.intermediate;
    difference mine = {};
    FOR_EACH(i, SAMPLED_ROWS * I) {
        const int64_t at = r.sampled2[i / I], column = i % I, e = at / H, c = at % H;
        double sum = 0;
        for (int64_t row = r.rows.offsets[e]; row < r.rows.offsets[e + 1]; row++)
            sum += (double)r.rows.weight[row] *
                   (double)load_value(r.a.d_out, r.rows.token[row] * H + c, r.a.dtype) *
                   (double)r.h[row * I + column];
        compare_one(&got, at * I + column, sum, accumulate, &mine);
    }
    add_to(out, &mine);
}

static __global__ void compare_dbias13(reference r, gradient got, int accumulate, difference *out) {
    difference mine = {};
    FOR_EACH(i, r.a.n_local_experts * r.width13) {
        const int64_t e = i / r.width13, j = i % r.width13;
        double sum = 0;
        for (int64_t row = r.rows.offsets[e]; row < r.rows.offsets[e + 1]; row++)
            sum += (double)r.dp[row * r.width13 + j];
        compare_one(&got, i, sum, accumulate, &mine);
    }
    add_to(out, &mine);
}

static __global__ void compare_dbias2(reference r, gradient got, int accumulate, difference *out) {
    const int64_t H = r.a.hidden;
    difference mine = {};
    FOR_EACH(i, r.a.n_local_experts * H) {
        const int64_t e = i / H, c = i % H;
        double sum = 0;
        for (int64_t row = r.rows.offsets[e]; row < r.rows.offsets[e + 1]; row++)
            sum += (double)r.rows.weight[row] *
                   (double)load_value(r.a.d_out, r.rows.token[row] * H + c, r.a.dtype);
        compare_one(&got, i, sum, accumulate, &mine);
    }
    add_to(out, &mine);
}

/* Rows of all experts' matrices, half of them of experts that have rows. */
static inline int64_t *sample_rows(const backward_problem *p, int64_t rows, uint64_t seed) {
    int64_t chosen[SAMPLED_ROWS];
    for (int i = 0; i < SAMPLED_ROWS; i++) {
        int64_t e = (int64_t)(next_random(&seed) % (uint64_t)p->args.n_local_experts);
        const int32_t id =
            p->host_ids[next_random(&seed) % (uint64_t)(p->s.T * p->s.K)] - p->args.first_expert;
        if (i % 4 != 0 && id >= 0 && id < p->args.n_local_experts)
            e = id;
        chosen[i] = e * rows + (int64_t)(next_random(&seed) % (uint64_t)rows);
    }
    return (int64_t *)uploaded(chosen, sizeof(chosen));
}

static inline reference make_reference(const backward_problem *p) {
    reference r = {};
    r.a = p->args;
    r.rows = p->rows;
    r.width13 = p->width13;
    r.gated = mb_activation_is_gated(p->s.activation);
    const size_t n = (size_t)p->s.T * (size_t)p->s.K, I = (size_t)p->s.I;
    r.p = (float *)allocate(n * (size_t)r.width13 * sizeof(float));
    r.dp = (float *)allocate(n * (size_t)r.width13 * sizeof(float));
    r.h = (float *)allocate(n * I * sizeof(float));
    r.h_dh = (double *)allocate(n * I * sizeof(double));
    r.sampled13 = sample_rows(p, p->width13, 5);
    r.sampled2 = sample_rows(p, p->s.H, 6);
    reference_p<<<2112, 256>>>(r);
    reference_rows<<<2112, 256>>>(r);
    CUDA(cudaGetLastError());
    return r;
}

static inline void free_reference(const reference *r) {
    const void *all[] = {r->p, r->dp, r->h, r->h_dh, r->sampled13, r->sampled2};
    for (const void *one : all)
        CUDA(cudaFree((void *)one));
}

/* What is there now, of one gradient. */
static inline difference compare_gradient(const backward_problem *p, const reference *r, int which,
                                          int accumulate) {
    difference *on_device = (difference *)allocate(sizeof(difference)), found;
    CUDA(cudaMemset(on_device, 0, sizeof(difference)));
    const gradient got = p->out[which];
    const int n_ctas = 2112, n_threads = 256;
    switch (which) {
    case DX:
        compare_dx<<<n_ctas, n_threads>>>(*r, got, on_device);
        break;
    case DWEIGHTS:
        compare_dweights<<<n_ctas, n_threads>>>(*r, got, on_device);
        break;
    case DW13:
        compare_dw13<<<n_ctas, n_threads>>>(*r, got, accumulate, on_device);
        break;
    case DW2:
        compare_dw2<<<n_ctas, n_threads>>>(*r, got, accumulate, on_device);
        break;
    case DBIAS13:
        compare_dbias13<<<n_ctas, n_threads>>>(*r, got, accumulate, on_device);
        break;
    default:
        compare_dbias2<<<n_ctas, n_threads>>>(*r, got, accumulate, on_device);
    }
    CUDA(cudaGetLastError());
    CUDA(cudaMemcpy(&found, on_device, sizeof(found), cudaMemcpyDeviceToHost));
    CUDA(cudaFree(on_device));
    return found;
}

#endif
