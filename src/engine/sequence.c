#include "engine/sequence.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "grammar/store.h"
#include "model/model.h"

/* ---- Checks ------------------------------------------------------------------------------------------- */

static mb_status check_ids(const char *field, const int32_t *ids, size_t n, int32_t vocab) {
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocab)
            return mb_fail(MB_ERR_ARGUMENT,
                           "request.%s[%zu] is %d, outside of the model's vocabulary [0, %d)", field, i,
                           (int)ids[i], (int)vocab);
    return MB_OK;
}

/* Written so that NaN fails every test. */
static mb_status check_sampling(const mb_sampling *s, int32_t vocab) {
    if (!(s->temperature >= 0 && s->temperature <= FLT_MAX))
        return mb_fail(MB_ERR_ARGUMENT, "request.sampling.temperature is %g; it must be finite and >= 0",
                       (double)s->temperature);
    int draws = s->temperature > 0; /* else the three that cut off the draw's tail are not used */
    if (draws && s->top_k < 0)
        return mb_fail(MB_ERR_ARGUMENT, "request.sampling.top_k is %d; it must be >= 0 (0 is off)",
                       (int)s->top_k);
    if (draws && !(s->top_p >= 0 && s->top_p <= 1))
        return mb_fail(MB_ERR_ARGUMENT, "request.sampling.top_p is %g; it must be in [0, 1] (1 is off)",
                       (double)s->top_p);
    if (draws && !(s->min_p >= 0 && s->min_p <= 1))
        return mb_fail(MB_ERR_ARGUMENT, "request.sampling.min_p is %g; it must be in [0, 1] (0 is off)",
                       (double)s->min_p);
    if (!(s->repetition_penalty > 0 && s->repetition_penalty <= FLT_MAX))
        return mb_fail(MB_ERR_ARGUMENT,
                       "request.sampling.repetition_penalty is %g; it must be finite and > 0 (1 is off)",
                       (double)s->repetition_penalty);
    if (!(s->presence_penalty >= -2 && s->presence_penalty <= 2))
        return mb_fail(MB_ERR_ARGUMENT, "request.sampling.presence_penalty is %g; it must be in [-2, 2]",
                       (double)s->presence_penalty);
    if (!(s->frequency_penalty >= -2 && s->frequency_penalty <= 2))
        return mb_fail(MB_ERR_ARGUMENT, "request.sampling.frequency_penalty is %g; it must be in [-2, 2]",
                       (double)s->frequency_penalty);
    if (s->n_logit_bias < 0 || s->n_logit_bias > MB_MAX_LOGIT_BIAS || (s->n_logit_bias && !s->logit_bias))
        return mb_fail(MB_ERR_ARGUMENT,
                       "request.sampling.n_logit_bias is %d (logit_bias %s NULL); it must be "
                       "in [0, %d]",
                       (int)s->n_logit_bias, s->logit_bias ? "is not" : "is", (int)MB_MAX_LOGIT_BIAS);
    for (int32_t i = 0; i < s->n_logit_bias; i++) {
        MB_TRY(check_ids("sampling.logit_bias", &s->logit_bias[i].id, 1, vocab));
        if (!(s->logit_bias[i].bias <= FLT_MAX)) /* minus infinity is allowed: it bans the token */
            return mb_fail(MB_ERR_ARGUMENT,
                           "request.sampling.logit_bias[%d] is %g; it must be a finite number", (int)i,
                           (double)s->logit_bias[i].bias);
    }
    return MB_OK;
}

static int32_t n_model_stops(const mb_model *model, const mb_request *request) {
    return request->ignore_eos ? 0 : model->generation.n_eos_ids;
}

/* Stop ids that a bias keeps away until min_new_tokens. */
static int64_t n_bans(const mb_model *model, const mb_request *request) {
    return request->min_new_tokens > 0 ? (int64_t)request->n_stop_ids + n_model_stops(model, request) : 0;
}

