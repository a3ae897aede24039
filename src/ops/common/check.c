#include "ops/common/check.h"

#include "base/alloc.h"
#include "base/random.h"
#include "base/status.h"
#include "ops/common/dtype.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>

enum { POISON = 0xff, GUARD = 0xa7, GUARD_BYTES = 64, PIECE = 256 };

double mb_check_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

void mb_check_begin(mb_check *check, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(check->name, sizeof check->name, format, arguments);
    va_end(arguments);
    check->failed = check->is_skipped = 0;
    check->best_seconds = 0;
    check->random = check->seed;
    for (const char *c = check->name; *c; c++)
        check->random = check->random * 0x100000001b3u + (unsigned char)*c;
    check->n_cases++;
}

void mb_check_fail(mb_check *check, const char *format, ...) {
    va_list arguments;
    if (check->is_skipped)
        return;
    fprintf(stderr, "FAIL %s: ", check->name);
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    if (!check->failed)
        check->n_failed++;
    check->failed = 1;
}

void mb_check_ok(mb_check *check, mb_status status) {
    if (check->on_gpu && (status == MB_ERR_ARGUMENT || status == MB_ERR_UNSUPPORTED))
        mb_check_skip(check, mb_last_error());
    else if (status != MB_OK)
        mb_check_fail(check, "the call failed: %s", mb_last_error());
}

void mb_check_skip(mb_check *check, const char *why) {
    if (check->is_skipped)
        return;
    fprintf(check->report ? check->report : stderr, "SKIP %s: %s\n", check->name, why);
    check->n_skipped++;
    check->is_skipped = 1;
}

void mb_check_end(mb_check *check, double flops, double bytes) {
    while (check->buffers) {
        mb_check_buffer *buffer = check->buffers;
        const unsigned char *guard = (const unsigned char *)buffer->memory + buffer->n_bytes;
        for (int i = 0; i < GUARD_BYTES; i++)
            if (guard[i] != GUARD) {
                mb_check_fail(check, "byte %d behind a buffer of %zu bytes was overwritten", i,
                              buffer->n_bytes);
                break;
            }
        check->buffers = buffer->next;
        if (check->release)
            check->release(buffer->memory);
        else
            mb_free_aligned(buffer->memory);
        mb_free(buffer);
    }
    if (check->report && !check->failed && !check->is_skipped)
        fprintf(check->report, "ok   %-72s %10.2f us %8.2f GFLOP/s %8.2f GB/s\n", check->name,
                check->best_seconds * 1e6, flops / check->best_seconds * 1e-9,
                bytes / check->best_seconds * 1e-9);
}

uint64_t mb_check_random(mb_check *check) {
    return mb_random(&check->random);
}

double mb_check_uniform(mb_check *check, double low, double high) {
    return low + (high - low) * ((double)(mb_check_random(check) >> 11) * 0x1p-53);
}

void *mb_check_alloc(mb_check *check, size_t n_bytes) {
    mb_check_buffer *buffer = mb_malloc(sizeof *buffer);
    char *memory =
        check->allocate ? check->allocate(n_bytes + GUARD_BYTES) : mb_malloc_aligned(n_bytes + GUARD_BYTES);
    if (!buffer || !memory) {
        fprintf(stderr, "check: out of memory in %s\n", check->name);
        abort(); /* a test tool, never part of a served request */
    }
    memset(memory, POISON, n_bytes);
    memset(memory + n_bytes, GUARD, GUARD_BYTES);
    *buffer = (mb_check_buffer){check->buffers, n_bytes, memory};
    check->buffers = buffer;
    return memory;
}

void *mb_check_values(mb_check *check, mb_dtype dtype, int64_t n, double low, double high) {
    void *array = mb_check_alloc(check, (size_t)n * mb_dtype_bytes(dtype));
    float values[PIECE];
    for (int64_t i = 0; i < n; i += PIECE) {
        int64_t n_values = n - i < PIECE ? n - i : PIECE;
        for (int64_t j = 0; j < n_values; j++)
            values[j] = (float)mb_check_uniform(check, low, high);
        mb_store_f32(dtype, array, i, n_values, values);
    }
    return array;
}

mb_weight mb_check_weight(mb_check *check, mb_dtype dtype, int64_t count, int64_t rows, int64_t cols) {
    mb_weight weight = {.count = count, .rows = rows, .cols = cols, .dtype = dtype};
    double range = sqrt(3.0 / (double)cols);
    if (dtype != MB_F8_E4M3) {
        weight.data = mb_check_values(check, dtype, count * rows * cols, -range, range);
        return weight;
    }
    weight.scale_rows = rows % MB_F8_BLOCK == 0 ? MB_F8_BLOCK : 32;
    weight.scale_cols = MB_F8_BLOCK;
    int64_t n_scales = count * mb_ceil_div(rows, weight.scale_rows) * mb_f8_blocks(cols);
    weight.scale = mb_check_values(check, MB_F32, n_scales, range / 448, range / 224);
    weight.data = mb_check_values(check, dtype, count * rows * cols, -448, 448);
    return weight;
}

