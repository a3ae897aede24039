/* moe_host_checks.cuh - the router and the plan against plain searches on the host. */
#ifndef MB_TESTS_MOE_HOST_CHECKS_CUH
#define MB_TESTS_MOE_HOST_CHECKS_CUH

#include "moe_problem.cuh"

extern "C" {
#include "ops/moe/ref/ref.h"
}

/* One token's choice: its weights and ids; returns how many are wrong. */
static inline int wrong_choices(const mb_moe_route_args *r, const float *logits, const float *weights,
                                const int32_t *ids) {
    const int E = r->n_experts, K = r->top_k;
    char taken[1024] = {0};
    double chosen = 0, all = 0, value[32];
    float largest = 0;
    int n_bad = 0;
    for (int k = 0; k < K; k++) {
        int best = -1;
        for (int e = 0; e < E; e++)
            if (!taken[e] && (best < 0 || logits[e] > logits[best]))
                best = e;
        taken[best] = 1;
        n_bad += ids[k] != best;
        largest = k == 0 ? logits[best] : largest;
        value[k] = logits[best] == largest ? 1 : exp((double)logits[best] - largest);
        chosen += value[k];
    }
    for (int e = 0; e < E; e++)
        all += logits[e] == largest ? 1 : exp((double)logits[e] - largest);
    const double sum = r->renormalize || r->order == MB_ROUTE_TOPK_SOFTMAX ? chosen : all;
    for (int k = 0; k < K; k++)
        n_bad += !(fabs(weights[k] - value[k] / sum) < 1e-6);
    return n_bad;
}

/* The router; returns its ids. */
static inline int32_t *check_route(const problem *p) {
    const mb_moe_route_args *r = &p->route;
    const int64_t T = r->n_tokens, E = r->n_experts, K = r->top_k;
    float *logits = download_rows(r->logits, T, 1, E, r->logits_dtype);
    float *weights = (float *)download(r->weights, sizeof(float) * (size_t)(T * K));
    int32_t *ids = (int32_t *)download(r->ids, sizeof(int32_t) * (size_t)(T * K));
    int32_t *nan_flag = (int32_t *)download(p->nan_flag, sizeof(int32_t));
    int has_nan = 0, n_bad = 0;
    for (int64_t i = 0; i < T * E; i++)
        if (isnan(logits[i])) { /* chosen last */
            logits[i] = -INFINITY;
            has_nan = 1;
        }
    for (int64_t t = 0; t < T; t++)
        n_bad += wrong_choices(r, logits + t * E, weights + t * K, ids + t * K);
    if (n_bad)
        complain(p->name, "route", n_bad);
    if (*nan_flag != has_nan)
        complain(p->name, "route's nan_flag", *nan_flag);
    free(logits);
    free(weights);
    free(nan_flag);
    return ids;
}

/* offsets[e + 1]: rows of the local experts up to e; sets n_rows and n_hit. */
static inline int32_t *count_rows(problem *p, const int32_t *ids) {
    const int n_local = p->forward.n_local_experts;
    int32_t *offsets = (int32_t *)host_allocate(sizeof(int32_t) * ((size_t)n_local + 1));
    for (int64_t i = 0; i < (int64_t)p->s.T * p->s.K; i++) {
        const int e = ids[i] - p->forward.first_expert;
        if (e >= 0 && e < n_local)
            offsets[e + 1]++;
    }
    p->n_hit = 0;
    for (int e = 0; e < n_local; e++) {
        p->n_hit += offsets[e + 1] > 0;
        offsets[e + 1] += offsets[e];
    }
    p->n_rows = offsets[n_local];
    return offsets;
}

/* The plan that a forward left in its workspace: a counting sort, and its tiles. */
static inline void check_plan(const problem *p, const mb_moe_plan_args *plan, const int32_t *ids,
                              const int32_t *offsets) {
    const int64_t R = (int64_t)p->s.T * p->s.K;
    const int n_local = p->forward.n_local_experts;
    const size_t offsets_bytes = sizeof(int32_t) * ((size_t)n_local + 1);
    int32_t *found_offsets = (int32_t *)download(plan->offsets, offsets_bytes);
    int32_t *token_row = (int32_t *)download(plan->token_row, sizeof(int32_t) * (size_t)R);
    int32_t *row_token = (int32_t *)download(plan->row_token, sizeof(int32_t) * (size_t)p->n_rows);
    int32_t *next = (int32_t *)host_allocate(offsets_bytes);
    memcpy(next, offsets, offsets_bytes);
    int n_bad = memcmp(found_offsets, offsets, offsets_bytes) != 0;
    for (int64_t i = 0; i < R; i++) {
        const int e = ids[i] - p->forward.first_expert;
        const int32_t row = e >= 0 && e < n_local ? next[e]++ : -1;
        n_bad += token_row[i] != row;
        n_bad += row >= 0 && row_token[row] != i / p->s.K;
    }
    if (n_bad)
        complain(p->name, "plan", n_bad);

    const size_t max_tiles = (size_t)mb_moe_max_tiles(R, n_local, plan->tile_rows);
    mb_moe_token_tile *tiles = (mb_moe_token_tile *)host_allocate(sizeof(*tiles) * max_tiles);
    const int32_t n_tiles = mb_moe_cut_tiles(offsets, n_local, plan->tile_rows, plan->tile_step, tiles);
    int32_t *found_n = (int32_t *)download(plan->n_tiles, sizeof(int32_t));
    if (*found_n == n_tiles) {
        mb_moe_token_tile *found =
            (mb_moe_token_tile *)download(plan->tiles, sizeof(*tiles) * (size_t)n_tiles);
        int n_bad_tiles = 0;
        for (int i = 0; i < n_tiles; i++)
            n_bad_tiles += found[i].expert != tiles[i].expert || found[i].first_row != tiles[i].first_row ||
                           found[i].n_rows != tiles[i].n_rows;
        if (n_bad_tiles)
            complain(p->name, "tiles of the plan", n_bad_tiles);
        free(found);
    } else
        complain(p->name, "number of the plan's tiles", *found_n);
    free(found_offsets);
    free(token_row);
    free(row_token);
    free(next);
    free(tiles);
    free(found_n);
}

#endif
