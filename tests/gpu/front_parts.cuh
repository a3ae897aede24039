/*
 * front_parts.cuh - problems of the router, plan, tiles and quantisation, and plain code on the host that
 * solves them too.
 */
#ifndef MB_TESTS_FRONT_PARTS_CUH
#define MB_TESTS_FRONT_PARTS_CUH

#include "ops/hopper/launch.cuh"
#include "ops/moe/moe_sm90.h"
#include "values.cuh"

extern "C" {
#include "ops/moe/ref/ref.h"
}

/* ---- Memory with a fence on either side -----------------------------------------------------------------
 */

enum { FENCE_BYTES = 256, POISON = 0x5a, MAX_BUFFERS = 64 };
static const int32_t POISONED = 0x5a5a5a5a;

static struct {
    unsigned char *base;
    size_t n_bytes;
} buffers[MAX_BUFFERS];
static int n_buffers;

static inline void *poisoned(size_t n_bytes) {
    const size_t all = (n_bytes + 2 * FENCE_BYTES + 15) / 16 * 16;
    buffers[n_buffers].base = (unsigned char *)allocate(all);
    buffers[n_buffers].n_bytes = n_bytes;
    CUDA(cudaMemset(buffers[n_buffers].base, POISON, all));
    return buffers[n_buffers++].base + FENCE_BYTES;
}

static inline void *upload(const void *host, size_t n_bytes) {
    void *device = poisoned(n_bytes);
    CUDA(cudaMemcpy(device, host, n_bytes, cudaMemcpyHostToDevice));
    return device;
}

/* All that were given out since the last call; the fences must be whole. */
static inline void release_all(const char *subject) {
    CUDA(cudaDeviceSynchronize());
    for (int i = 0; i < n_buffers; i++) {
        unsigned char fence[FENCE_BYTES];
        int n_bad = 0;
        for (int side = 0; side < 2; side++) {
            CUDA(cudaMemcpy(fence, buffers[i].base + (side ? FENCE_BYTES + buffers[i].n_bytes : 0),
                            FENCE_BYTES, cudaMemcpyDeviceToHost));
            for (int b = 0; b < FENCE_BYTES; b++)
                n_bad += fence[b] != POISON;
        }
        if (n_bad)
            complain(subject, "bytes written outside of a buffer", n_bad);
        CUDA(cudaFree(buffers[i].base));
    }
    n_buffers = 0;
}

/* ---- Router ---------------------------------------------------------------------------------------------
 */

enum route_values { SMOOTH, TIES /* multiples of 1/4 */, ODD_VALUES /* with NaN, infinities, -0 */ };

typedef struct route_shape {
    int T, E, K;
    mb_dtype dtype;
    mb_route_order order;
    int renormalize;
    enum route_values values;
} route_shape;

static __global__ void fill_logits(void *out, int64_t n, mb_dtype dtype, enum route_values kind) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        float v = random_value(n, i);
        const uint32_t dice = (uint32_t)mixed(i * 77 + n) % 64;
        if (kind == TIES)
            v = rintf(v * 4) / 4;
        if (kind == ODD_VALUES)
            v = dice == 0   ? NAN
                : dice == 1 ? -INFINITY
                : dice == 2 ? INFINITY
                : dice < 6  ? -0.0f
                : dice < 9  ? 0.0f
                            : v;
        store_value(out, i, dtype, v);
    }
}

static inline void make_route(const route_shape *s, mb_moe_route_args *r) {
    const int64_t n = (int64_t)s->T * s->E, chosen = (int64_t)s->T * s->K;
    *r = mb_moe_route_args();
    void *logits = poisoned((size_t)n * mb_dtype_bytes(s->dtype));
    fill_logits<<<256, 256>>>(logits, n, s->dtype, s->values);
    CUDA(cudaGetLastError());
    r->logits = logits;
    r->weights = (float *)poisoned(sizeof(float) * (size_t)chosen);
    r->ids = (int32_t *)poisoned(sizeof(int32_t) * (size_t)chosen);
    r->nan_flag = (int32_t *)poisoned(sizeof(int32_t));
    r->n_tokens = s->T;
    r->n_experts = s->E;
    r->top_k = s->K;
    r->logits_dtype = s->dtype;
    r->order = s->order;
    r->renormalize = s->renormalize;
}

/* One token: how many ids and weights are wrong. logits: without NaN. */
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

