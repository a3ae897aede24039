/* front_refusals.cuh - wrong arguments, one at a time: each must be refused with a sentence, and launch
 * nothing. */
#ifndef MB_TESTS_FRONT_REFUSALS_CUH
#define MB_TESTS_FRONT_REFUSALS_CUH

#include "front_parts.cuh"

/* Changes one field of a good call for the length of one call. */
#define REFUSED(status, call, field, value)                                   \
    do {                                                                      \
        const auto kept = field;                                              \
        field = value;                                                        \
        expect("refusals", #call " with " #field " = " #value, call, status); \
        field = kept;                                                         \
    } while (0)

static inline void check_refusals(void) {
    const front_shape s = {
        {200, 64, 8, MB_F32, MB_ROUTE_SOFTMAX_TOPK, 1, SMOOTH}, 1, 0, 64, 16, 8, 128, 0, 4};
    mb_moe_front_args f;
    mb_moe_route_args r;
    make_front(&s, &f, &r);
    size_t n = bytes_of(mb_moe_front_sm90_workspace, &f);
    void *workspace = poisoned(n);
    const mb_status bad = MB_ERR_ARGUMENT;
#define ROUTE mb_moe_route_sm90(&r, NULL)
    REFUSED(bad, ROUTE, r.n_tokens, -1);
    REFUSED(bad, ROUTE, r.n_experts, 0);
    REFUSED(bad, ROUTE, r.n_experts, 1025);
    REFUSED(bad, ROUTE, r.top_k, 0);
    REFUSED(bad, ROUTE, r.top_k, 33);
    REFUSED(bad, ROUTE, r.top_k, 65);
    REFUSED(bad, ROUTE, r.logits_dtype, MB_F16);
    REFUSED(bad, ROUTE, r.order, (mb_route_order)7);
    REFUSED(bad, ROUTE, r.logits, NULL);
    REFUSED(bad, ROUTE, r.weights, NULL);
    REFUSED(bad, ROUTE, r.ids, NULL);
    mb_moe_plan_args *p = &f.plan;
#define PLAN mb_moe_plan_sm90(p, workspace, n, NULL)
    REFUSED(bad, PLAN, p->n_tokens, -1);
    REFUSED(bad, PLAN, p->n_tokens, INT32_MAX / 8 + 1);
    REFUSED(bad, PLAN, p->top_k, -1);
    REFUSED(bad, PLAN, p->n_local_experts, 0);
    REFUSED(bad, PLAN, p->n_local_experts, 65);
    REFUSED(bad, PLAN, p->first_expert, -1);
    REFUSED(bad, PLAN, p->first_expert, 1);
    REFUSED(bad, PLAN, p->ids, NULL);
    REFUSED(bad, PLAN, p->offsets, NULL);
    REFUSED(bad, PLAN, p->row_token, NULL);
    REFUSED(bad, PLAN, p->token_row, NULL);
    REFUSED(bad, PLAN, p->n_tiles, NULL);
    REFUSED(bad, PLAN, p->tiles, NULL);
    REFUSED(bad, PLAN, p->tile_rows, 0);
    REFUSED(bad, PLAN, p->tile_step, 3);
    REFUSED(bad, PLAN, p->tiles, (mb_moe_token_tile *)((char *)p->tiles + 4));
    REFUSED(MB_ERR_CAPACITY, PLAN, workspace, NULL);
    REFUSED(MB_ERR_CAPACITY, PLAN, n, n - 1);
    mb_moe_quantize_args *q = &f.quantize;
#define QUANTIZE mb_moe_quantize_sm90(q, NULL)
    REFUSED(bad, QUANTIZE, q->n_tokens, -1);
    REFUSED(bad, QUANTIZE, q->hidden, 0);
    REFUSED(bad, QUANTIZE, q->hidden, 12);
    REFUSED(bad, QUANTIZE, q->dtype, MB_F32);
    REFUSED(bad, QUANTIZE, q->x, NULL);
    REFUSED(bad, QUANTIZE, q->out, NULL);
    REFUSED(bad, QUANTIZE, q->scale, NULL);
    REFUSED(bad, QUANTIZE, q->x, (const char *)q->x + 2);
    REFUSED(bad, QUANTIZE, q->n_tokens, (int64_t)1 << 31);
#define FRONT mb_moe_front_sm90(&f, workspace, n, NULL)
    REFUSED(bad, FRONT, r.top_k, 7);
    REFUSED(bad, FRONT, r.n_tokens, 100);
    REFUSED(bad, FRONT, r.n_experts, 63);
    REFUSED(bad, FRONT, p->ids, p->token_row);
    REFUSED(bad, FRONT, q->n_tokens, 199);
    REFUSED(bad, FRONT, q->hidden, 12);
    REFUSED(bad, FRONT, f.counters, NULL);
    REFUSED(bad, FRONT, f.n_counters, -1);
    REFUSED(bad, FRONT, p->tile_step, 3);
    REFUSED(MB_ERR_CAPACITY, FRONT, n, n - 1);
    mb_moe_tiles_args t = {p->offsets, 1600, p->tiles, p->n_tiles, f.counters, 4, 64, 16, 8};
#define TILES mb_moe_tiles_sm90(&t, NULL)
    REFUSED(bad, TILES, t.n_groups, 0);
    REFUSED(bad, TILES, t.n_groups, 65537);
    REFUSED(bad, TILES, t.offsets, NULL);
    REFUSED(bad, TILES, t.n_rows, -1);
    REFUSED(bad, TILES, t.n_rows, (int64_t)1 << 31);
    REFUSED(bad, TILES, t.tile_rows, 0);
    REFUSED(bad, TILES, t.tile_step, 0);
    REFUSED(bad, TILES, t.tile_step, 5);
    REFUSED(bad, TILES, t.tiles, NULL);
    REFUSED(bad, TILES, t.n_tiles, NULL);
    REFUSED(bad, TILES, t.counters, NULL);
    REFUSED(bad, TILES, t.n_counters, -1);
    int32_t *ids = (int32_t *)download(p->token_row, sizeof(int32_t)); /* nothing was launched */
    if (*ids != POISONED)
        complain("refusals", "a refused call wrote", *ids);
    free(ids);
    release_all("refusals");
}

#endif
