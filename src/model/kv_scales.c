#include "model/kv_scales.h"

#include <math.h>

#include "base/alloc.h"
#include "ops/common/dtype.h"

static const double F8_MAX = 448, ROUNDED_ROWS = 17.0 / 16;

/* Products with a scale, and with what is left of a score or a sum, stay far from the ends of fp32. */
enum { MOST_EXPONENT = 40 };

typedef struct scale_maker {
    const mb_config *config;
    mb_device *device;
    mb_stream stream;
} scale_maker;

/* ---- Weights in host memory ---------------------------------------------------------------------------- */

static mb_status no_memory(void) {
    return mb_fail(MB_ERR_MEMORY, "no memory for the scales of the KV cache");
}

static mb_status download(const scale_maker *m, const void *from, size_t n_bytes, void **to) {
    *to = mb_malloc(n_bytes);
    if (!*to)
        return no_memory();
    MB_TRY(m->device->download(m->device, *to, from, n_bytes, m->stream));
    return m->device->synchronize(m->device, m->stream);
}

/* The weight's rows from `first` on, or a few more in front: *rows begins with a whole group of scales, at
 * row *n_before of the weight. rows_free also when this fails. */
static mb_status rows_download(const scale_maker *m, const mb_weight *weight, int64_t first,
                               int64_t *n_before, mb_weight *rows) {
    const int64_t group = weight->scale_rows > 0 ? weight->scale_rows : 1, i_group = first / group;
    const size_t row_bytes = (size_t)mb_dtype_row_bytes(weight->dtype, weight->cols);
    void *data = NULL, *scale = NULL;
    *rows = *weight;
    *n_before = i_group * group;
    rows->rows -= *n_before;
    mb_status status = download(m, (const char *)weight->data + (size_t)*n_before * row_bytes,
                                (size_t)rows->rows * row_bytes, &data);
    if (status == MB_OK && weight->scale) {
        const int64_t n_scales = mb_f8_blocks(weight->cols);
        status = download(m, (const float *)weight->scale + i_group * n_scales,
                          (size_t)(mb_ceil_div(rows->rows, group) * n_scales) * sizeof(float), &scale);
    }
    rows->data = data;
    rows->scale = scale;
    return status;
}

static void load_row(const mb_weight *rows, int64_t i, float *values) {
    mb_load_f32(rows->dtype, rows->data, i * rows->cols, rows->cols, values);
    if (!rows->scale)
        return;
    const float *scales = (const float *)rows->scale + i / rows->scale_rows * mb_f8_blocks(rows->cols);
    for (int64_t c = 0; c < rows->cols; c++)
        values[c] *= scales[c / MB_F8_BLOCK];
}

static void rows_free(mb_weight *rows) {
    mb_free((void *)rows->data);
    mb_free((void *)rows->scale);
}

/* A vector as fp32; mb_free. *values is NULL when the model does not have it. */
static mb_status vector_download(const scale_maker *m, const mb_weight *vector, float **values) {
    *values = NULL;
    if (!vector->data)
        return MB_OK;
    mb_weight copy;
    int64_t n_before;
    mb_status status = rows_download(m, vector, 0, &n_before, &copy);
    if (status == MB_OK && !(*values = mb_malloc_array((size_t)vector->cols, sizeof **values)))
        status = no_memory();
    if (status == MB_OK)
        mb_load_f32(copy.dtype, copy.data, 0, copy.cols, *values);
    rows_free(&copy);
    return status;
}

/* ---- Largest values ------------------------------------------------------------------------------------ */

static float scale_of(double largest) {
    int exponent;
    if (!(largest > 0 && isfinite(largest)))
        return 1;
    double fraction = frexp(largest / F8_MAX, &exponent); /* in [0.5, 1) */
    exponent -= fraction == 0.5;
    exponent = exponent < -MOST_EXPONENT  ? -MOST_EXPONENT
               : exponent > MOST_EXPONENT ? MOST_EXPONENT
                                          : exponent;
    return (float)ldexp(1, exponent);
}