static inline void check_route(const char *subject, const mb_moe_route_args *r) {
    const int64_t T = r->n_tokens, E = r->n_experts, K = r->top_k;
    float *logits = download_rows(r->logits, T, 1, E, r->logits_dtype);
    float *weights = (float *)download(r->weights, sizeof(float) * (size_t)(T * K));
    int32_t *ids = (int32_t *)download(r->ids, sizeof(int32_t) * (size_t)(T * K));
    int32_t *nan_flag = (int32_t *)download(r->nan_flag, sizeof(int32_t));
    int has_nan = 0, n_bad = 0;
    for (int64_t i = 0; i < T * E; i++)
        if (isnan(logits[i])) { /* chosen last */
            logits[i] = -INFINITY;
            has_nan = 1;
        }
    for (int64_t t = 0; t < T; t++)
        n_bad += wrong_choices(r, logits + t * E, weights + t * K, ids + t * K);
    if (n_bad)
        complain(subject, "ids or weights of the router", n_bad);
    if (*nan_flag != (has_nan ? 1 : POISONED))
        complain(subject, "the router's nan_flag", *nan_flag);
    free(logits);
    free(weights);
    free(ids);
    free(nan_flag);
}

static inline void check_route_alone(const route_shape *s) {
    char name[64];
    snprintf(name, sizeof(name), "route T=%d E=%d K=%d", s->T, s->E, s->K);
    mb_moe_route_args r;
    make_route(s, &r);
    MB(mb_moe_route_sm90(&r, NULL));
    check_route(name, &r);
    release_all(name);
}

/* ---- Plan -----------------------------------------------------------------------------------------------
 */

enum ids { UNIFORM, RAGGED /* expert e as likely as 3000 +- 1000 */, ONE_EXPERT /* nearly all */ };

typedef struct plan_shape {
    int64_t T;
    int32_t K, E, first, n_local, tile_rows, tile_step;
    enum ids ids;
} plan_shape;

static __global__ void fill_ids(int32_t *ids, int64_t n, int32_t n_experts, enum ids kind) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        int32_t e = (int32_t)(mixed((uint64_t)(i + n)) % (uint64_t)n_experts);
        if (kind == ONE_EXPERT && i % 1000 != 0)
            e = n_experts / 2;
        for (uint64_t retry = 1; kind == RAGGED; retry++) { /* taken in proportion to its length */
            const float length = 3000 + 1000 * random_value(5, e);
            const uint64_t z = mixed((uint64_t)i * 0x9e3779b97f4a7c15ull + retry);
            if ((float)(uint32_t)z * 0x1p-32f * 6500 < length)
                break;
            e = (int32_t)((z >> 32) % (uint64_t)n_experts);
        }
        ids[i] = e;
    }
}

static inline void make_plan_outputs(const plan_shape *s, mb_moe_plan_args *p) {
    const int64_t n = s->T * s->K;
    p->offsets = (int32_t *)poisoned(sizeof(int32_t) * ((size_t)s->n_local + 1));
    p->row_token = (int32_t *)poisoned(sizeof(int32_t) * (size_t)n);
    p->token_row = (int32_t *)poisoned(sizeof(int32_t) * (size_t)n);
    p->n_tokens = s->T;
    p->top_k = s->K;
    p->n_experts = s->E;
    p->first_expert = s->first;
    p->n_local_experts = s->n_local;
    p->tile_rows = s->tile_rows;
    p->tile_step = s->tile_step;
    if (s->tile_rows) {
        p->tiles = (mb_moe_token_tile *)poisoned(sizeof(mb_moe_token_tile) *
                                                 (size_t)mb_moe_max_tiles(n, s->n_local, s->tile_rows));
        p->n_tiles = (int32_t *)poisoned(sizeof(int32_t));
    }
}

static inline void make_plan(const plan_shape *s, mb_moe_plan_args *p) {
    int32_t *ids = (int32_t *)poisoned(sizeof(int32_t) * (size_t)(s->T * s->K));
    fill_ids<<<8 * mb_n_processors(), 256>>>(ids, s->T * s->K, s->E, s->ids);
    CUDA(cudaGetLastError());
    *p = mb_moe_plan_args();
    p->ids = ids;
    make_plan_outputs(s, p);
}

