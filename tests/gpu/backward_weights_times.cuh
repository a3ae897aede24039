/* backward_weights_times.cuh - times of a layer's dw13 and dw2, for the shapes that training is measured
 * with. */
#ifndef MB_TESTS_BACKWARD_WEIGHTS_TIMES_CUH
#define MB_TESTS_BACKWARD_WEIGHTS_TIMES_CUH

#include "ops/moe/backward/weights.h"
#include "timing.cuh"
#include "values.cuh"

typedef struct layer_shape {
    int32_t n_tokens, hidden, intermediate, n_experts, top_k;
    int is_rounded; /* counts are multiples of 128 */
} layer_shape;
static const layer_shape layers[] = {
    {32768, 4096, 1024, 128, 8, 0}, {32768, 2048, 768, 128, 8, 0}, {4096, 4096, 1024, 128, 8, 0},
    {24576, 1536, 256, 128, 8, 0},  {32768, 4096, 512, 128, 8, 0}, {32768, 4096, 2048, 64, 4, 0},
    {24576, 1536, 1024, 32, 2, 0},  {4096, 4096, 1024, 256, 8, 0}, {16384, 4096, 1024, 256, 8, 1}};
static const size_t N_LAYERS = sizeof layers / sizeof *layers;

/* Offsets and tokens of random routing: each token takes top_k experts, one after another from a random one
 * by a random odd step, so they differ (n_experts is a power of two). Rounded: every expert has the same
 * number of tokens, from all over. */
static inline void route(const layer_shape *s, int32_t *offsets, int32_t *index) {
    const int64_t n_rows = (int64_t)s->n_tokens * s->top_k;
    int32_t *ids = (int32_t *)host_allocate(sizeof(int32_t) * (size_t)n_rows);
    uint64_t z = 12345;
    for (int64_t t = 0; t < s->n_tokens; t++) {
        z = z * 6364136223846793005ull + 1442695040888963407ull;
        const uint32_t group = (uint32_t)(t * 4093 % s->n_tokens / 128) * (uint32_t)s->top_k;
        const uint32_t first = s->is_rounded ? group : (uint32_t)(z >> 33),
                       step = s->is_rounded ? 1 : (uint32_t)(z >> 20) | 1;
        for (int32_t k = 0; k < s->top_k; k++)
            ids[t * s->top_k + k] = (int32_t)((first + (uint32_t)k * step) % (uint32_t)s->n_experts);
    }
    memset(offsets, 0, sizeof(int32_t) * (size_t)(s->n_experts + 1));
    for (int64_t i = 0; i < n_rows; i++)
        offsets[ids[i] + 1]++;
    for (int32_t e = 0; e < s->n_experts; e++)
        offsets[e + 1] += offsets[e];
    int32_t *next = (int32_t *)host_allocate(sizeof(int32_t) * (size_t)s->n_experts);
    memcpy(next, offsets, sizeof(int32_t) * (size_t)s->n_experts);
    for (int64_t i = 0; i < n_rows; i++)
        index[next[ids[i]]++] = (int32_t)(i / s->top_k);
    free(next);
    free(ids);
}

static inline void launch_weights_of(const void *context, cudaStream_t stream) {
    MB(mb_moe_backward_weights_sm90((const mb_moe_backward_weights_args *)context, stream));
}

