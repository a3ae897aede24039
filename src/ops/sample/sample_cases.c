#include "ops/common/check.h"
#include "ops/sample/philox.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct token {
    double logit;
    int32_t id;
} token;

static int compare_tokens(const void *a, const void *b) {
    const token *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->id - y->id;
}

static int compare_ids(const void *a, const void *b) {
    return ((const token *)a)->id - ((const token *)b)->id;
}

/* How many of the sorted tokens top_k, top_p and min_p keep, one filter after the other, each on the
 * renormalised probabilities of what the one before left. */
static int32_t count_kept(const mb_sample_row *row, const token *sorted, int32_t n) {
    double total = 0, cumulative = 0, best = exp(sorted[0].logit / (double)row->temperature);
    if (row->top_k > 0 && row->top_k < n)
        n = row->top_k;
    for (int32_t i = 0; i < n; i++)
        total += exp(sorted[i].logit / (double)row->temperature);
    if (row->top_p < 1)
        for (int32_t i = 0; i < n; i++) {
            cumulative += exp(sorted[i].logit / (double)row->temperature) / total;
            if (cumulative >= (double)row->top_p)
                n = i + 1;
        }
    while (n > 1 && exp(sorted[n - 1].logit / (double)row->temperature) < (double)row->min_p * best)
        n--;
    return n;
}

/* seen: as it was before the draw. */
static int32_t expect_id(const mb_sample_row *row, const int32_t *seen, const float *logits, int32_t vocab,
                         token *tokens) {
    for (int32_t i = 0; i < vocab; i++)
        tokens[i] = (token){(double)logits[i], i};
    for (int32_t i = 0; seen && i < vocab; i++) {
        double *logit = &tokens[i].logit, penalty = (double)row->repetition_penalty;
        if (seen[i] > 0)
            *logit = *logit > 0 ? *logit / penalty : *logit * penalty;
        if (seen[i] > 1)
            *logit -= (double)row->presence_penalty + (double)row->frequency_penalty * (seen[i] >> 1);
    }
    for (int32_t i = 0; i < row->n_bias; i++)
        tokens[row->bias_ids[i]].logit += (double)row->biases[i];
    for (int32_t i = 0; row->allowed && i < vocab; i++)
        if (!(row->allowed[i / 32] >> (i % 32) & 1))
            tokens[i].logit = -INFINITY;
    qsort(tokens, (size_t)vocab, sizeof *tokens, compare_tokens);
    if (row->temperature == 0)
        return tokens[0].id;
    int32_t n = count_kept(row, tokens, vocab), i = 0;
    qsort(tokens, (size_t)n, sizeof *tokens, compare_ids);
    double total = 0, cumulative = 0;
    for (i = 0; i < n; i++)
        total += exp(tokens[i].logit / (double)row->temperature);
    double target = mb_philox_uniform(row->seed, row->position) * total;
    for (i = 0; i < n - 1; i++) {
        cumulative += exp(tokens[i].logit / (double)row->temperature);
        if (cumulative > target)
            break;
    }
    return tokens[i].id;
}

static void expect_log_softmax(const float *logits, int32_t vocab, double *out) {
    double total = 0;
    for (int32_t i = 0; i < vocab; i++)
        total += exp((double)logits[i]);
    for (int32_t i = 0; i < vocab; i++)
        out[i] = (double)logits[i] - log(total);
}

/* From few tokens to most; token `one` is allowed. */
static uint32_t *random_mask(mb_check *check, int32_t vocab, int32_t index, int32_t one) {
    size_t n_words = ((size_t)vocab + 31) / 32;
    uint32_t *mask = mb_check_alloc(check, n_words * sizeof *mask);
    for (size_t i = 0; i < n_words; i++) {
        mask[i] = (uint32_t)mb_check_random(check);
        for (int32_t k = index % 3; k > 0; k--)
            mask[i] = index % 2 ? mask[i] | (uint32_t)mb_check_random(check)
                                : mask[i] & (uint32_t)mb_check_random(check);
    }
    mask[one / 32] |= 1u << (one % 32);
    return mask;
}

/* Every row asks for something else: all the filters in many combinations, with and without penalties. seen
 * NULL: no penalties. */
