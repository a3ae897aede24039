/* Which tile runs a shape (ops/moe/experts/pick.c): every row of tiles.def, monotonic, and the largest
 * numbers. */
#include "ops/moe/experts/pick.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

static const mb_moe_family families[] = {MB_MOE_16BIT, MB_MOE_FP8, MB_MOE_TF32};

static void test_families(void **state) {
    (void)state;
    assert_int_equal(mb_moe_family_of(MB_BF16), MB_MOE_16BIT);
    assert_int_equal(mb_moe_family_of(MB_F16), MB_MOE_16BIT);
    assert_int_equal(mb_moe_family_of(MB_F8_E4M3), MB_MOE_FP8);
    assert_int_equal(mb_moe_family_of(MB_F32), MB_MOE_TF32);
}

/* What the kernel takes for granted of a tile. */
static void test_tiles_are_sound(void **state) {
    (void)state;
    for (int i = 0; i < MB_MOE_N_TILES; i++) {
        const mb_moe_tile *t = &mb_moe_tiles[i];
        assert_true(t->weight_rows > 0 && t->weight_rows % 64 == 0);
        assert_true(t->token_step >= 8 && t->max_tokens % t->token_step == 0);
        assert_true(t->box_rows > 0 && t->weight_rows % t->box_rows == 0);
        for (int j = 0; j < i; j++)
            assert_string_not_equal(t->name, mb_moe_tiles[j].name);
    }
}

/* Every tile is picked for some number of rows, of its own family only. */
static void test_every_tile_is_picked(void **state) {
    (void)state;
    int is_picked[MB_MOE_N_TILES] = {0};
    for (int f = 0; f < 3; f++)
        for (int64_t n_rows = 0; n_rows <= 128 * 200; n_rows++) {
            int tile = mb_moe_pick(families[f], n_rows, 128);
            assert_true(tile >= 0 && tile < MB_MOE_N_TILES);
            assert_int_equal(mb_moe_tiles[tile].family, families[f]);
            is_picked[tile] = 1;
        }
    for (int f = 0; f < 3; f++)
        for (int64_t n_rows = 1; n_rows < 2000; n_rows++)
            is_picked[mb_moe_pick_dense(families[f], n_rows, 2048, 132)] = 1;
    for (int i = 0; i < MB_MOE_N_TILES; i++)
        if (!is_picked[i])
            fail_msg("%s is never picked: nothing but tests runs it", mb_moe_tiles[i].name);
}

/* More rows never get a tile of fewer tokens, more experts never one of more. */
static void test_monotonic(void **state) {
    (void)state;
    static const int32_t n_experts[] = {1, 2, 3, 8, 60, 128, 256, 1024, 65536};
    for (int f = 0; f < 3; f++)
        for (int e = 0; e < 9; e++) {
            int32_t before = 0;
            for (int64_t n_rows = 0; n_rows < (int64_t)n_experts[e] * 130 && n_rows < 300000; n_rows++) {
                int32_t now = mb_moe_tiles[mb_moe_pick(families[f], n_rows, n_experts[e])].max_tokens;
                assert_true(now >= before);
                before = now;
                if (e > 0)
                    assert_true(now <=
                                mb_moe_tiles[mb_moe_pick(families[f], n_rows, n_experts[e - 1])].max_tokens);
            }
        }
}

/* The pick and the limits of the choices say the same: sizes of workspaces follow from the limits. */
static void test_limits_of_choices(void **state) {
    (void)state;
    static const int32_t n_experts[] = {1, 7, 128, 1024, 65536};
    for (int f = 0; f < 3; f++)
        for (int e = 0; e < 5; e++) {
            int64_t first = 0;
            for (int choice = 0; choice < MB_MOE_N_CHOICES; choice++) {
                int64_t last = mb_moe_choice_most_rows(families[f], choice, n_experts[e]);
                int tile = mb_moe_choice(families[f], choice);
                assert_true(last >= first);
                assert_int_equal(mb_moe_pick(families[f], first, n_experts[e]), tile);
                assert_int_equal(mb_moe_pick(families[f], last, n_experts[e]), tile);
                first = last == INT64_MAX ? last : last + 1;
            }
            assert_true(first == INT64_MAX);
        }
}

static void test_known_picks(void **state) {
    (void)state;
    static const struct {
        mb_moe_family family;
        int64_t n_tokens;
        const char *name;
    } picks[] = {
        /* E = 128, K = 8: the table of experts/README.md */
        {MB_MOE_16BIT, 1, "w64_t16"},           {MB_MOE_16BIT, 64, "w64_t16"},
        {MB_MOE_16BIT, 256, "w128_t32"},        {MB_MOE_16BIT, 704, "w128_t64"},
        {MB_MOE_16BIT, 1500, "w128_t128"},      {MB_MOE_16BIT, 2048, "w256_t288"},
        {MB_MOE_16BIT, 32768, "w256_t288"},     {MB_MOE_FP8, 1, "fp8_w64_t16"},
        {MB_MOE_FP8, 16, "fp8_w128_t32"},       {MB_MOE_FP8, 704, "fp8_w128_t64"},
        {MB_MOE_FP8, 4096, "fp8_w256_t256"},    {MB_MOE_TF32, 1, "tf32_w64_t16"},
        {MB_MOE_TF32, 32768, "tf32_w128_t128"},
    };
    for (size_t i = 0; i < sizeof picks / sizeof picks[0]; i++)
        assert_string_equal(mb_moe_tiles[mb_moe_pick(picks[i].family, picks[i].n_tokens * 8, 128)].name,
                            picks[i].name);
}