/* Tiles on the GPU against those of the same offsets; behind them nothing may be written. */
static inline void check_tiles(const char *subject, const int32_t *offsets, int32_t n_groups,
                               int64_t max_tiles, const mb_moe_token_tile *tiles, const int32_t *n_tiles,
                               int32_t tile_rows, int32_t tile_step) {
    mb_moe_token_tile *expected = (mb_moe_token_tile *)host_allocate(sizeof(*expected) * (size_t)max_tiles);
    mb_moe_token_tile *found = (mb_moe_token_tile *)download(tiles, sizeof(*expected) * (size_t)max_tiles);
    int32_t *found_n = (int32_t *)download(n_tiles, sizeof(int32_t));
    const int32_t n = mb_moe_cut_tiles(offsets, n_groups, tile_rows, tile_step, expected);
    if (*found_n != n)
        complain(subject, "n_tiles", *found_n);
    else if (memcmp(found, expected, sizeof(*expected) * (size_t)n) != 0)
        complain(subject, "tiles", n);
    int n_bad = 0;
    for (int64_t i = n; i < max_tiles; i++)
        n_bad += found[i].expert != POISONED || found[i].first_row != POISONED ||
                 found[i].n_rows != POISONED || found[i].reserved != POISONED;
    if (n_bad)
        complain(subject, "tiles written behind the last", n_bad);
    free(expected);
    free(found);
    free(found_n);
}

static inline void check_plan(const char *subject, const mb_moe_plan_args *p) {
    const int64_t n = p->n_tokens * p->top_k;
    const int32_t n_local = p->n_local_experts;
    int32_t *ids = (int32_t *)download(p->ids, sizeof(int32_t) * (size_t)n);
    int32_t *found_offsets = (int32_t *)download(p->offsets, sizeof(int32_t) * ((size_t)n_local + 1));
    int32_t *token_row = (int32_t *)download(p->token_row, sizeof(int32_t) * (size_t)n);
    int32_t *row_token = (int32_t *)download(p->row_token, sizeof(int32_t) * (size_t)n);
    int32_t *offsets = (int32_t *)host_allocate(sizeof(int32_t) * ((size_t)n_local + 1));
    int32_t *next = (int32_t *)host_allocate(sizeof(int32_t) * ((size_t)n_local + 1));
    for (int64_t i = 0; i < n; i++)
        if (ids[i] >= p->first_expert && ids[i] - p->first_expert < n_local)
            offsets[ids[i] - p->first_expert + 1]++;
    for (int32_t e = 0; e < n_local; e++)
        offsets[e + 1] += offsets[e];
    memcpy(next, offsets, sizeof(int32_t) * ((size_t)n_local + 1));
    if (memcmp(found_offsets, offsets, sizeof(int32_t) * ((size_t)n_local + 1)) != 0)
        complain(subject, "offsets", n_local);
    int64_t n_bad = 0;
    for (int64_t i = 0; i < n; i++) {
        const int is_local = ids[i] >= p->first_expert && ids[i] - p->first_expert < n_local;
        const int32_t row = is_local ? next[ids[i] - p->first_expert]++ : -1;
        n_bad += token_row[i] != row || (row >= 0 && row_token[row] != i / p->top_k);
    }
    for (int64_t i = offsets[n_local]; i < n; i++)
        n_bad += row_token[i] != POISONED;
    if (n_bad)
        complain(subject, "rows of the plan", (double)n_bad);
    if (p->tiles)
        check_tiles(subject, offsets, n_local, mb_moe_max_tiles(n, n_local, p->tile_rows), p->tiles,
                    p->n_tiles, p->tile_rows, p->tile_step);
    free(ids);
    free(found_offsets);
    free(token_row);
    free(row_token);
    free(offsets);
    free(next);
}

static inline void check_plan_alone(const plan_shape *s) {
    char name[96];
    snprintf(name, sizeof(name), "plan T=%lld K=%d E=%d local %d + %d ids %d", (long long)s->T, s->K, s->E,
             s->first, s->n_local, (int)s->ids);
    mb_moe_plan_args p;
    make_plan(s, &p);
    const size_t n_bytes = bytes_of(mb_moe_plan_sm90_workspace, &p);
    void *workspace = poisoned(n_bytes);
    MB(mb_moe_plan_sm90(&p, workspace, n_bytes, NULL));
    check_plan(name, &p);
    release_all(name);
}

/* ---- Quantisation ---------------------------------------------------------------------------------------
 */