static mb_sample_row random_row(mb_check *check, int32_t vocab, int32_t index, int32_t *seen) {
    static const float temperatures[] = {0, 1, 0.6f, 2}, top_ps[] = {1, 0.95f, 0.3f, 0}, min_ps[] = {0, 0.1f};
    static const int32_t top_ks[] = {0, 1, 20, 1 << 20};
    mb_sample_row row = {
        .temperature = temperatures[index % 4],
        .top_k = top_ks[index / 4 % 4],
        .top_p = top_ps[index / 16 % 4],
        .min_p = min_ps[index / 64 % 2],
        .repetition_penalty = index % 3 == 0 ? 1.3f : 1,
        .presence_penalty = index % 3 == 1 ? 0.7f : 0,
        .frequency_penalty = index % 5 == 2 ? -0.4f : 0,
        .seed = mb_check_random(check),
        .position = mb_check_random(check) >> (index % 60),
    };
    int32_t n = vocab < 9 ? vocab : 9, stride = vocab / n;
    int32_t *ids = mb_check_alloc(check, (size_t)n * sizeof *ids);
    for (int32_t i = 0; seen && i < vocab; i++)
        seen[i] = 0;
    for (int32_t i = 0; i < n; i++) {
        ids[i] = i * stride;
        if (seen) /* in the prompt alone, in the answer alone, in both */
            seen[ids[i]] = 1 + (int32_t)(mb_check_random(check) % 7);
    }
    row.bias_ids = ids;
    row.seen = seen;
    row.n_bias = index % 7 == 3 ? n : 0;
    row.biases = mb_check_values(check, MB_F32, n, -5, 5);
    row.allowed = index % 5 == 1
                      ? random_mask(check, vocab, index, (int32_t)(mb_check_random(check) % (uint64_t)vocab))
                      : NULL;
    return row;
}

/* Samples from the same counts each time. */
static mb_status sample_again(mb_check *check, const mb_sample_args *args, void *workspace,
                              size_t workspace_bytes, int32_t *seen, const int32_t *seen_before,
                              size_t seen_bytes) {
    memcpy(seen, seen_before, seen_bytes);
    return check->ops->sample(args, workspace, workspace_bytes, check->stream);
}

static void check_sample(mb_check *check, int32_t n_rows, int32_t vocab, double spread) {
    mb_check_begin(check, "sample rows=%d V=%d spread=%g", n_rows, vocab, spread);
    size_t n = (size_t)n_rows;
    mb_sample_row *rows = mb_check_alloc(check, n * sizeof *rows);
    token *tokens = mb_check_alloc(check, (size_t)vocab * sizeof *tokens);
    double *all = mb_check_alloc(check, (size_t)vocab * sizeof *all);
    double *expected = mb_check_alloc(check, n * sizeof *expected);
    mb_sample_args args = {
        .logits = mb_check_values(check, MB_F32, (int64_t)n_rows * vocab, -spread, spread),
        .rows = rows,
        .ids = mb_check_alloc(check, n * sizeof(int32_t)),
        .logprobs = mb_check_alloc(check, n * sizeof(float)),
        .n_rows = n_rows,
        .vocab = vocab,
    };
    size_t row_ints = (size_t)vocab, seen_bytes = n * row_ints * sizeof(int32_t);
    int32_t *seen = mb_check_alloc(check, seen_bytes), *seen_before = mb_check_alloc(check, seen_bytes);
    for (int32_t r = 0; r < n_rows; r++)
        rows[r] = random_row(check, vocab, r, r % 4 == 3 ? NULL : seen + (size_t)r * row_ints);
    memcpy(seen_before, seen, seen_bytes);
    size_t workspace_bytes = 0;
    mb_check_ok(check, check->ops->sample_workspace(&args, &workspace_bytes));
    void *workspace = mb_check_alloc(check, workspace_bytes);
    MB_CHECK_CALL(check,
                  sample_again(check, &args, workspace, workspace_bytes, seen, seen_before, seen_bytes));
    for (int32_t r = 0; r < n_rows; r++) {
        const float *logits = args.logits + (int64_t)r * vocab;
        int32_t *before = rows[r].seen ? seen_before + (size_t)r * row_ints : NULL;
        int32_t id = expect_id(&rows[r], before, logits, vocab, tokens);
        expect_log_softmax(logits, vocab, all);
        expected[r] = all[id];
        if (args.ids[r] != id)
            mb_check_fail(check, "ids[%d] is %d, expected %d", r, args.ids[r], id);
        if (before)
            before[id] += 2;
    }
    if (memcmp(seen, seen_before, seen_bytes) != 0)
        mb_check_fail(check, "seen is not what it was and the drawn tokens");
    mb_check_compare(check, "logprobs", MB_F32, args.logprobs, expected, n_rows);
    mb_check_end(check, 0, (double)n_rows * vocab * sizeof(float));
}

