/* training_p.cuh - the forward that keeps p: the bits of out are those without, p is right, and the same
 * with every tile row. */
#ifndef MB_TESTS_TRAINING_P_CUH
#define MB_TESTS_TRAINING_P_CUH

#include "moe_problem.cuh"
#include "ops/moe/experts/pick.h"

typedef struct p_problem {
    problem of;
    int64_t width, n_rows; /* of p; rows that exist */
    int32_t *row_token;    /* on the host, of the rows that exist */
    int32_t *row_expert;
    void *first_p; /* what the first tile row kept */
} p_problem;

/* The plan on the host: rows sorted by expert, stable. */
static inline void make_p_problem(p_problem *p, const kind *k, const shape *s, uint64_t seed) {
    *p = p_problem();
    make_problem(&p->of, k, s, seed);
    const mb_moe_forward_args *f = &p->of.forward;
    const int64_t n = f->n_tokens * f->top_k;
    int32_t *ids = (int32_t *)download(f->ids, sizeof(int32_t) * (size_t)n);
    p->width = f->w13.rows;
    p->row_token = (int32_t *)host_allocate(sizeof(int32_t) * (size_t)n);
    p->row_expert = (int32_t *)host_allocate(sizeof(int32_t) * (size_t)n);
    for (int32_t e = 0; e < f->n_local_experts; e++)
        for (int64_t i = 0; i < n; i++)
            if (ids[i] == f->first_expert + e) {
                p->row_token[p->n_rows] = (int32_t)(i / f->top_k);
                p->row_expert[p->n_rows++] = e;
            }
    free(ids);
}

static inline void free_p_problem(p_problem *p) {
    free_problem(&p->of);
    free(p->row_token);
    free(p->row_expert);
    CUDA(cudaFree(p->first_p));
}

/* Elements further from w13 x + bias13 than its rounding to dtype and fp32 sums allow. A warp an element. */
static __global__ void count_far_p(mb_moe_forward_args f, const int32_t *row_token, const int32_t *row_expert,
                                   const void *p, int64_t n_rows, unsigned long long *n_far) {
    const int64_t width = f.w13.rows, hidden = f.hidden;
    const double step =
        f.dtype == MB_BF16 ? 0x1.02p-8 : 0x1.02p-11; /* half a step of the type, and a little */
    for (int64_t i = blockIdx.x * (int64_t)(blockDim.x / 32) + threadIdx.x / 32; i < n_rows * width;
         i += (int64_t)gridDim.x * (blockDim.x / 32)) {
        const int64_t row = i / width, column = i % width, e = row_expert[row];
        double sum = 0, size = 0;
        for (int64_t k = threadIdx.x % 32; k < hidden; k += 32) {
            const double product = (double)load_value(f.x, row_token[row] * hidden + k, f.dtype) *
                                   load_value(f.w13.data, (e * width + column) * hidden + k, f.dtype);
            sum += product;
            size += fabs(product);
        }
        sum = warp_sum(sum) + value_or_0(f.bias13, e * width + column, f.dtype);
        size = warp_sum(size);
        const double found = load_value(p, i, f.dtype);
        const int is_near = fabs(found - sum) <= step * fabs(sum) + 4e-6 * size + 1e-7;
        if (threadIdx.x % 32 == 0 && !is_near)
            atomicAdd(n_far, 1ull);
    }
}

