#include "ops/common/cost.h"

double mb_weight_bytes(const mb_weight *weight, double count) {
    double bytes = (double)weight->rows * (double)mb_dtype_row_bytes(weight->dtype, weight->cols);
    if (weight->scale) {
        int64_t scale_rows = weight->scale_rows > 0 ? weight->scale_rows : weight->rows;
        int64_t scale_cols = weight->scale_cols > 0 ? weight->scale_cols : weight->cols;
        int64_t n_scales =
            (weight->rows + scale_rows - 1) / scale_rows * ((weight->cols + scale_cols - 1) / scale_cols);
        bytes += (double)n_scales * (double)mb_dtype_bytes(weight->scale_dtype);
    }
    if (weight->global_scale)
        bytes += sizeof *weight->global_scale;
    return count * bytes;
}

double mb_f8_rows_bytes(double n_rows, int64_t n_cols) {
    return n_rows * (double)(n_cols + (n_cols + MB_F8_BLOCK - 1) / MB_F8_BLOCK * (int64_t)sizeof(float));
}

double mb_product_tflops(mb_dtype activations, mb_dtype weights, mb_f32_math f32_math) {
    if (weights == MB_F8_E4M3)
        return MB_TFLOPS_F8;
    if (activations == weights && weights != MB_F32)
        return MB_TFLOPS_16BIT;
    return f32_math == MB_F32_TF32 ? MB_TFLOPS_TF32 : MB_TFLOPS_F32;
}

double mb_cost_memory_us(const mb_op_cost *cost, double bytes_per_second) {
    return bytes_per_second > 0 ? 1e6 * cost->bytes / bytes_per_second : 0;
}

double mb_cost_compute_us(const mb_op_cost *cost, int n_sms) {
    return n_sms > 0 && cost->flops > 0 ? cost->flops * MB_H100_SMS / (1e6 * cost->tflops * n_sms) : 0;
}