/* An infinite temperature: all that is allowed is as likely, the rest is not drawn. */
static void check_infinite_temperature(mb_check *check) {
    enum { ROWS = 3, VOCAB = 70 };
    mb_check_begin(check, "sample rows=%d V=%d temperature=inf", ROWS, VOCAB);
    mb_sample_row *rows = mb_check_alloc(check, ROWS * sizeof *rows);
    uint32_t *allowed = mb_check_alloc(check, (VOCAB + 31) / 32 * sizeof *allowed);
    mb_sample_args args = {
        .logits = mb_check_values(check, MB_F32, (int64_t)ROWS * VOCAB, -5, 5),
        .rows = rows,
        .ids = mb_check_alloc(check, ROWS * sizeof(int32_t)),
        .logprobs = mb_check_alloc(check, ROWS * sizeof(float)),
        .n_rows = ROWS,
        .vocab = VOCAB,
    };
    memset(allowed, 0, (VOCAB + 31) / 32 * sizeof *allowed);
    allowed[0] = 1u << 2;
    for (int32_t r = 0; r < ROWS; r++) /* one without filters, one with top_p, one with top_k and top_p */
        rows[r] = (mb_sample_row){.temperature = INFINITY,
                                  .top_p = r == 0 ? 1 : 0.9f,
                                  .top_k = r == 2 ? 3 : 0,
                                  .repetition_penalty = 1,
                                  .seed = (uint64_t)r,
                                  .allowed = allowed};
    size_t workspace_bytes = 0;
    mb_check_ok(check, check->ops->sample_workspace(&args, &workspace_bytes));
    void *workspace = mb_check_alloc(check, workspace_bytes);
    MB_CHECK_CALL(check, check->ops->sample(&args, workspace, workspace_bytes, check->stream));
    for (int32_t r = 0; r < ROWS; r++)
        if (args.ids[r] != 2)
            mb_check_fail(check, "ids[%d] is %d, but only token 2 is allowed", r, args.ids[r]);
    mb_check_end(check, 0, (double)ROWS * VOCAB * sizeof(float));
}

static void check_log_softmax(mb_check *check, int32_t n_rows, int32_t vocab, int in_place) {
    mb_check_begin(check, "log_softmax rows=%d V=%d%s", n_rows, vocab, in_place ? " in place" : "");
    int64_t n = (int64_t)n_rows * vocab;
    float *logits = mb_check_values(check, MB_F32, n, -20, 20);
    double *expected = mb_check_alloc(check, (size_t)n * sizeof *expected);
    mb_log_softmax_args args = {
        .logits = logits,
        .out = in_place ? logits : mb_check_alloc(check, (size_t)n * sizeof *logits),
        .n_rows = n_rows,
        .vocab = vocab,
    };
    for (int32_t r = 0; r < n_rows; r++)
        expect_log_softmax(logits + (int64_t)r * vocab, vocab, expected + (int64_t)r * vocab);
    /* in place, doing it again changes nothing but roundings */
    MB_CHECK_CALL(check, check->ops->log_softmax(&args, check->stream));
    mb_check_compare(check, "out", MB_F32, args.out, expected, n);
    mb_check_end(check, 0, 2.0 * (double)n * sizeof(float));
}

static void check_count_tokens(mb_check *check, int64_t n_ids, int64_t n_prompt, int32_t vocab) {
    mb_check_begin(check, "count_tokens n=%lld, %lld in the prompt, V=%d", (long long)n_ids,
                   (long long)n_prompt, vocab);
    int32_t *ids = mb_check_alloc(check, (size_t)n_ids * sizeof *ids);
    int32_t *expected = mb_check_alloc(check, (size_t)vocab * sizeof *expected);
    int32_t *is_in_prompt = mb_check_alloc(check, (size_t)vocab * sizeof *is_in_prompt);
    mb_count_tokens_args args = {.ids = ids,
                                 .seen = mb_check_alloc(check, (size_t)vocab * sizeof *args.seen),
                                 .n_ids = n_ids,
                                 .n_prompt = n_prompt,
                                 .vocab = vocab};
    for (int32_t i = 0; i < vocab; i++)
        expected[i] = is_in_prompt[i] = 0;
    for (int64_t i = 0; i < n_ids; i++) { /* few different ones, and some that are none */
        ids[i] = (int32_t)(mb_check_random(check) % 50) * (vocab / 40 + 1) - 1;
        if (ids[i] < 0 || ids[i] >= vocab)
            continue;
        if (i < n_prompt)
            is_in_prompt[ids[i]] = 1;
        else
            expected[ids[i]] += 2;
    }
    for (int32_t i = 0; i < vocab; i++)
        expected[i] += is_in_prompt[i];
    MB_CHECK_CALL(check, check->ops->count_tokens(&args, check->stream));
    if (memcmp(args.seen, expected, (size_t)vocab * sizeof *expected) != 0)
        mb_check_fail(check, "seen is not what the ids say");
    mb_check_end(check, 0, (double)vocab * sizeof(int32_t));
}

void mb_sample_cases(mb_check *check) {
    static const struct {
        int64_t n_ids, n_prompt;
        int32_t vocab;
    } histories[] = {{0, 0, 1}, {1, 1, 7}, {40, 0, 100}, {3000, 1777, 503}, {5000, 5000, 151936}};
    for (size_t i = 0; i < sizeof histories / sizeof *histories; i++)
        check_count_tokens(check, histories[i].n_ids, histories[i].n_prompt, histories[i].vocab);

    check_infinite_temperature(check);
    static const int32_t shapes[][2] = {{0, 100}, {1, 1}, {128, 7}, {256, 503}, {64, 4096}, {7, 151936}};
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        check_sample(check, shapes[i][0], shapes[i][1], 1);
        check_sample(check, shapes[i][0], shapes[i][1], 12);
        check_log_softmax(check, shapes[i][0], shapes[i][1], 0);
        check_log_softmax(check, shapes[i][0], shapes[i][1], 1);
    }
}
