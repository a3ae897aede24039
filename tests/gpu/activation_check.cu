/*
 * activation_check.cu - every activation, by every way to multiply, on values that ordinary tests never
 * meet: zeros, subnormals, numbers whose square overflows, the largest ones, infinities and NaN. They must
 * give what the C reference gives, which is what PyTorch gives.
 *
 * A grouped GEMM with an a of zeros passes its bias through the activation: row n of the matrix has value n
 * of the table as its bias, gated its up row one of a few factors. The numbers of rows are such that every
 * tile is picked.
 */
#include "kinds.cuh"
#include "ops/moe/moe_sm90.h"
#include "values.cuh"

extern "C" {
#include "ops/common/dtype.h"
#include "ops/moe/ref/activation.h"
}

#include <float.h>

static const float table[] = {
    0.0f,   -0.0f,   1e-45f,  -1e-45f,  1e-39f,   -1e-39f,   FLT_MIN, -FLT_MIN, 1e-30f, -1e-30f,
    1e-10f, -1e-10f, 0.01f,   -0.01f,   0.5f,     -0.5f,     1.0f,    -1.0f,    3.0f,   -3.0f,
    8.0f,   -8.0f,   20.0f,   -20.0f,   88.0f,    -88.0f,    150.0f,  -150.0f,  1e4f,   -1e4f,
    1e10f,  -1e10f,  1.8e19f, -1.8e19f, 0x1p64f,  -0x1p64f,  1.9e19f, -1.9e19f, 1e30f,  -1e30f,
    3e38f,  -3e38f,  FLT_MAX, -FLT_MAX, INFINITY, -INFINITY, NAN,
};
static const float factors[] = {1.0f, -2.0f, 0.25f, 0.0f};
enum {
    N_VALUES = sizeof(table) / sizeof(table[0]),
    N_FACTORS = sizeof(factors) / sizeof(factors[0]),
    K = 256
};
enum { WIDTH = (N_VALUES * N_FACTORS + 15) / 16 * 16 };

static float gate_of(int i) {
    return table[i % N_VALUES];
}
static float up_of(int i) {
    return factors[i / N_VALUES % N_FACTORS];
}

/* Equal but for what the approximations of exp2 and 1/x cost and one rounding to dtype; both NaN; or both so
 * small that the sigmoid's subnormal part decides. */
static int is_close(float found, float expected, mb_dtype dtype) {
    if (isnan(expected) || isnan(found))
        return isnan(expected) && isnan(found);
    if (isinf(expected) || isinf(found))
        return expected == found;
    const float relative = dtype == MB_BF16 ? 0x1p-7f : dtype == MB_F16 ? 0x1p-9f : 3e-5f;
    const float smallest = dtype == MB_F16 ? 0x1p-23f : 3e-36f;
    return fabsf(found - expected) <= relative * fabsf(expected) + smallest;
}

static void check_rows(const char *subject, mb_activation activation, const void *out, int n_rows,
                       mb_dtype dtype) {
    const int gated = mb_activation_is_gated(activation);
    float *found = download_rows(out, n_rows, 1, WIDTH, dtype);
    int n_wrong = 0;
    for (int i = 0; i < WIDTH; i++) {
        const float gate = gate_of(i), up = gated ? up_of(i) : 1.0f;
        float exact, expected;
        unsigned char narrow[4];
        mb_activation_row(activation, 1, &gate, &up, &exact);
        mb_store_f32(dtype, narrow, 0, 1, &exact);
        mb_load_f32(dtype, narrow, 0, 1, &expected);
        for (int row = 0; row < n_rows; row++)
            if (!is_close(found[(int64_t)row * WIDTH + i], expected, dtype) && n_wrong++ < 3)
                printf("%s, activation %d, row %d of %d: of %g (times %g) comes %g, not %g\n", subject,
                       (int)activation, row, n_rows, gate, up, found[(int64_t)row * WIDTH + i], expected);
    }
    if (n_wrong > 0)
        complain(subject, "values of an activation", n_wrong);
    free(found);
}

static void check_kind(const kind *k, mb_dtype out_dtype, int n_rows) {
    const int is_fp8 = k->weights == MB_F8_E4M3, is_block = k == &kinds[FP8_BLOCK];
    char subject[64];
    snprintf(subject, sizeof(subject), "%s to %s", k->name, mb_dtype_name(out_dtype));
    for (int activation = 0; activation < MB_ACT_NONE; activation++) {
        const int gated = mb_activation_is_gated((mb_activation)activation);
        const int64_t b_rows = gated ? 2 * WIDTH : WIDTH, n_blocks = n_scale_blocks(K);
        float *bias = (float *)host_allocate(sizeof(float) * (size_t)b_rows);
        for (int i = 0; i < WIDTH; i++) {
            bias[i] = gate_of(i);
            if (gated)
                bias[WIDTH + i] = up_of(i);
        }
        mb_grouped_gemm_args g = {};
        const size_t element = mb_dtype_bytes(k->weights), a_bytes = (size_t)n_rows * K * element;
        void *a = allocate(a_bytes), *b = allocate((size_t)b_rows * K * element);
        void *out = allocate((size_t)n_rows * WIDTH * mb_dtype_bytes(out_dtype));
        float *bias_on_device = (float *)allocate(sizeof(float) * (size_t)b_rows);
        CUDA(cudaMemset(a, 0, a_bytes));
        CUDA(cudaMemset(b, 0, (size_t)b_rows * K * element));
        CUDA(cudaMemset(out, 0xff, (size_t)n_rows * WIDTH * mb_dtype_bytes(out_dtype)));
        CUDA(cudaMemcpy(bias_on_device, bias, sizeof(float) * (size_t)b_rows, cudaMemcpyHostToDevice));
        g.a = a;
        g.b.data = b;
        g.b.count = 1;
        g.b.rows = b_rows;
        g.b.cols = K;
        g.b.dtype = g.dtype = k->weights;
        if (is_fp8) {
            g.b.scale_rows = g.b.scale_cols = is_block ? SCALE_BLOCK : 0;
            g.a_scale = random_scales(is_block ? n_rows * n_blocks : 1, 1, 1.0f);
            g.b.scale = random_scales(is_block ? (b_rows + 127) / 128 * n_blocks : 1, 2, 1.0f);
        }
        g.bias = bias_on_device;
        g.bias_dtype = MB_F32;
        g.out = out;
        g.out_dtype = out_dtype;
        g.n_rows = n_rows;
        g.activation = (mb_activation)activation;
        g.f32_math = k->math;
        const size_t workspace_bytes = bytes_of(mb_grouped_gemm_sm90_workspace, &g);
        void *workspace = allocate(workspace_bytes);
        MB(mb_grouped_gemm_sm90(&g, workspace, workspace_bytes, NULL));
        CUDA(cudaDeviceSynchronize());
        check_rows(subject, g.activation, out, n_rows, out_dtype);
        const void *all[] = {a, b, out, bias_on_device, workspace, g.a_scale, g.b.scale};
        for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
            CUDA(cudaFree((void *)all[i]));
        free(bias);
    }
}

int main(void) {
    static const int n_rows[] = {1, 3, 12, 40, 90, 200, 300};
    for (int k = 0; k < N_KINDS; k++)
        for (size_t i = 0; i < sizeof(n_rows) / sizeof(n_rows[0]); i++) {
            check_kind(&kinds[k], MB_F32, n_rows[i]);
            if (kinds[k].weights != MB_F32)
                check_kind(&kinds[k], kinds[k].activations, n_rows[i]);
        }
    printf(wrong ? "WRONG: %d\n" : "all right\n", wrong);
    return wrong > 0;
}
