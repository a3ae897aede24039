#include "server/logprobs.h"

#include "base/alloc.h"

/* The n most probable tokens, the most probable first; of equal ones the smaller id. */
static void find_tops(const float *logprobs, int32_t vocab, server_top *tops, int32_t n) {
    int32_t found = 0;
    for (int32_t id = 0; id < vocab; id++) {
        if (found == n && !(logprobs[id] > tops[n - 1].logprob))
            continue;
        int32_t place = found < n ? found++ : n - 1;
        while (place > 0 && logprobs[id] > tops[place - 1].logprob) {
            tops[place] = tops[place - 1];
            place--;
        }
        tops[place] = (server_top){.id = id, .logprob = logprobs[id]};
    }
}

/* With the run's lock: the row's place. A sequence that was put back into the queue reports positions
 * again, with the same values; the first ones stay, because a writer may be reading them. */
static server_row *place_of(server_answer *answer, int64_t position) {
    size_t i = (size_t)(position - answer->first_row);
    if (mb_grow((void **)&answer->rows, &answer->rows_capacity, i + 1, sizeof *answer->rows) != 0)
        return NULL;
    while (answer->n_rows <= i)
        answer->rows[answer->n_rows++] = (server_row){0};
    return &answer->rows[i];
}

static void fill(const server_answer *answer, int64_t position, const float *logprobs, int32_t vocab,
                 server_row *row) {
    const server_generation *generation = &answer->run->generation;
    int64_t next = position + 1;
    int is_prompt = next < (int64_t)answer->prompt->n_ids;
    int32_t n = is_prompt ? generation->prompt_logprobs : generation->top_logprobs;
    if (n > vocab)
        n = vocab;
    if (is_prompt) {
        row->chosen = logprobs[answer->prompt->ids[next]];
        row->rank = 1;
        for (int32_t id = 0; id < vocab; id++)
            row->rank += logprobs[id] > row->chosen;
    }
    row->tops = n > 0 ? mb_malloc_array((size_t)n, sizeof *row->tops) : NULL;
    row->n_tops = row->tops != NULL ? n : 0;
    if (row->n_tops > 0)
        find_tops(logprobs, vocab, row->tops, row->n_tops);
}

void server_take_row(void *user, int64_t position, const float *logprobs, int32_t vocab) {
    server_answer *answer = user;
    server_row filled = {.is_filled = 1};
    if (position < answer->first_row)
        return;
    fill(answer, position, logprobs, vocab, &filled);
    pthread_mutex_lock(&answer->run->lock);
    server_row *row = place_of(answer, position);
    if (row != NULL && !row->is_filled)
        *row = filled;
    else
        mb_free(filled.tops);
    pthread_mutex_unlock(&answer->run->lock);
}

void server_rows_free(server_answer *answer) {
    for (size_t i = 0; i < answer->n_rows; i++)
        mb_free(answer->rows[i].tops);
    mb_free(answer->rows);
    answer->rows = NULL;
    answer->n_rows = answer->rows_capacity = 0;
}

server_row server_row_at(const server_answer *answer, int64_t position) {
    server_row row = {0};
    int64_t i = position - answer->first_row;
    pthread_mutex_lock(&answer->run->lock);
    if (i >= 0 && (size_t)i < answer->n_rows)
        row = answer->rows[i];
    pthread_mutex_unlock(&answer->run->lock);
    return row;
}