static mb_status check_request(const mb_model *model, const mb_request *request) {
    int32_t vocab = model->config.vocab;
    int64_t max_positions = model->config.max_positions;
    if (!request->ids || request->n_ids == 0)
        return mb_fail(MB_ERR_ARGUMENT, "request.ids is empty; a prompt needs at least one token");
    if (request->max_new_tokens < 0)
        return mb_fail(MB_ERR_ARGUMENT, "request.max_new_tokens is %" PRId64 "; it must be >= 0",
                       request->max_new_tokens);
    if (request->n_ids > (uint64_t)max_positions ||
        request->max_new_tokens > max_positions - (int64_t)request->n_ids)
        return mb_fail(MB_ERR_CAPACITY,
                       "a prompt of %zu tokens and max_new_tokens %" PRId64 " do not fit the model's %" PRId64
                       " positions; shorten the prompt or ask for fewer",
                       request->n_ids, request->max_new_tokens, max_positions);
    if (request->min_new_tokens < 0 || request->min_new_tokens > request->max_new_tokens)
        return mb_fail(MB_ERR_ARGUMENT,
                       "request.min_new_tokens is %" PRId64 "; it must be in [0, %" PRId64
                       "], which is max_new_tokens",
                       request->min_new_tokens, request->max_new_tokens);
    if (request->n_stop_ids < 0 || (request->n_stop_ids > 0 && !request->stop_ids))
        return mb_fail(MB_ERR_ARGUMENT, "request.n_stop_ids is %d (stop_ids %s NULL)",
                       (int)request->n_stop_ids, request->stop_ids ? "is not" : "is");
    if (request->prompt_logprobs && !request->on_logprobs)
        return mb_fail(MB_ERR_ARGUMENT, "request.prompt_logprobs is set but request.on_logprobs is NULL");
    if (request->grammar && !mb_grammar_store_has(model->grammars, request->grammar))
        return mb_fail(MB_ERR_ARGUMENT,
                       "request.grammar was compiled for another model; compile it for this one");
    MB_TRY(check_ids("ids", request->ids, request->n_ids, vocab));
    MB_TRY(check_ids("stop_ids", request->stop_ids, (size_t)request->n_stop_ids, vocab));
    MB_TRY(check_sampling(&request->sampling, vocab));
    if (request->sampling.n_logit_bias + n_bans(model, request) > MB_MAX_LOGIT_BIAS)
        return mb_fail(MB_ERR_ARGUMENT,
                       "request.min_new_tokens keeps %" PRId64
                       " stop ids away, which with %d logit_bias is more than %d; "
                       "give fewer of them",
                       n_bans(model, request), (int)request->sampling.n_logit_bias, (int)MB_MAX_LOGIT_BIAS);
    return MB_OK;
}

/* ---- Life --------------------------------------------------------------------------------------------- */

typedef struct pieces {
    mb_sequence *sequence;
    int32_t *ids, *stop_ids, *bias_ids;
    float *logprobs, *biases;
} pieces;

static int uses_penalties(const mb_sampling *sampling) {
    return sampling->repetition_penalty != 1 || sampling->presence_penalty != 0 ||
           sampling->frequency_penalty != 0;
}

static pieces cut(mb_arena *arena, const mb_model *model, const mb_request *request) {
    pieces p = {0};
    size_t n_new = (size_t)request->max_new_tokens, n_tokens = request->n_ids + n_new;
    p.sequence = mb_arena_push(arena, 1, sizeof *p.sequence);
    p.ids = mb_arena_push(arena, n_tokens, sizeof *p.ids);
    p.logprobs = mb_arena_push(arena, n_new, sizeof *p.logprobs);
    p.stop_ids = mb_arena_push(arena, (size_t)request->n_stop_ids + (size_t)n_model_stops(model, request),
                               sizeof *p.stop_ids);
    size_t n_bias = (size_t)request->sampling.n_logit_bias + (size_t)n_bans(model, request);
    p.bias_ids = mb_arena_push(arena, n_bias, sizeof *p.bias_ids);
    p.biases = mb_arena_push(arena, n_bias, sizeof *p.biases);
    return p;
}

