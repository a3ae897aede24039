#include "base/arena.h"
#include "base/status.h"
#include "ops/common/dtype.h"
#include "ops/common/parallel.h"
#include "ops/common/workspace.h"
#include "ops/moe/ref/softmax_row.h"
#include "ops/moe/routing_arguments.h"
#include "ops/moe/train.h"

/* The router's losses, and the gradient of its logits. */

static int is_expert(int32_t id, int32_t n_experts) {
    return id >= 0 && id < n_experts;
}

/* ---- Losses -------------------------------------------------------------------------------------------- */

typedef struct losses {
    const mb_moe_router_losses_args *args;
    double *log_sums; /* [T] logsumexp of each token's logits */
    double *means;    /* [E] mean probability */
} losses;

static losses cut_losses(const mb_moe_router_losses_args *args, mb_arena *arena) {
    losses l = {.args = args};
    l.log_sums = mb_arena_push(arena, (size_t)args->n_tokens, sizeof *l.log_sums);
    l.means = mb_arena_push(arena, (size_t)args->n_experts, sizeof *l.means);
    return l;
}

mb_status mb_moe_router_losses_ref_workspace(const mb_moe_router_losses_args *most, size_t *bytes) {
    MB_TRY(mb_moe_router_losses_check_sizes(most));
    mb_arena arena;
    mb_arena_measure(&arena);
    if (most->n_tokens > 0)
        cut_losses(most, &arena);
    return mb_workspace_measured("moe_router_losses", &arena, bytes);
}

static void sum_token(const void *context, int64_t t) {
    const losses *l = context;
    const mb_moe_router_losses_args *args = l->args;
    double logits[MB_SOFTMAX_EXPERTS];
    l->log_sums[t] = mb_logits_row(args->logits_dtype, args->logits, t, args->n_experts, logits);
}

/* Tokens in order. */
static void mean_of_expert(const void *context, int64_t e) {
    const losses *l = context;
    const mb_moe_router_losses_args *args = l->args;
    double sum = 0;
    for (int64_t t = 0; t < args->n_tokens; t++) {
        float logit;
        mb_load_f32(args->logits_dtype, args->logits, t * args->n_experts + e, 1, &logit);
        sum += exp((double)logit - l->log_sums[t]);
    }
    l->means[e] = sum / (double)args->n_tokens;
}

mb_status mb_moe_router_losses_ref(const mb_moe_router_losses_args *args, void *workspace,
                                   size_t workspace_bytes, mb_stream stream) {
    size_t needed;
    MB_TRY(mb_moe_router_losses_check(args));
    MB_TRY(mb_moe_router_losses_ref_workspace(args, &needed));
    int64_t n_tokens = args->n_tokens;
    MB_TRY(mb_workspace_check("moe_router_losses", workspace, workspace_bytes, needed));
    memset(args->counts, 0, (size_t)args->n_experts * sizeof *args->counts);
    for (int64_t i = 0; i < n_tokens * args->top_k; i++)
        if (is_expert(args->ids[i], args->n_experts))
            args->counts[args->ids[i]]++;
    double balance = 0, z = 0;
    if (n_tokens > 0) {
        mb_arena arena;
        mb_arena_init(&arena, workspace, workspace_bytes, 1);
        losses l = cut_losses(args, &arena);
        double work = 16.0 * (double)n_tokens * args->n_experts;
        mb_parallel_for(stream, work, n_tokens, sum_token, &l);
        mb_parallel_for(stream, work, args->n_experts, mean_of_expert, &l);
        for (int32_t e = 0; e < args->n_experts; e++)
            balance += args->counts[e] / (double)n_tokens * l.means[e] * args->n_experts;
        for (int64_t t = 0; t < n_tokens; t++)
            z += l.log_sums[t] * l.log_sums[t] / (double)n_tokens;
    }
    if (args->load_balance)
        *args->load_balance = (float)balance;
    if (args->z)
        *args->z = (float)z;
    return MB_OK;
}

/* ---- Gradient ------------------------------------------------------------------------------------------ */

/* slopes[e], the gradient of the probabilities, becomes that of the logits: q_e (s_e - sum of q s). */
static void through_softmax(int32_t n, const double *q, double *slopes) {
    double mean = 0;
    for (int32_t e = 0; e < n; e++)
        mean += q[e] * slopes[e];
    for (int32_t e = 0; e < n; e++)
        slopes[e] = q[e] * (slopes[e] - mean);
}

/* Adds the gradient through a softmax over the chosen logits alone. */
static void add_chosen(const mb_moe_route_backward_args *args, const int32_t *ids, const float *dweights,
                       const double *logits, double *out) {
    double chosen[MB_SOFTMAX_CHOICES], slopes[MB_SOFTMAX_CHOICES];
    int32_t experts[MB_SOFTMAX_CHOICES], n = 0;
    for (int32_t k = 0; k < args->top_k; k++)
        if (is_expert(ids[k], args->n_experts)) {
            chosen[n] = logits[ids[k]];
            slopes[n] = (double)dweights[k];
            experts[n++] = ids[k];
        }
    if (n == 0)
        return;
    double log_sum = mb_log_sum_exp(n, chosen);
    for (int32_t k = 0; k < n; k++)
        chosen[k] = exp(chosen[k] - log_sum);
    through_softmax(n, chosen, slopes);
    for (int32_t k = 0; k < n; k++)
        out[experts[k]] += slopes[k];
}

static void token_logits(const void *context, int64_t t) {
    const mb_moe_route_backward_args *args = context;
    int32_t n_experts = args->n_experts;
    const int32_t *ids = args->ids + t * args->top_k;
    const float *dweights = args->dweights ? args->dweights + t * args->top_k : NULL;
    double logits[MB_SOFTMAX_EXPERTS], q[MB_SOFTMAX_EXPERTS], slopes[MB_SOFTMAX_EXPERTS];
    double log_sum = mb_logits_row(args->logits_dtype, args->logits, t, n_experts, logits);
    double n_tokens = (double)args->n_tokens;
    double d_z = args->d_z ? (double)*args->d_z * 2 * log_sum / n_tokens : 0;
    double d_balance =
        args->d_load_balance ? (double)*args->d_load_balance * n_experts / (n_tokens * n_tokens) : 0;
    int over_chosen = args->order == MB_ROUTE_TOPK_SOFTMAX || args->renormalize;
    for (int32_t e = 0; e < n_experts; e++) {
        q[e] = exp(logits[e] - log_sum);
        slopes[e] = args->d_load_balance ? d_balance * args->counts[e] : 0;
    }
    for (int32_t k = 0; dweights && !over_chosen && k < args->top_k; k++)
        if (is_expert(ids[k], n_experts))
            slopes[ids[k]] += (double)dweights[k];
    through_softmax(n_experts, q, slopes);
    for (int32_t e = 0; e < n_experts; e++)
        slopes[e] += d_z * q[e];
    if (dweights && over_chosen)
        add_chosen(args, ids, dweights, logits, slopes);
    for (int32_t e = 0; e < n_experts; e++)
        args->dlogits[t * n_experts + e] = (float)slopes[e];
}

mb_status mb_moe_route_backward_ref(const mb_moe_route_backward_args *args, mb_stream stream) {
    MB_TRY(mb_moe_route_backward_check(args));
    if (args->n_tokens == 0)
        return MB_OK;
    mb_parallel_for(stream, 32.0 * (double)args->n_tokens * args->n_experts, args->n_tokens, token_logits,
                    args);
    return MB_OK;
}
