/*
 * The demo model answers its held-out prompts as well as it does under Hugging Face transformers: in each
 * family no fewer right answers, and the same token ids in all but a handful of rows (the smallest lead of a
 * best token over the second is 2e-5 there, so rounding may decide one).
 *
 * Sanitizer builds take every 20th row, which is some of every family.
 */
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "support/generation.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { EVERY = 100 }; /* whether memory is used well shows in few rows */
#else
enum { EVERY = 1 };
#endif
enum { WAVE = 250, MAX_NEW = 512, MAX_FAMILIES = 16, TEXT = 4096 };

typedef struct family {
    char name[32];
    int n, n_right, n_right_reference;
} family;

typedef struct tally {
    family families[MAX_FAMILIES];
    int n_families, n_rows, n_other_ids;
} tally;

static family *family_of(tally *t, const char *name) {
    for (int i = 0; i < t->n_families; i++)
        if (strcmp(t->families[i].name, name) == 0)
            return &t->families[i];
    assert_in_range(t->n_families, 0, MAX_FAMILIES - 1);
    family *added = &t->families[t->n_families++];
    snprintf(added->name, sizeof added->name, "%s", name);
    return added;
}

static const char *text_of(const json_t *row, const char *key) {
    const char *text = json_string_value(json_object_get(row, key));
    assert_non_null(text);
    return text;
}

/* The prompt's ids are made from its text by our tokenizer, and must be the reference's. */
static void start(const json_t *row, const mb_model *model, generation *g) {
    const char *prompt = text_of(row, "prompt");
    const json_t *expected = json_object_get(row, "prompt_ids");
    int32_t ids[TEXT];
    size_t n_ids;
    assert_int_equal(mb_tokenize(model, prompt, strlen(prompt), 1, ids, TEXT, &n_ids), MB_OK);
    assert_int_equal(n_ids, json_array_size(expected));
    for (size_t i = 0; i < n_ids; i++)
        assert_int_equal(ids[i], json_integer_value(json_array_get(expected, i)));
    generation_init(g, model, ids, n_ids, MAX_NEW);
    g->request.ignore_eos = 0;
}

/* What follows the last </think>, without the newlines around it. */
static void answer_of(const mb_model *model, const generation *g, char answer[TEXT]) {
    mb_decoder *decoder;
    char text[TEXT];
    size_t n = 0;
    assert_int_equal(mb_decoder_open(model, 1, &decoder), MB_OK);
    for (size_t i = 0; i < g->n_tokens; i++) {
        const char *piece;
        size_t n_piece;
        assert_int_equal(mb_decoder_push(decoder, g->tokens[i].id, &piece, &n_piece), MB_OK);
        assert_in_range(n + n_piece, 0, TEXT - 1);
        memcpy(text + n, piece, n_piece);
        n += n_piece;
    }
    mb_decoder_close(decoder);
    text[n] = '\0';
    const char *from = text, *found;
    while ((found = strstr(from, "</think>")))
        from = found + strlen("</think>");
    from += strspn(from, "\n");
    size_t length = strlen(from);
    while (length > 0 && from[length - 1] == '\n')
        length--;
    memcpy(answer, from, length);
    answer[length] = '\0';
}

static void count(const json_t *row, const mb_model *model, const generation *g, tally *t) {
    family *f = family_of(t, text_of(row, "family"));
    const char *right = text_of(row, "expected");
    if (!right[0]) /* stories have no single right answer; all of the reference's were judged right */
        right = text_of(row, "hf_answer");
    char answer[TEXT];
    answer_of(model, g, answer);
    f->n++;
    f->n_right += strcmp(answer, right) == 0;
    f->n_right_reference += json_is_true(json_object_get(row, "hf_correct"));

    const json_t *ids = json_object_get(row, "hf_ids");
    size_t n_ids = json_array_size(ids) - 1; /* the end-of-text token is not delivered */
    int same = g->state == MB_FINISHED_STOP && g->n_tokens == n_ids;
    for (size_t i = 0; same && i < n_ids; i++)
        same = g->tokens[i].id == json_integer_value(json_array_get(ids, i));
    t->n_other_ids += !same;
    t->n_rows++;
}

static void run_wave(json_t **rows, size_t n, const mb_model *model, mb_session *session, tally *t) {
    generation *wave = calloc(n, sizeof *wave);
    assert_non_null(wave);
    for (size_t i = 0; i < n; i++) {
        start(rows[i], model, &wave[i]);
        generation_submit(&wave[i], session);
    }
    generations_run(wave, n, session);
    for (size_t i = 0; i < n; i++) {
        count(rows[i], model, &wave[i], t);
        assert_int_equal(mb_release(session, wave[i].id), MB_OK);
        generation_free(&wave[i]);
        json_decref(rows[i]);
    }
    free(wave);
}

/* Answers every `every`th held-out prompt. */
static tally answer_all(const mb_model_options *options, size_t every) {
    mb_model *model;
    assert_int_equal(mb_model_open("models/demo", options, &model), MB_OK);
    mb_session *session = session_with(model, 32, 0, 0, 32 * 1024);
    FILE *file = fopen("models/demo/heldout.jsonl", "r");
    assert_non_null(file);

    tally t = {.n_families = 0};
    json_t *rows[WAVE];
    size_t n = 0, n_lines = 0;
    char *line = NULL;
    size_t capacity = 0;
    while (getline(&line, &capacity, file) > 0) {
        if (n_lines++ % every)
            continue;
        rows[n] = json_loads(line, 0, NULL);
        assert_non_null(rows[n]);
        if (++n == WAVE) {
            run_wave(rows, n, model, session, &t);
            n = 0;
        }
    }
    run_wave(rows, n, model, session, &t);
    free(line);
    fclose(file);
    assert_session_idle(session);
    mb_session_close(session);
    mb_model_close(model);

    print_message("%-14s %6s %10s %10s\n", "family", "rows", "right", "reference");
    for (int i = 0; i < t.n_families; i++) {
        const family *f = &t.families[i];
        print_message("%-14s %6d %10d %10d\n", f->name, f->n, f->n_right, f->n_right_reference);
    }
    print_message("%d rows, %d with other ids than the reference\n", t.n_rows, t.n_other_ids);
    assert_int_equal(n_lines, 2000);
    return t;
}

static void test_as_accurate_as_the_reference(void **state) {
    (void)state;
    tally t = answer_all(NULL, EVERY);
    for (int i = 0; i < t.n_families; i++)
        assert_true(t.families[i].n_right >= t.families[i].n_right_reference);
    assert_in_range(t.n_other_ids, 0, t.n_rows / 200);
}

/* With fp8 weights stories differ, which have no single right answer; the others stay right. (Of all 1 800,
 * 1 782 are, and 1 783 with the bf16 weights.) */
static void test_fp8_weights(void **state) {
    (void)state;
    mb_model_options options;
    mb_model_options_init(&options);
    options.quant = "fp8";
    tally t = answer_all(&options, EVERY == 1 ? 10 : EVERY);
    int n_wrong = 0;
    for (int i = 0; i < t.n_families; i++)
        if (strcmp(t.families[i].name, "story") != 0)
            n_wrong += t.families[i].n_right_reference - t.families[i].n_right;
    if (EVERY > 1)
        return;
    assert_true(n_wrong <= t.n_rows / 50);
    assert_true(t.n_other_ids > 0); /* the weights are others */
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_as_accurate_as_the_reference),
        cmocka_unit_test(test_fp8_weights),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