static void add_bias(mb_sequence *s, int32_t id, float bias) {
    s->bias_ids[s->n_bias] = id;
    s->biases[s->n_bias++] = bias;
}

mb_status mb_sequence_create(const mb_model *model, const mb_request *request, mb_sequence **sequence) {
    *sequence = NULL;
    MB_TRY(check_request(model, request));
    mb_arena arena;
    mb_arena_measure(&arena);
    cut(&arena, model, request);
    size_t n_bytes = arena.used;
    void *memory = arena.overflowed ? NULL : mb_malloc(n_bytes);
    if (!memory)
        return mb_fail(MB_ERR_MEMORY, "no memory for a request of %zu prompt and %" PRId64 " new tokens",
                       request->n_ids, request->max_new_tokens);
    mb_arena_init(&arena, memory, n_bytes, 1);
    pieces p = cut(&arena, model, request);

    mb_sequence *s = p.sequence;
    *s = (mb_sequence){.state = MB_WAITING,
                       .n_prompt = (int64_t)request->n_ids,
                       .ids = p.ids,
                       .logprobs = p.logprobs,
                       .sampling = request->sampling,
                       .has_penalties = uses_penalties(&request->sampling),
                       .bias_ids = p.bias_ids,
                       .biases = p.biases,
                       .min_new_tokens = request->min_new_tokens,
                       .stop_ids = p.stop_ids,
                       .waiter_user = request->waiter_user,
                       .on_logprobs = request->on_logprobs,
                       .on_logprobs_user = request->on_logprobs_user};
    s->job = (mb_job){.ids = s->ids,
                      .n_tokens = s->n_prompt,
                      .priority = request->priority,
                      .cache_salt = request->cache_salt,
                      .max_tokens = s->n_prompt + request->max_new_tokens,
                      .all_logits = request->prompt_logprobs,
                      .table = -1};
    memcpy(s->ids, request->ids, request->n_ids * sizeof *s->ids);
    for (int32_t i = 0; i < n_model_stops(model, request); i++)
        s->stop_ids[s->n_stop_ids++] = model->generation.eos_ids[i];
    for (int32_t i = 0; i < request->n_stop_ids; i++)
        s->stop_ids[s->n_stop_ids++] = request->stop_ids[i];
    for (int32_t i = 0; i < request->sampling.n_logit_bias; i++)
        add_bias(s, request->sampling.logit_bias[i].id, request->sampling.logit_bias[i].bias);
    for (int64_t i = 0; i < n_bans(model, request); i++)
        add_bias(s, s->stop_ids[i], -INFINITY);
    s->job.awaits_token = request->grammar != NULL; /* the mask of a draw depends on the token before */
    if (request->grammar) {
        mb_grammar_start start = request->grammar_after_think ? MB_GRAMMAR_AFTER_THINK : MB_GRAMMAR_AT_ONCE;
        mb_status status = mb_grammar_state_open(request->grammar, start, &s->grammar);
        if (status != MB_OK) {
            mb_sequence_destroy(s);
            return status;
        }
    }
    *sequence = s;
    return MB_OK;
}

void mb_sequence_destroy(mb_sequence *sequence) {
    mb_grammar_state_close(sequence->grammar);
    mb_free(sequence); /* the first piece of its block */
}

mb_sequence *mb_sequence_of(mb_job *job) {
    return (mb_sequence *)job;
}

int32_t mb_sequence_n_bias(const mb_sequence *sequence, int64_t position) {
    int has_bans = position - sequence->n_prompt < sequence->min_new_tokens;
    return has_bans ? sequence->n_bias : sequence->sampling.n_logit_bias;
}