static inline void check_p_values(const p_problem *p, const void *kept) {
    const size_t n_bytes = sizeof(int32_t) * (size_t)p->n_rows;
    int32_t *tokens = (int32_t *)allocate(n_bytes), *experts = (int32_t *)allocate(n_bytes);
    unsigned long long *on_device = (unsigned long long *)allocate(sizeof(*on_device)), n_far = 0;
    CUDA(cudaMemcpy(tokens, p->row_token, n_bytes, cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(experts, p->row_expert, n_bytes, cudaMemcpyHostToDevice));
    CUDA(cudaMemset(on_device, 0, sizeof(*on_device)));
    count_far_p<<<1024, 256>>>(p->of.forward, tokens, experts, kept, p->n_rows, on_device);
    CUDA(cudaMemcpy(&n_far, on_device, sizeof(n_far), cudaMemcpyDeviceToHost));
    if (n_far)
        complain(p->of.name, "elements of p that are too far", (double)n_far);
    CUDA(cudaFree(tokens));
    CUDA(cudaFree(experts));
    CUDA(cudaFree(on_device));
}

/* Bytes of p that lie behind the rows that exist, and in front of and behind p itself, stay as they were. */
static inline void check_unwritten(const p_problem *p, const unsigned char *kept, int64_t n_bytes,
                                   int64_t all_bytes, int64_t fence) {
    unsigned char *host = (unsigned char *)download(kept - fence, (size_t)(all_bytes + 2 * fence));
    int64_t n_bad = 0;
    for (int64_t i = 0; i < all_bytes + 2 * fence; i++)
        if (i < fence || i >= fence + n_bytes)
            n_bad += host[i] != 0xff;
    if (n_bad)
        complain(p->of.name, "bytes outside of p's rows", (double)n_bad);
    free(host);
}

static inline void run_p_tile(p_problem *p, int tile, int n_runs) {
    enum { FENCE = 512 };
    const mb_moe_forward_args *given = &p->of.forward;
    const int64_t all_rows = given->n_tokens * given->top_k;
    const int64_t row_bytes = p->width * (int64_t)mb_dtype_bytes(given->dtype),
                  n_bytes = p->n_rows * row_bytes;
    const size_t all_bytes = (size_t)(all_rows * row_bytes);
    size_t workspace_bytes;
    MB(mb_moe_forward_sm90_tile_workspace(given, tile, &workspace_bytes));
    void *workspace = allocate(workspace_bytes), *expected = allocate(out_bytes(&p->of));
    unsigned char *memory = (unsigned char *)allocate(all_bytes + 2 * FENCE);
    for (int run = 0; run < n_runs; run++) {
        mb_moe_forward_args f = fresh_forward(&p->of, 1);
        CUDA(cudaMemset(workspace, 0xff, workspace_bytes));
        MB(mb_moe_forward_sm90_tile(&f, tile, workspace, workspace_bytes, NULL));
        CUDA(cudaMemcpy(expected, f.out, out_bytes(&p->of), cudaMemcpyDeviceToDevice));
        f = fresh_forward(&p->of, 1);
        f.p = memory + FENCE;
        CUDA(cudaMemset(workspace, 0xff, workspace_bytes));
        CUDA(cudaMemset(memory, 0xff, all_bytes + 2 * FENCE));
        MB(mb_moe_forward_sm90_tile(&f, tile, workspace, workspace_bytes, NULL));
        CUDA(cudaDeviceSynchronize());
        double n = differences(expected, f.out, given->n_tokens * given->hidden, given->dtype);
        if (n > 0)
            complain(p->of.name, "elements of out that differ when p is kept", n);
        if (!p->first_p) {
            p->first_p = allocate(all_bytes);
            CUDA(cudaMemcpy(p->first_p, f.p, all_bytes, cudaMemcpyDeviceToDevice));
            check_p_values(p, f.p);
        }
        n = differences(p->first_p, f.p, p->n_rows * p->width, given->dtype);
        if (n > 0)
            complain(p->of.name, "elements of p that another tile row or run computes otherwise", n);
        check_unwritten(p, memory + FENCE, n_bytes, (int64_t)all_bytes, FENCE);
    }
    CUDA(cudaFree(workspace));
    CUDA(cudaFree(expected));
    CUDA(cudaFree(memory));
}

/* Every tile row of 16 bits from first_tile on, n_runs times. */
static inline void check_p(const kind *k, const shape *s, uint64_t seed, int first_tile, int n_runs) {
    p_problem p;
    make_p_problem(&p, k, s, seed);
    for (int tile = first_tile; tile < MB_MOE_N_TILES; tile++)
        if (mb_moe_tiles[tile].family == MB_MOE_16BIT)
            run_p_tile(&p, tile, n_runs);
    const mb_moe_forward_args *f = &p.of.forward;
    mb_moe_forward_args refused = *f;
    refused.p = (char *)p.first_p + 2;
    expect(p.of.name, "p in the middle of 16 bytes", mb_moe_forward_sm90(&refused, NULL, 0, NULL),
           MB_ERR_ARGUMENT);
    printf("%-5s T=%d H=%d I=%d E=%d K=%d: %lld rows of p\n", k->name, s->T, s->H, s->I, s->E, s->K,
           (long long)p.n_rows);
    free_p_problem(&p);
}

/* p of weights in fp32 or fp8 is refused, not left out. */
static inline void check_p_refusals(void) {
    static const shape s = {3, 64, 32, 4, 2, 128, 0, MB_ACT_SWIGLU, RANDOM, 0};
    for (int k = 0; k < N_KINDS; k++) {
        if (k == BF16 || k == FP16)
            continue;
        problem p;
        make_problem(&p, &kinds[k], &s, 5);
        mb_moe_forward_args f = p.forward;
        f.p = allocate((size_t)(6 * 64) * sizeof(float));
        expect(p.name, "p", mb_moe_forward_sm90(&f, NULL, 0, NULL), MB_ERR_UNSUPPORTED);
        CUDA(cudaFree(f.p));
        free_problem(&p);
    }
}

#endif