typedef struct quantize_shape {
    int T, H;
    mb_dtype dtype;
    float tensor_scale; /* 0: block scales */
} quantize_shape;

/* Blocks of very different size; some are zero, some subnormal. */
static __global__ void fill_rows(void *out, int64_t n, mb_dtype dtype) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n;
         i += (int64_t)gridDim.x * blockDim.x) {
        const int dice = (int)(mixed((uint64_t)(i / 64 + n)) % 40);
        const float size = dice == 0         ? 0
                           : dtype == MB_F16 ? exp2f((float)(dice % 24) - 14)
                                             : exp2f((float)dice * 6 - 132);
        store_value(out, i, dtype, random_value((uint64_t)n, (uint64_t)i) * size);
    }
}

static inline void make_quantize(const quantize_shape *s, mb_moe_quantize_args *q) {
    const int64_t n = (int64_t)s->T * s->H;
    *q = mb_moe_quantize_args();
    void *x = poisoned(2 * (size_t)n);
    fill_rows<<<256, 256>>>(x, n, s->dtype);
    CUDA(cudaGetLastError());
    q->x = x;
    q->out = poisoned((size_t)n);
    q->scale = s->tensor_scale != 0
                   ? (float *)upload(&s->tensor_scale, sizeof(float))
                   : (float *)poisoned(sizeof(float) * (size_t)(s->T * n_scale_blocks(s->H)));
    q->n_tokens = s->T;
    q->hidden = s->H;
    q->per_tensor = s->tensor_scale != 0;
    q->dtype = s->dtype;
}

/* Nearest e4m3, ties to even, saturating: a step is 2^(exponent - 3), and 2^-9 below 2^-6. */
static inline uint8_t host_e4m3(float v) {
    const uint8_t sign = signbit(v) ? 0x80 : 0;
    const double size = fabs((double)v);
    if (size >= 448)
        return sign | 0x7e;
    int exponent = -6;
    if (size >= 0x1p-6)
        frexp(size, &exponent), exponent--;
    const int steps = (int)nearbyint(ldexp(size, 3 - exponent)); /* 8 .. 16 of a normal number */
    return (uint8_t)(sign | (steps + (exponent + 6) * 8));
}

static inline void check_quantize(const char *subject, const mb_moe_quantize_args *q) {
    const int64_t T = q->n_tokens, H = q->hidden, blocks = n_scale_blocks(H);
    float *x = download_rows(q->x, T, 1, H, q->dtype);
    uint8_t *out = (uint8_t *)download(q->out, (size_t)(T * H));
    float *scales = (float *)download(q->scale, sizeof(float) * (size_t)(q->per_tensor ? 1 : T * blocks));
    int n_bad = 0, n_bad_scales = 0;
    for (int64_t t = 0; t < T; t++)
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t begin = t * H + 128 * b, end = t * H + (128 * (b + 1) < H ? 128 * (b + 1) : H);
            float largest = 0;
            for (int64_t i = begin; i < end; i++)
                largest = fmaxf(largest, fabsf(x[i]));
            float scale = largest > 0 ? largest / 448.0f : 1.0f;
            if (q->per_tensor)
                scale = scales[0];
            else
                n_bad_scales += scales[t * blocks + b] != scale;
            for (int64_t i = begin; i < end; i++)
                n_bad += out[i] != host_e4m3(x[i] / scale);
        }
    if (n_bad_scales)
        complain(subject, "scales", n_bad_scales);
    if (n_bad)
        complain(subject, "fp8 values", n_bad);
    free(x);
    free(out);
    free(scales);
}

static inline void check_quantize_alone(const quantize_shape *s) {
    char name[64];
    snprintf(name, sizeof(name), "quantize T=%d H=%d %s%s", s->T, s->H, mb_dtype_name(s->dtype),
             s->tensor_scale != 0 ? " per tensor" : "");
    mb_moe_quantize_args q;
    make_quantize(s, &q);
    MB(mb_moe_quantize_sm90(&q, NULL));
    check_quantize(name, &q);
    release_all(name);
}

/* ---- Tiles ----------------------------------------------------------------------------------------------
 */

typedef struct tiles_shape {
    int n_groups, mean_rows, tile_rows, tile_step, n_counters, with_offsets;
} tiles_shape;

