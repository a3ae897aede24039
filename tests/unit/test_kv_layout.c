/* Unit tests of model/kv_layout.c: no two pieces of a block overlap, and ids lead to them. */
#include "model/kv_layout.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "moebius/layers.h"

enum { ALIGNMENT = 128 };

static size_t bytes_of(mb_dtype dtype) {
    return dtype == MB_F32 ? 4 : dtype == MB_F8_E4M3 ? 1 : 2;
}

/* Marks the pieces of block 1, as an operator finds them: k_cache, v_cache and an id. */
static void check_one(const mb_config *config, mb_dtype dtype, mb_dtype kv_dtype) {
    const mb_kv_layout layout = mb_kv_layout_make(config, dtype, kv_dtype);
    const size_t n_values = (size_t)(config->n_kv_heads * MB_KV_BLOCK * config->head_dim);
    unsigned char *owners = calloc(2, layout.block_bytes);
    size_t n_used = 0, first_piece = n_values * bytes_of(dtype);
    assert_non_null(owners);
    assert_int_equal(mb_kv_layout_first_differs(&layout), dtype != kv_dtype);
    for (int32_t i = 0; i < config->n_layers; i++) {
        const mb_kv_layer layer = mb_kv_layout_layer(&layout, i);
        const size_t piece = n_values * bytes_of(layer.dtype);
        const int32_t id = i == 0 ? layout.first_pieces : layout.pieces; /* of block 1 */
        assert_int_equal(layer.dtype, i == 0 ? dtype : kv_dtype);
        assert_int_equal(layer.v_offset, layer.k_offset + piece);
        const size_t offsets[] = {layer.k_offset, layer.v_offset};
        for (int is_v = 0; is_v < 2; is_v++) {
            const size_t at = offsets[is_v] + (size_t)id * piece;
            assert_int_equal(offsets[is_v] % ALIGNMENT, 0);
            assert_int_equal(piece % ALIGNMENT, 0);
            assert_true(at >= layout.block_bytes && at + piece <= 2 * layout.block_bytes);
            for (size_t k = 0; k < piece; k++)
                assert_int_equal(owners[at + k]++, 0);
            n_used += piece;
        }
    }
    /* What a block has beyond its pieces is there to make it a whole number of the largest ones. */
    assert_true(layout.block_bytes - n_used < first_piece);
    assert_int_equal(layout.block_bytes, (size_t)layout.first_pieces * first_piece);
    assert_int_equal(layout.block_bytes, (size_t)layout.pieces * n_values * bytes_of(kv_dtype));
    assert_int_equal(mb_kv_layout_token_bytes(&layout) * MB_KV_BLOCK, layout.block_bytes);
    free(owners);
}

static void test_pieces_do_not_overlap(void **state) {
    (void)state;
    static const mb_dtype dtypes[] = {MB_F32, MB_BF16, MB_F16};
    static const int32_t layers[] = {1, 2, 3, 4, 5, 48}, heads[] = {1, 4}, dims[] = {2, 16, 34};
    for (int t = 0; t < 3; t++)
        for (int l = 0; l < 6; l++)
            for (int h = 0; h < 2; h++)
                for (int d = 0; d < 3; d++) {
                    const mb_config config = {
                        .n_layers = layers[l], .n_kv_heads = heads[h], .head_dim = dims[d]};
                    check_one(&config, dtypes[t], dtypes[t]);
                    check_one(&config, dtypes[t], MB_F8_E4M3);
                }
}

/* Qwen3-30B-A3B: 1/48 more with an fp8 cache, and nothing is lost to rounding up. */
static void test_sizes(void **state) {
    (void)state;
    const mb_config config = {.n_layers = 48, .n_kv_heads = 4, .head_dim = 128};
    mb_kv_layout layout = mb_kv_layout_make(&config, MB_BF16, MB_BF16);
    assert_int_equal(mb_kv_layout_token_bytes(&layout), 2 * 48 * 4 * 128 * 2);
    assert_int_equal(layout.pieces, 96);
    layout = mb_kv_layout_make(&config, MB_BF16, MB_F8_E4M3);
    assert_int_equal(mb_kv_layout_token_bytes(&layout), 2 * 49 * 4 * 128);
    assert_int_equal(layout.pieces, 98);
    assert_int_equal(layout.first_pieces, 49);
}

static void test_slots(void **state) {
    (void)state;
    assert_int_equal(mb_kv_layout_slot(0, 96), 0);
    assert_int_equal(mb_kv_layout_slot(63, 96), 63);
    assert_int_equal(mb_kv_layout_slot(64, 96), 96 * 64);
    assert_int_equal(mb_kv_layout_slot(3 * 64 + 5, 49), 3 * 49 * 64 + 5);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pieces_do_not_overlap),
        cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_slots),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
