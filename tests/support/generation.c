#include "support/generation.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void *must_allocate(void *pointer, size_t n_bytes) {
    void *grown = realloc(pointer, n_bytes ? n_bytes : 1);
    if (!grown)
        abort(); /* the test's own memory, not the library's */
    return grown;
}

static void keep_row(void *user, int64_t position, const float *logprobs, int32_t vocab) {
    generation *g = user;
    size_t row_floats = (size_t)vocab;
    if (g->n_rows == 0)
        g->first_position = position;
    g->out_of_order |= position != g->first_position + g->n_rows;
    g->rows = must_allocate(g->rows, (size_t)(g->n_rows + 1) * row_floats * sizeof *g->rows);
    memcpy(g->rows + (size_t)g->n_rows++ * row_floats, logprobs, row_floats * sizeof *g->rows);
}

void generation_init(generation *g, const mb_model *model, const int32_t *ids, size_t n_ids,
                     int64_t max_new) {
    memset(g, 0, sizeof *g);
    mb_request_init(model, &g->request);
    int32_t *copy = must_allocate(NULL, n_ids * sizeof *copy);
    memcpy(copy, ids, n_ids * sizeof *copy);
    g->request.ids = copy;
    g->request.n_ids = n_ids;
    g->request.max_new_tokens = max_new;
    g->request.ignore_eos = 1;
    g->request.sampling.temperature = 0;
    g->request.sampling.repetition_penalty = 1;
}

void generation_keep_logprobs(generation *g, int prompt_too) {
    g->request.on_logprobs = keep_row;
    g->request.on_logprobs_user = g;
    g->request.prompt_logprobs = prompt_too;
}

void generation_submit(generation *g, mb_session *session) {
    if (mb_submit(session, &g->request, &g->id) != MB_OK)
        fail_msg("mb_submit: %s", mb_last_error());
}

void generation_read(generation *g, mb_session *session) {
    mb_token tokens[5]; /* small, so that reading in parts is the rule */
    size_t n;
    do {
        if (mb_read(session, g->id, tokens, sizeof tokens / sizeof *tokens, &n, &g->state) != MB_OK)
            fail_msg("mb_read: %s", mb_last_error());
        g->tokens = must_allocate(g->tokens, (g->n_tokens + n) * sizeof *g->tokens);
        memcpy(g->tokens + g->n_tokens, tokens, n * sizeof *tokens);
        g->n_tokens += n;
    } while (n > 0);
}

void generation_free(generation *g) {
    free((void *)g->request.ids);
    free(g->tokens);
    free(g->rows);
    memset(g, 0, sizeof *g);
}

void generations_run(generation *generations, size_t n, mb_session *session) {
    int n_unfinished = 1;
    while (n_unfinished > 0) {
        if (mb_step(session, &n_unfinished) != MB_OK)
            fail_msg("mb_step: %s", mb_last_error());
        for (size_t i = 0; i < n; i++)
            generation_read(&generations[i], session);
    }
}

void generation_run_alone(generation *g, mb_session *session) {
    generation_submit(g, session);
    generations_run(g, 1, session);
    if (mb_release(session, g->id) != MB_OK)
        fail_msg("mb_release: %s", mb_last_error());
}

int generation_same_tokens(const generation *a, const generation *b) {
    return a->n_tokens == b->n_tokens && a->state == b->state &&
           (a->n_tokens == 0 || memcmp(a->tokens, b->tokens, a->n_tokens * sizeof *a->tokens) == 0);
}

mb_session *session_with(mb_model *model, int32_t max_sequences, int32_t max_step_tokens,
                         int32_t prefill_chunk, int64_t kv_tokens) {
    mb_session_options options;
    mb_session_options_init(&options);
    if (max_sequences)
        options.max_sequences = max_sequences;
    if (max_step_tokens)
        options.max_step_tokens = max_step_tokens;
    if (prefill_chunk)
        options.prefill_chunk = prefill_chunk;
    options.kv_tokens = kv_tokens;
    mb_session *session;
    if (mb_session_open(model, &options, &session) != MB_OK)
        fail_msg("mb_session_open: %s", mb_last_error());
    return session;
}

void generation_init_random(generation *g, const mb_model *model, uint64_t seed, int32_t vocab,
                            int32_t avoided, size_t n_ids, int64_t max_new) {
    int32_t *ids = must_allocate(NULL, n_ids * sizeof *ids);
    for (size_t i = 0; i < n_ids; i++)
        do
            ids[i] = (int32_t)(tiny_random(&seed) % (uint64_t)vocab);
        while (ids[i] == avoided);
    generation_init(g, model, ids, n_ids, max_new);
    free(ids);
}

mb_model *tiny_model_open(const tiny_checkpoint *options, const tiny_tensors *tensors) {
    char directory[TINY_PATH];
    tiny_directory_make(directory);
    if (tensors)
        tiny_checkpoint_write_tensors(options, tensors, directory);
    else
        tiny_checkpoint_write(options, directory);
    mb_model *model;
    mb_status status = mb_model_open(directory, &(mb_model_options){.device = "cpu", .n_threads = 1}, &model);
    tiny_directory_remove(directory);
    if (status != MB_OK)
        fail_msg("mb_model_open: %s", mb_last_error());
    return model;
}

mb_session_stats session_stats(mb_session *session) {
    mb_session_stats stats;
    mb_session_get_stats(session, &stats);
    return stats;
}

void assert_session_idle(mb_session *session) {
    mb_session_stats stats = session_stats(session);
    assert_int_equal(stats.kv_blocks_free, stats.kv_blocks_total);
    assert_int_equal(stats.n_waiting, 0);
    assert_int_equal(stats.n_running, 0);
}

void session_step(mb_session *session) {
    if (mb_step(session, NULL) != MB_OK)
        fail_msg("mb_step: %s", mb_last_error());
}
