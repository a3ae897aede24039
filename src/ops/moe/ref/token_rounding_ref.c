#include "base/arena.h"
#include "base/status.h"
#include "ops/common/parallel.h"
#include "ops/common/tensor.h"
#include "ops/common/workspace.h"
#include "ops/moe/ref/ref.h"
#include "ops/moe/ref/softmax_row.h"
#include "ops/moe/rounding_score.h"
#include "ops/moe/routing_arguments.h"
#include "ops/moe/train.h"

#include <inttypes.h>

/*
 * Experts in order; each drops or adds fewer than tile_rows tokens. The next token to drop or to add is found
 * by a look at all tokens: slow beside a sort, and obvious.
 */

typedef struct rounding {
    const mb_moe_token_rounding_args *args;
    double *log_sums; /* [T] */
    double *scores;   /* [T] of the present expert */
    int8_t *states;   /* [T] of the present expert: a token_state */
} rounding;

typedef enum token_state { CHOSEN, CANDIDATE, PASSED_OVER } token_state;

static rounding cut_workspace(const mb_moe_token_rounding_args *args, mb_arena *arena) {
    rounding r = {.args = args};
    r.log_sums = mb_arena_push(arena, (size_t)args->n_tokens, sizeof *r.log_sums);
    r.scores = mb_arena_push(arena, (size_t)args->n_tokens, sizeof *r.scores);
    r.states = mb_arena_push(arena, (size_t)args->n_tokens, sizeof *r.states);
    return r;
}

mb_status mb_moe_token_rounding_ref_workspace(const mb_moe_token_rounding_args *most, size_t *bytes) {
    MB_TRY(mb_moe_token_rounding_check_sizes(most));
    mb_arena arena;
    mb_arena_measure(&arena);
    if (most->n_tokens > 0)
        cut_workspace(most, &arena);
    return mb_workspace_measured("moe_token_rounding", &arena, bytes);
}

/* ---- One expert ---------------------------------------------------------------------------------------- */

static int32_t *find_place(const mb_moe_token_rounding_args *args, int64_t t, int32_t first, int32_t id) {
    int32_t *ids = args->out_ids + t * args->max_choices;
    for (int32_t k = first; k < args->max_choices; k++)
        if (ids[k] == id)
            return ids + k;
    return NULL;
}

static void look_at_token(const rounding *r, int32_t e, int64_t t) {
    const mb_moe_token_rounding_args *args = r->args;
    float logit;
    mb_load_f32(args->logits_dtype, args->logits, t * args->n_experts + e, 1, &logit);
    r->scores[t] = mb_rounding_score(logit, r->log_sums[t]);
    if (find_place(args, t, 0, e))
        r->states[t] = CHOSEN;
    else
        r->states[t] = find_place(args, t, args->top_k, -1) ? CANDIDATE : PASSED_OVER;
}

/* The chosen token of least score, the last of equal ones. */
static int64_t next_to_drop(const rounding *r) {
    int64_t least = -1;
    for (int64_t t = 0; t < r->args->n_tokens; t++)
        if (r->states[t] == CHOSEN && (least < 0 || r->scores[t] <= r->scores[least]))
            least = t;
    return least;
}

/* The candidate of largest score, the first of equal ones. */
static int64_t next_to_add(const rounding *r) {
    int64_t largest = -1;
    for (int64_t t = 0; t < r->args->n_tokens; t++)
        if (r->states[t] == CANDIDATE && (largest < 0 || r->scores[t] > r->scores[largest]))
            largest = t;
    return largest;
}

static int goes_up(mb_rounding mode, int64_t over, int64_t carry, int64_t tile) {
    switch (mode) {
    case MB_ROUNDING_NEAREST:
        return 2 * over >= tile;
    case MB_ROUNDING_UP:
        return 1;
    case MB_ROUNDING_BALANCED:
        return 2 * (over + carry) >= tile;
    default:
        return 0;
    }
}

