/*
 * Weights that become fp8 while they load, and a KV cache in fp8: the distributions of the demo model's next
 * tokens stay near those without.
 */
#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/generation.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { EVERY = 1000 }; /* few answers, and no bar for their mean */
#else
enum { EVERY = 50 };
#endif

static mb_model *open_demo(const char *quant, const char *kv_dtype) {
    mb_model_options options;
    mb_model_options_init(&options);
    options.quant = quant;
    options.kv_dtype = kv_dtype;
    mb_model *model;
    if (mb_model_open("models/demo", &options, &model) != MB_OK)
        fail_msg("%s", mb_last_error());
    return model;
}

/* Prompts with the reference's answers behind them. */
static size_t conversation_ids(const json_t *row, int32_t *ids) {
    static const char *const keys[] = {"prompt_ids", "hf_ids"};
    size_t n = 0, i;
    json_t *id;
    for (int k = 0; k < 2; k++)
        json_array_foreach(json_object_get(row, keys[k]), i, id) ids[n++] = (int32_t)json_integer_value(id);
    return n;
}

static void keep_distributions(const mb_model *model, mb_session *session, const int32_t *ids, size_t n_ids,
                               generation *g) {
    generation_init(g, model, ids, n_ids, 0);
    generation_keep_logprobs(g, 1);
    generation_run_alone(g, session);
}

typedef struct sums {
    double kl;
    int64_t n, n_same_best;
} sums;

static void add_position(const float *p, const float *q, int32_t vocab, sums *s) {
    double kl = 0;
    int32_t best_p = 0, best_q = 0;
    for (int32_t v = 0; v < vocab; v++) {
        kl += exp((double)p[v]) * ((double)p[v] - (double)q[v]);
        best_p = p[v] > p[best_p] ? v : best_p;
        best_q = q[v] > q[best_q] ? v : best_q;
    }
    s->kl += kl;
    s->n_same_best += best_p == best_q;
    s->n++;
}

/* Mean KL(bf16 weights || these), over the positions of some held-out prompts and their answers. */
static double mean_kl(const char *quant, const char *kv_dtype) {
    mb_model *plain = open_demo(NULL, NULL), *other = open_demo(quant, kv_dtype);
    mb_session *a = session_with(plain, 0, 0, 0, 0), *b = session_with(other, 0, 0, 0, 0);
    mb_model_info info;
    mb_model_get_info(other, &info);
    assert_string_equal(info.weight_dtype, quant ? "fp8_e4m3 (128x128 blocks)" : "bf16");
    assert_string_equal(info.kv_dtype, kv_dtype ? "fp8_e4m3" : "fp32");
    FILE *file = fopen("models/demo/heldout.jsonl", "r");
    assert_non_null(file);
    char *line = NULL;
    size_t capacity = 0, n_lines = 0, n_rows = 0;
    sums s = {0};
    while (getline(&line, &capacity, file) > 0) {
        if (n_lines++ % EVERY)
            continue;
        json_t *row = json_loads(line, 0, NULL);
        assert_non_null(row);
        n_rows++;
        int32_t ids[4096];
        size_t n_ids = conversation_ids(row, ids);
        generation p, q;
        keep_distributions(plain, a, ids, n_ids, &p);
        keep_distributions(other, b, ids, n_ids, &q);
        assert_int_equal(p.n_rows, q.n_rows);
        for (int64_t i = 0; i < p.n_rows; i++)
            add_position(p.rows + i * info.vocab, q.rows + i * info.vocab, info.vocab, &s);
        generation_free(&p);
        generation_free(&q);
        json_decref(row);
    }
    free(line);
    fclose(file);
    print_message(
        "weights %s, KV %s: %lld positions of %zu answers: mean KL %.2e, same best token in %.2f %%\n",
        info.weight_dtype, info.kv_dtype, (long long)s.n, n_rows, s.kl / (double)s.n,
        100 * (double)s.n_same_best / (double)s.n);
    mb_session_close(a);
    mb_session_close(b);
    mb_model_close(plain);
    mb_model_close(other);
    return s.kl / (double)s.n;
}

static void test_fp8_stays_near(void **state) {
    (void)state;
    double both = mean_kl("fp8", "fp8");
    assert_true(both > 0);
    if (EVERY > 50)
        return;
    double weights = mean_kl("fp8", NULL), kv = mean_kl(NULL, "fp8");
    assert_true(weights > 0 && kv > 0);
    assert_true(weights <= 5e-3 && both <= 5e-3);
    assert_true(kv <= 2.5e-3); /* 3.4e-3 when the first layer's cache is fp8 too */
}

static void test_unknown_names_are_refused(void **state) {
    (void)state;
    mb_model_options options;
    mb_model_options_init(&options);
    options.quant = "int4";
    mb_model *model;
    assert_int_equal(mb_model_open("models/demo", &options, &model), MB_ERR_ARGUMENT);
    assert_non_null(strstr(mb_last_error(), "int4"));
    options.quant = NULL;
    options.kv_dtype = "int4";
    assert_int_equal(mb_model_open("models/demo", &options, &model), MB_ERR_ARGUMENT);
    assert_non_null(strstr(mb_last_error(), "kv_dtype"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fp8_stays_near),
        cmocka_unit_test(test_unknown_names_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