mb_weight mb_check_weight_per_tensor(mb_check *check, int64_t count, int64_t rows, int64_t cols) {
    double range = sqrt(3.0 / (double)cols);
    return (mb_weight){.data = mb_check_values(check, MB_F8_E4M3, count * rows * cols, -448, 448),
                       .scale = mb_check_values(check, MB_F32, count, range / 448, range / 224),
                       .count = count,
                       .rows = rows,
                       .cols = cols,
                       .dtype = MB_F8_E4M3};
}

/* sign, exponent and mantissa taken apart; the highest exponent is special where the type has infinities. */
static double decode(uint32_t bits, int exponent_bits, int mantissa_bits, int has_infinity) {
    uint32_t mantissa = bits & ((1u << mantissa_bits) - 1);
    int exponent = (int)(bits >> mantissa_bits & ((1u << exponent_bits) - 1));
    int bias = (1 << (exponent_bits - 1)) - 1, highest = (1 << exponent_bits) - 1;
    double value;
    if (exponent == highest && has_infinity)
        value = mantissa ? NAN : INFINITY;
    else if (exponent == highest && mantissa == (1u << mantissa_bits) - 1)
        value = NAN;
    else if (exponent == 0)
        value = ldexp(mantissa, 1 - bias - mantissa_bits);
    else
        value = ldexp(1 + ldexp(mantissa, -mantissa_bits), exponent - bias);
    return bits >> (exponent_bits + mantissa_bits) & 1 ? -value : value;
}

/* All values of the narrow types: cases read each of them many times. */
static struct {
    double bf16[1 << 16], f16[1 << 16], f8[1 << 8];
    int is_filled;
} decoded;

static void fill_decoded(void) {
    for (uint32_t bits = 0; bits < 1 << 16; bits++) {
        decoded.bf16[bits] = decode(bits, 8, 7, 1);
        decoded.f16[bits] = decode(bits, 5, 10, 1);
    }
    for (uint32_t bits = 0; bits < 1 << 8; bits++)
        decoded.f8[bits] = decode(bits, 4, 3, 0);
    decoded.is_filled = 1;
}

double mb_check_value(mb_dtype dtype, const void *array, int64_t i) {
    if (!decoded.is_filled)
        fill_decoded();
    switch (dtype) {
    case MB_F32:
        return (double)((const float *)array)[i];
    case MB_BF16:
        return decoded.bf16[((const uint16_t *)array)[i]];
    case MB_F16:
        return decoded.f16[((const uint16_t *)array)[i]];
    case MB_F8_E4M3:
        return decoded.f8[((const uint8_t *)array)[i]];
    case MB_F8_E8M0:
    case MB_F4_E2M1:
        break;
    }
    return NAN;
}

double mb_check_weight_value(const mb_weight *weight, int64_t matrix, int64_t row, int64_t col) {
    double value =
        mb_check_value(weight->dtype, weight->data, (matrix * weight->rows + row) * weight->cols + col);
    if (!weight->scale)
        return value;
    const float *scale = weight->scale;
    if (weight->scale_rows == 0)
        return value * (double)scale[matrix];
    int64_t rows = mb_ceil_div(weight->rows, weight->scale_rows), cols = mb_f8_blocks(weight->cols);
    return value * (double)scale[(matrix * rows + row / weight->scale_rows) * cols + col / MB_F8_BLOCK];
}

double mb_check_round(mb_dtype dtype, double value) {
    int mantissa_bits = dtype == MB_BF16 ? 8 : 11, lowest = dtype == MB_BF16 ? -125 : -13, exponent;
    if (dtype == MB_F32 || value == 0)
        return value;
    frexp(value, &exponent); /* |value| in [0.5, 1) * 2^exponent */
    int step = (exponent < lowest ? lowest : exponent) - mantissa_bits;
    return ldexp(nearbyint(ldexp(value, -step)), step);
}

/* fp8 without scales: off by half a step at most, which is 1/16 of a value, or 2^-10 where values are
 * subnormal, and by what the value was off before it was rounded. */
static void compare_f8(mb_check *check, const char *what, const void *got, const double *expected,
                       int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        double x = mb_check_value(MB_F8_E4M3, got, i), y = fmax(-448, fmin(448, expected[i]));
        if (!(fabs(x - y) <= fmax(fabs(y) / 16, 0x1p-10) + 1e-5 * fmax(1, fabs(y)))) {
            mb_check_fail(check, "%s[%lld] is %f, expected %g", what, (long long)i, x, y);
            return;
        }
    }
}