static inline void check_counters(const char *subject, const int32_t *counters, int32_t n) {
    int32_t *found = (int32_t *)download(counters, sizeof(int32_t) * (size_t)n);
    int n_bad = 0;
    for (int i = 0; i < n; i++)
        n_bad += found[i] != 0;
    if (n_bad)
        complain(subject, "counters that are not 0", n_bad);
    free(found);
}

static inline void check_tiles_alone(const tiles_shape *s) {
    char name[64];
    snprintf(name, sizeof(name), "tiles of %d groups of %d rows", s->n_groups, s->mean_rows);
    int32_t *offsets = (int32_t *)host_allocate(sizeof(int32_t) * ((size_t)s->n_groups + 1));
    for (int e = 0; e < s->n_groups; e++)
        offsets[e + 1] =
            offsets[e] + (!s->with_offsets ? s->mean_rows
                          : e % 7 == 3     ? 0
                                           : (int32_t)((e * 2654435761u >> 8) % (2 * s->mean_rows + 1)));
    mb_moe_tiles_args t = {};
    t.n_rows = offsets[s->n_groups];
    t.offsets =
        s->with_offsets ? (int32_t *)upload(offsets, sizeof(int32_t) * ((size_t)s->n_groups + 1)) : NULL;
    const int64_t max_tiles = mb_moe_max_tiles(t.n_rows, s->n_groups, s->tile_rows);
    t.tiles = (mb_moe_token_tile *)poisoned(sizeof(mb_moe_token_tile) * (size_t)max_tiles);
    t.n_tiles = (int32_t *)poisoned(sizeof(int32_t));
    t.counters = s->n_counters ? (int32_t *)poisoned(sizeof(int32_t) * (size_t)s->n_counters) : NULL;
    t.n_counters = s->n_counters;
    t.n_groups = s->n_groups;
    t.tile_rows = s->tile_rows;
    t.tile_step = s->tile_step;
    MB(mb_moe_tiles_sm90(&t, NULL));
    check_tiles(name, offsets, s->n_groups, max_tiles, t.tiles, t.n_tiles, s->tile_rows, s->tile_step);
    check_counters(name, t.counters, s->n_counters);
    free(offsets);
    release_all(name);
}

/* ---- Front ----------------------------------------------------------------------------------------------
 */

typedef struct front_shape {
    route_shape route;
    int is_routed; /* else the ids are there already */
    int32_t first, n_local, tile_rows, tile_step;
    int H; /* 0: nothing to quantise */
    int per_tensor, n_counters;
} front_shape;

static inline void make_front(const front_shape *s, mb_moe_front_args *f, mb_moe_route_args *route) {
    *f = mb_moe_front_args();
    make_route(&s->route, route);
    const plan_shape plan = {s->route.T, s->route.K,   s->route.E,   s->first,
                             s->n_local, s->tile_rows, s->tile_step, UNIFORM};
    if (!s->is_routed) {
        fill_ids<<<64, 256>>>(route->ids, (int64_t)s->route.T * s->route.K, s->route.E, UNIFORM);
        CUDA(cudaGetLastError());
    }
    f->route = s->is_routed ? route : NULL;
    f->plan.ids = route->ids;
    make_plan_outputs(&plan, &f->plan);
    if (s->H) {
        const quantize_shape quantize = {s->route.T, s->H, MB_BF16, s->per_tensor ? 0.02f : 0};
        make_quantize(&quantize, &f->quantize);
    }
    f->n_counters = s->n_counters;
    f->counters = (int32_t *)poisoned(sizeof(int32_t) * (size_t)s->n_counters);
}

static inline void check_front(const front_shape *s) {
    char name[96];
    snprintf(name, sizeof(name), "front T=%d E=%d K=%d local %d + %d H=%d%s", s->route.T, s->route.E,
             s->route.K, s->first, s->n_local, s->H, s->is_routed ? "" : " without router");
    mb_moe_front_args f;
    mb_moe_route_args route;
    make_front(s, &f, &route);
    const size_t n_bytes = bytes_of(mb_moe_front_sm90_workspace, &f);
    void *workspace = poisoned(n_bytes);
    MB(mb_moe_front_sm90(&f, workspace, n_bytes, NULL));
    if (s->is_routed)
        check_route(name, &route);
    check_plan(name, &f.plan);
    if (s->H)
        check_quantize(name, &f.quantize);
    check_counters(name, f.counters, s->n_counters);
    release_all(name);
}

#endif