static double largest_k(const mb_config *config, const float *norm) {
    float largest = 0;
    for (int32_t i = 0; i < config->head_dim; i++)
        largest = fabsf(norm[i]) > largest || isnan(norm[i]) ? fabsf(norm[i]) : largest;
    return sqrt((double)config->head_dim) * (double)largest * (double)config->rope_scale;
}

/* Of the head whose rows begin at `first`; bias: the head's, NULL: there is none. row: room for one. */
static double largest_v(const mb_config *config, const mb_weight *rows, int64_t first, const float *norm,
                        const float *bias, float *row) {
    double largest = 0;
    for (int32_t d = 0; d < config->head_dim; d++) {
        double squares = 0;
        load_row(rows, first + d, row);
        for (int64_t i = 0; i < rows->cols; i++)
            squares += pow((double)row[i] * (double)norm[i], 2);
        double value = ROUNDED_ROWS * sqrt((double)rows->cols * squares) + (bias ? fabs((double)bias[d]) : 0);
        largest = value > largest || isnan(value) ? value : largest;
    }
    return largest;
}

/* ---- Scales -------------------------------------------------------------------------------------------- */

/* Of one layer: [K and V, n_kv_heads]. */
static mb_status scales_of_layer(const scale_maker *m, const mb_layer_weights *w, float *scales) {
    const mb_config *c = m->config;
    const int64_t first_v = ((int64_t)c->n_heads + c->n_kv_heads) * c->head_dim;
    int64_t n_before;
    float *k_norm = NULL, *input_norm = NULL, *bias = NULL,
          *row = mb_malloc_array((size_t)c->hidden, sizeof *row);
    mb_weight rows = {0};
    mb_status status = row ? vector_download(m, &w->k_norm, &k_norm) : no_memory();
    if (status == MB_OK)
        status = vector_download(m, &w->input_norm, &input_norm);
    if (status == MB_OK)
        status = vector_download(m, &w->qkv_bias, &bias);
    if (status == MB_OK)
        status = rows_download(m, &w->qkv, first_v, &n_before, &rows);
    for (int32_t h = 0; h < c->n_kv_heads && status == MB_OK; h++) {
        scales[h] = scale_of(largest_k(c, k_norm));
        const int64_t first = first_v + (int64_t)h * c->head_dim;
        scales[c->n_kv_heads + h] =
            scale_of(largest_v(c, &rows, first - n_before, input_norm, bias ? bias + first : NULL, row));
    }
    rows_free(&rows);
    mb_free(bias);
    mb_free(input_norm);
    mb_free(k_norm);
    mb_free(row);
    return status;
}

static mb_status make(const scale_maker *m, const mb_weights *weights, size_t n, float **scales) {
    float *found = mb_malloc_array(n, sizeof *found);
    mb_status status = found ? MB_OK : no_memory();
    for (int32_t l = 0; l < weights->n_layers && status == MB_OK; l++)
        status = scales_of_layer(m, &weights->layers[l], found + (size_t)l * (n / (size_t)weights->n_layers));
    if (status == MB_OK)
        status = m->device->allocate(m->device, n * sizeof *found, (void **)scales);
    if (status == MB_OK)
        status = m->device->upload(m->device, *scales, found, n * sizeof *found, m->stream);
    if (status == MB_OK)
        status = m->device->synchronize(m->device, m->stream);
    mb_free(found);
    return status;
}

mb_status mb_kv_scales_make(const mb_config *config, const mb_weights *weights, mb_device *device,
                            float **scales) {
    scale_maker m = {.config = config, .device = device};
    *scales = NULL;
    MB_TRY(device->stream_open(device, &m.stream));
    mb_status status = make(&m, weights, 2 * (size_t)config->n_layers * (size_t)config->n_kv_heads, scales);
    device->stream_close(device, m.stream);
    if (status != MB_OK) {
        device->free(device, *scales);
        *scales = NULL;
    }
    return status;
}