/* Numbers of rows beyond int32, up to the largest, with the most experts. */
static void test_extremes(void **state) {
    (void)state;
    for (int f = 0; f < 3; f++) {
        int largest = mb_moe_choice(families[f], MB_MOE_N_CHOICES - 1);
        assert_int_equal(mb_moe_pick(families[f], INT64_MAX, 1), largest);
        assert_int_equal(mb_moe_pick(families[f], INT64_MAX, INT32_MAX), largest);
        assert_int_equal(mb_moe_pick(families[f], (int64_t)1 << 40, 65536), largest);
        assert_int_equal(mb_moe_pick(families[f], INT32_MAX, INT32_MAX), mb_moe_pick(families[f], 1, 1));
        assert_int_equal(mb_moe_pick(families[f], 0, INT32_MAX), mb_moe_choice(families[f], 0));
        for (int choice = 0; choice < MB_MOE_N_CHOICES; choice++)
            assert_true(mb_moe_choice_most_rows(families[f], choice, INT32_MAX) > 0);
    }
}

/* One group: a tile of the family, on GPUs of any size. */
static void test_dense(void **state) {
    (void)state;
    static const int32_t n_processors[] = {1, 2, 16, 78, 114, 132};
    static const int64_t n_outputs[] = {8, 136, 2048, 5120, 9216, 151936, (int64_t)1 << 24};
    for (int f = 0; f < 3; f++)
        for (int p = 0; p < 6; p++)
            for (int o = 0; o < 7; o++)
                for (int64_t n_rows = 1; n_rows <= INT32_MAX; n_rows += n_rows / 7 + 1) {
                    int tile = mb_moe_pick_dense(families[f], n_rows, n_outputs[o], n_processors[p]);
                    assert_true(tile >= 0 && tile < MB_MOE_N_TILES);
                    assert_int_equal(mb_moe_tiles[tile].family, families[f]);
                    if (n_processors[p] == 1 && n_rows <= MB_MOE_DENSE_ROWS)
                        assert_int_equal(mb_moe_tiles[tile].weight_rows, mb_moe_tiles[tile].box_rows);
                }
}

static void test_known_dense_picks(void **state) {
    (void)state;
    static const struct {
        int64_t n_rows, n_outputs;
        const char *name;
    } picks[] = {
        /* Qwen3-30B-A3B's o and qkv */
        {65, 2048, "w64_t64"},     {256, 2048, "w64_t64"},  {512, 2048, "w128_t64"},
        {1024, 2048, "w128_t128"}, {128, 5120, "w128_t64"}, {512, 5120, "w256_t288"},
        {4096, 5120, "w256_t288"},
    };
    for (size_t i = 0; i < sizeof picks / sizeof picks[0]; i++)
        assert_string_equal(
            mb_moe_tiles[mb_moe_pick_dense(MB_MOE_16BIT, picks[i].n_rows, picks[i].n_outputs, 132)].name,
            picks[i].name);
}

/* One group's plain product: a tile with code for it, rows that fit, at least one column tile a band. */
static void test_dense_plan(void **state) {
    (void)state;
    static const int32_t n_processors[] = {1, 2, 16, 78, 114, 132};
    static const int64_t n_outputs[] = {8, 136, 2048, 5120, 9216, 151936};
    for (int f = 0; f < 2; f++)
        for (int p = 0; p < 6; p++)
            for (int o = 0; o < 6; o++)
                for (int64_t n_rows = 1; n_rows <= INT32_MAX; n_rows += n_rows / 7 + 1) {
                    mb_dense_plan plan =
                        mb_dense_plan_of(families[f], n_rows, n_outputs[o], 2048, n_processors[p]);
                    assert_true(plan.tile >= 0 && plan.tile < MB_MOE_N_TILES);
                    const mb_moe_tile *tile = &mb_moe_tiles[plan.tile];
                    assert_int_equal(tile->family, families[f]);
                    assert_true(tile->max_tokens >= 64);
                    assert_true(tile->weight_rows / tile->box_rows <= n_processors[p]);
                    assert_true(plan.tile_rows > 0 && plan.tile_rows <= tile->max_tokens);
                    assert_int_equal(plan.tile_rows % tile->token_step, 0);
                    assert_true(plan.band >= 1 && plan.band <= 8);
                }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_families),
        cmocka_unit_test(test_tiles_are_sound),
        cmocka_unit_test(test_every_tile_is_picked),
        cmocka_unit_test(test_monotonic),
        cmocka_unit_test(test_limits_of_choices),
        cmocka_unit_test(test_known_picks),
        cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_dense),
        cmocka_unit_test(test_known_dense_picks),
        cmocka_unit_test(test_dense_plan),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