static void round_expert(const rounding *r, int32_t e, int64_t *carry, mb_moe_rounding_report *report) {
    const mb_moe_token_rounding_args *args = r->args;
    int64_t count = args->counts[e], over = count % args->tile_rows, candidates = 0;
    if (args->rounding == MB_ROUNDING_NONE || over == 0)
        return;
    for (int64_t t = 0; t < args->n_tokens; t++) {
        look_at_token(r, e, t);
        candidates += r->states[t] == CANDIDATE;
    }
    int64_t missing = args->tile_rows - over;
    if (goes_up(args->rounding, over, *carry, args->tile_rows) && candidates >= missing) {
        for (int64_t i = 0; i < missing; i++) {
            int64_t t = next_to_add(r);
            *find_place(args, t, args->top_k, -1) = e;
            r->states[t] = CHOSEN;
        }
        report->added += missing;
        *carry -= missing;
        args->counts[e] = (int32_t)(count + missing);
        return;
    }
    for (int64_t i = 0; i < over; i++) {
        int64_t t = next_to_drop(r);
        *find_place(args, t, 0, e) = -1;
        r->states[t] = PASSED_OVER;
    }
    report->dropped += over;
    *carry += over;
    args->counts[e] = (int32_t)(count - over);
}

/* A choice is one row; the search for rows to drop relies on that. */
static mb_status check_ids_differ(const mb_moe_token_rounding_args *args) {
    for (int64_t t = 0; t < args->n_tokens; t++) {
        const int32_t *ids = args->ids + t * args->top_k;
        for (int32_t k = 1; k < args->top_k; k++)
            for (int32_t j = 0; j < k; j++)
                MB_REQUIRE(ids[k] != ids[j] || ids[k] < 0 || ids[k] >= args->n_experts,
                           "moe_token_rounding: ids of token %" PRId64 " have expert %d twice", t, ids[k]);
    }
    return MB_OK;
}

/* ---- Before and after ---------------------------------------------------------------------------------- */

static void start_token(const void *context, int64_t t) {
    const rounding *r = context;
    const mb_moe_token_rounding_args *args = r->args;
    double logits[MB_SOFTMAX_EXPERTS];
    r->log_sums[t] = mb_logits_row(args->logits_dtype, args->logits, t, args->n_experts, logits);
    for (int32_t k = 0; k < args->max_choices; k++) {
        int32_t id = k < args->top_k ? args->ids[t * args->top_k + k] : -1;
        args->out_ids[t * args->max_choices + k] = id >= 0 && id < args->n_experts ? id : -1;
    }
}

static void weigh_token(const void *context, int64_t t) {
    const rounding *r = context;
    const mb_moe_token_rounding_args *args = r->args;
    const int32_t *ids = args->out_ids + t * args->max_choices;
    float *weights = args->out_weights + t * args->max_choices;
    float logits[MB_SOFTMAX_EXPERTS];
    mb_load_f32(args->logits_dtype, args->logits, t * args->n_experts, args->n_experts, logits);
    mb_silence_nan(args->n_experts, logits);
    mb_route_weights(args->n_experts, logits, args->max_choices, ids,
                     args->order == MB_ROUTE_TOPK_SOFTMAX || args->renormalize, weights);
}

mb_status mb_moe_token_rounding_ref(const mb_moe_token_rounding_args *args, void *workspace,
                                    size_t workspace_bytes, mb_stream stream) {
    size_t needed;
    MB_TRY(mb_moe_token_rounding_check(args));
    MB_TRY(mb_moe_token_rounding_ref_workspace(args, &needed));
    int64_t n_tokens = args->n_tokens, n_choices = n_tokens * args->max_choices;
    MB_TRY(mb_workspace_check("moe_token_rounding", workspace, workspace_bytes, needed));
    MB_TRY(check_ids_differ(args));
    mb_moe_rounding_report report = {0};
    memset(args->counts, 0, (size_t)args->n_experts * sizeof *args->counts);
    if (n_tokens > 0) {
        mb_arena arena;
        mb_arena_init(&arena, workspace, workspace_bytes, 1);
        rounding r = cut_workspace(args, &arena);
        double work = 16.0 * (double)n_tokens * args->n_experts;
        mb_parallel_for(stream, work, n_tokens, start_token, &r);
        for (int64_t i = 0; i < n_choices; i++)
            if (args->out_ids[i] >= 0)
                args->counts[args->out_ids[i]]++;
        int64_t carry = 0;
        for (int32_t e = 0; e < args->n_experts; e++) {
            report.routed += args->counts[e];
            round_expert(&r, e, &carry, &report);
        }
        mb_parallel_for(stream, work, n_tokens, weigh_token, &r);
    }
    for (int32_t e = 0; e < args->n_experts; e++) {
        int64_t tiles = ((int64_t)args->counts[e] + args->tile_rows - 1) / args->tile_rows;
        report.processed += args->counts[e];
        report.hardware += tiles * args->tile_rows;
    }
    if (report.hardware > 0)
        report.wasted_ratio = 1 - (double)report.processed / (double)report.hardware;
    if (args->report)
        *args->report = report;
    return MB_OK;
}