void mb_check_compare(mb_check *check, const char *what, mb_dtype dtype, const void *got,
                      const double *expected, int64_t n) {
    if (dtype == MB_F8_E4M3) {
        compare_f8(check, what, got, expected, n);
        return;
    }
    double max_error = dtype == MB_F32 ? 5e-6 : dtype == MB_F16 ? 0x1p-10 : 0x1p-7;
    double max_diff = dtype == MB_F32 ? 1e-11 : dtype == MB_F16 ? 1e-6 : 1e-5;
    double error = 0, largest = 0, xx = 0, xy = 0, yy = 0;
    for (int64_t i = 0; i < n; i++) {
        double x = mb_check_value(dtype, got, i), y = expected[i];
        if (isnan(x) || isinf(x)) {
            mb_check_fail(check, "%s[%lld] is %f, expected %g", what, (long long)i, x, y);
            return;
        }
        error = fmax(error, fabs(x - y));
        largest = fmax(largest, fabs(y));
        xx += x * x;
        xy += x * y;
        yy += y * y;
    }
    double diff = xx + yy > 0 ? 1 - 2 * xy / (xx + yy) : 0;
    double scale = fmax(largest, 1e-3); /* below, what matters to a model is the absolute error */
    if (error > max_error * scale || (diff > max_diff && error > max_error * 1e-3))
        mb_check_fail(check, "%s: largest error %.3g of %.3g (bar %.3g), calc_diff %.3g (bar %.3g)", what,
                      error, largest, max_error * scale, diff, max_diff);
}

void mb_check_untouched(mb_check *check, const void *buffer, size_t first, size_t n_bytes) {
    const unsigned char *bytes = buffer;
    for (size_t i = first; i < first + n_bytes; i++)
        if (bytes[i] != POISON) {
            mb_check_fail(check, "byte %zu, which is nobody's, was written", i);
            return;
        }
}

/* Half a step of fp8 is 1/16 of a value, or 2^-10 of the scale where values are subnormal. What the sums were
 * off by, as for fp32, may come on top of it. */
static const char *compare_block(const unsigned char *got, double scale, const double *expected, int64_t n) {
    double largest = 0;
    for (int64_t i = 0; i < n; i++)
        largest = fmax(largest, fabs(expected[i]));
    double expected_scale = largest > 0 ? largest / 448 : 1;
    if (!(fabs(scale - expected_scale) <= 1e-5 * expected_scale))
        return "scale";
    for (int64_t i = 0; i < n; i++) {
        double half_step = fmax(fabs(expected[i]) / 16, scale * 0x1p-10);
        if (!(fabs(mb_check_value(MB_F8_E4M3, got, i) * scale - expected[i]) <= half_step + 2e-5 * largest))
            return "value";
    }
    return NULL;
}

void mb_check_compare_quantised(mb_check *check, const char *what, const unsigned char *got,
                                const float *scales, const double *expected, int64_t n_rows, int64_t n_cols) {
    int64_t n_of_row = mb_f8_blocks(n_cols);
    for (int64_t i = 0; i < n_rows * n_of_row; i++) {
        int64_t row = i / n_of_row, col = i % n_of_row * MB_F8_BLOCK,
                n = n_cols - col < MB_F8_BLOCK ? n_cols - col : MB_F8_BLOCK;
        const char *wrong =
            compare_block(got + row * n_cols + col, (double)scales[i], expected + row * n_cols + col, n);
        if (wrong) {
            mb_check_fail(check, "%s: row %lld, columns from %lld: a %s is wrong (scale %g)", what,
                          (long long)row, (long long)col, wrong, (double)scales[i]);
            return;
        }
    }
}

void mb_check_equal_quantised(mb_check *check, const char *what, const unsigned char *got,
                              const float *scales, mb_dtype dtype, const void *rows, int64_t n_rows,
                              int64_t n_cols) {
    unsigned char expected[MB_F8_BLOCK];
    float values[MB_F8_BLOCK], scale, largest;
    for (int64_t row = 0; row < n_rows; row++)
        for (int64_t col = 0; col < n_cols; col += MB_F8_BLOCK) {
            int64_t first = row * n_cols + col, n = n_cols - col < MB_F8_BLOCK ? n_cols - col : MB_F8_BLOCK;
            mb_load_f32(dtype, rows, first, n, values);
            largest = 0;
            for (int64_t i = 0; i < n; i++)
                largest = fmaxf(largest, fabsf(values[i]));
            scale = largest > 0 ? largest / 448 : 1;
            for (int64_t i = 0; i < n; i++)
                values[i] /= scale;
            mb_store_f32(MB_F8_E4M3, expected, 0, n, values);
            float got_scale = scales[row * mb_f8_blocks(n_cols) + col / MB_F8_BLOCK];
            if (memcmp(&scale, &got_scale, sizeof scale) != 0 ||
                memcmp(expected, got + first, (size_t)n) != 0) {
                mb_check_fail(check, "%s: row %lld, columns from %lld: other bits (scale %g, expected %g)",
                              what, (long long)row, (long long)col, (double)got_scale, (double)scale);
                return;
            }
        }
}