void mb_sequence_mask(mb_sequence *sequence, uint32_t *bits, size_t n_words) {
    if (mb_grammar_mask(sequence->grammar, bits, n_words) != MB_OK) {
        mb_log(MB_LOG_WARN, "sequence %" PRIu64 ": %s", sequence->id, mb_last_error());
        memset(bits, 0, n_words * sizeof *bits);
    } else if (mb_grammar_can_end(sequence->grammar)) {
        for (int32_t i = 0; i < sequence->n_stop_ids; i++)
            bits[sequence->stop_ids[i] / 32] |= 1u << (sequence->stop_ids[i] % 32);
    }
}

void mb_sequence_fail(mb_sequence *sequence, mb_status status, const char *sentence) {
    sequence->state = MB_FAILED;
    sequence->failure = status;
    snprintf(sequence->failure_sentence, sizeof sequence->failure_sentence, "%s", sentence);
}

static int is_allowed(const uint32_t *mask, int32_t id) {
    return !mask || (mask[id / 32] >> (id % 32) & 1);
}

/* The biases of the last draw ban the token. */
static int is_banned(const mb_sequence *sequence, int32_t id) {
    int32_t n_bias = mb_sequence_n_bias(sequence, sequence->job.n_tokens);
    for (int32_t i = 0; i < n_bias; i++)
        if (sequence->bias_ids[i] == id && sequence->biases[i] == -INFINITY)
            return 1;
    return 0;
}

void mb_sequence_fail_draw(mb_sequence *sequence, const uint32_t *mask, int32_t vocab) {
    int32_t n_allowed = 0, n_left = 0;
    for (int32_t id = 0; id < vocab && n_left == 0; id++) {
        int allows = is_allowed(mask, id);
        n_allowed += allows;
        n_left += allows && !is_banned(sequence, id);
    }
    if (n_left > 0)
        mb_sequence_fail(sequence, MB_ERR_NUMERIC, "the model's logits are not numbers; check its weights");
    else if (n_allowed == 0)
        mb_sequence_fail(sequence, MB_ERR_ARGUMENT,
                         "the request forbids every token: the format of the answer allows none here");
    else
        mb_sequence_fail(sequence, MB_ERR_ARGUMENT,
                         mask ? "the request forbids every token: those that the format of the answer allows "
                                "here are banned by logit_bias, or as stop tokens before the least length"
                              : "the request forbids every token: all are banned by logit_bias, or as stop "
                                "tokens before the least length");
    mb_log(MB_LOG_WARN, "sequence %" PRIu64 ": %s", sequence->id, sequence->failure_sentence);
}

/* Follows the grammar; the answer may be complete then, or lost. */
static void follow_grammar(mb_sequence *sequence, int32_t id) {
    if (mb_grammar_advance(sequence->grammar, id) != MB_OK) {
        mb_sequence_fail(sequence, MB_ERR_ARGUMENT, mb_last_error());
        mb_log(MB_LOG_WARN, "sequence %" PRIu64 ": %s", sequence->id, sequence->failure_sentence);
    } else if (mb_grammar_is_finished(sequence->grammar)) {
        sequence->state = MB_FINISHED_STOP;
    }
}

void mb_sequence_take(mb_sequence *sequence, int32_t id, float logprob) {
    for (int32_t i = 0; i < sequence->n_stop_ids; i++)
        if (sequence->stop_ids[i] == id) {
            sequence->state = MB_FINISHED_STOP;
            return;
        }
    sequence->logprobs[sequence->job.n_tokens - sequence->n_prompt] = logprob;
    sequence->ids[sequence->job.n_tokens++] = id;
    if (sequence->job.n_tokens == sequence->job.max_tokens)
        sequence->state = MB_FINISHED_LENGTH;
    if (sequence->grammar)
        follow_grammar(sequence, id);
}