/* A few elements against sums on the host: the large problems are right too. */
static inline void spot_check(const char *subject, const mb_moe_backward_weights_args *args,
                              const int32_t *offsets, const int32_t *index) {
    for (int32_t e = 0; e < args->n_experts; e += args->n_experts - 1) {
        const int32_t i = (e * 37 + 11) % args->m, j = (e * 101 + 7) % args->n;
        double sum = 0, size = 0;
        for (int64_t r = offsets[e]; r < offsets[e + 1]; r++) {
            const int64_t a_row = args->a_index ? index[r] : r, b_row = args->b_index ? index[r] : r;
            uint16_t a, b;
            CUDA(cudaMemcpy(&a, (const uint16_t *)args->a + a_row * args->m + i, 2, cudaMemcpyDeviceToHost));
            CUDA(cudaMemcpy(&b, (const uint16_t *)args->b + b_row * args->n + j, 2, cudaMemcpyDeviceToHost));
            const uint32_t wide_a = (uint32_t)a << 16, wide_b = (uint32_t)b << 16; /* bf16 */
            float x, y;
            memcpy(&x, &wide_a, sizeof x);
            memcpy(&y, &wide_b, sizeof y);
            sum += (double)x * y;
            size += fabs((double)x * y);
        }
        const int64_t at = ((int64_t)e * args->m + i) * args->n + j;
        float *found = download_rows((const char *)args->out + at * (int64_t)mb_dtype_bytes(args->out_dtype),
                                     1, 1, 1, args->out_dtype);
        if (!(fabs(*found - sum) <= 0x1p-8 * fabs(sum) + 1e-4 * size))
            complain(subject, "an element's distance from the sum in fp64", *found - sum);
        free(found);
    }
}

static inline void print_times_head(void) {
    printf("us, TFLOP/s: T H I E K | dw13 to bf16 | to fp32 | added to fp32 | dw2, the same\n");
}

static inline void time_layer(const layer_shape *s, void *flush) {
    const int64_t n_rows = (int64_t)s->n_tokens * s->top_k, width13 = 2 * s->intermediate;
    int32_t *offsets = (int32_t *)host_allocate(sizeof(int32_t) * (size_t)(s->n_experts + 1));
    int32_t *index = (int32_t *)host_allocate(sizeof(int32_t) * (size_t)n_rows);
    route(s, offsets, index);
    int32_t *offsets_device = (int32_t *)allocate(sizeof(int32_t) * (size_t)(s->n_experts + 1));
    int32_t *index_device = (int32_t *)allocate(sizeof(int32_t) * (size_t)n_rows);
    CUDA(cudaMemcpy(offsets_device, offsets, sizeof(int32_t) * (size_t)(s->n_experts + 1),
                    cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(index_device, index, sizeof(int32_t) * (size_t)n_rows, cudaMemcpyHostToDevice));
    void *tokens = random_values((int64_t)s->n_tokens * s->hidden, MB_BF16, 5, 1);
    void *rows = random_values(n_rows * width13, MB_BF16, 6, 1);
    void *out = allocate(sizeof(float) * (size_t)s->n_experts * (size_t)width13 * (size_t)s->hidden);
    printf("%6d %5d %5d %4d %2d%s", s->n_tokens, s->hidden, s->intermediate, s->n_experts, s->top_k,
           s->is_rounded ? " r" : "  ");
    for (int is_w2 = 0; is_w2 < 2; is_w2++)
        for (int how = 0; how < 3; how++) { /* bf16, fp32, fp32 added */
            mb_moe_backward_weights_args args = {};
            args.a = is_w2 ? tokens : rows;
            args.b = is_w2 ? rows : tokens;
            args.a_index = is_w2 ? index_device : NULL;
            args.b_index = is_w2 ? NULL : index_device;
            args.offsets = offsets_device;
            args.out = out;
            args.n_experts = s->n_experts;
            args.m = is_w2 ? s->hidden : (int32_t)width13;
            args.n = is_w2 ? s->intermediate : s->hidden;
            args.dtype = MB_BF16;
            args.out_dtype = how == 0 ? MB_BF16 : MB_F32;
            args.accumulate = how == 2;
            const double us = time_graph(launch_weights_of, &args, flush);
            printf(" | %7.0f us %4.0f", us, 2e-6 * (double)n_rows * args.m * args.n / us);
            if (how == 0)
                spot_check("times", &args, offsets, index);
            fflush(stdout);
        }
    printf("\n");
    free(offsets);
    free(index);
    CUDA(cudaFree(offsets_device));
    CUDA(cudaFree(index_device));
    CUDA(cudaFree(tokens));
    CUDA(cudaFree(rows));
    CUDA(cudaFree(out));
}

#endif
