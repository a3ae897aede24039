/*
 * ops_check - the operators of a forward pass on the GPU: the cases that check the CPU's too, against fp64,
 * and bits that must not depend on company.
 *
 *   ops_check [NAME]    all, or one operator's cases, or "bits"
 *
 * The cases' memory is pinned host memory, which the kernels read over the bus: slow, and one list of cases.
 */
#include "check.cuh"

extern "C" {
#include "device/device.h"
#include "ops/common/dtype.h"
}
#include "ops/common/check.h"
#include "ops/moe/moe_sm90.h"

static mb_device *gpu;
static const char *only; /* NULL: all */
static int n_run;

static void *allocate_pinned(size_t n_bytes) {
    void *memory = NULL;
    CUDA(cudaMallocHost(&memory, n_bytes ? n_bytes : 1));
    return memory;
}

static void release_pinned(void *memory) {
    CUDA(cudaFreeHost(memory));
}

static mb_status finish(mb_stream stream) {
    const cudaError_t error = cudaStreamSynchronize((cudaStream_t)stream);
    if (error == cudaSuccess)
        return MB_OK;
    fprintf(stderr, "the kernel failed: %s\n", cudaGetErrorString(error));
    exit(1);
}

static void run_cases(const char *name, void (*cases)(mb_check *), cudaStream_t stream) {
    if (only && strcmp(only, name) != 0)
        return;
    n_run++;
    mb_check check = {};
    check.ops = gpu->ops;
    check.stream = stream;
    check.seed = 1;
    check.allocate = allocate_pinned;
    check.release = release_pinned;
    check.finish = finish;
    check.on_gpu = 1;
    cases(&check);
    printf("%-12s %d cases, %d skipped, %d failed\n", name, check.n_cases, check.n_skipped, check.n_failed);
    wrong += check.n_failed;
    if (check.n_cases - check.n_skipped < check.n_cases / 8)
        complain(name, "nearly all cases are skipped", check.n_skipped);
}

/* ---- bits of attention: a prompt at once, in chunks, token by token, and beside other sequences */

enum { D = 128, BLOCK = 64, MOST_SEQUENCES = 8 };

typedef struct attention_problem {
    int32_t n_heads, n_kv_heads, dim, length, max_blocks, n_pool;
    uint16_t *q, *k, *v; /* device: [length, Hq, D]; pool of blocks */
    int32_t *table;      /* host [max_blocks] */
    void *workspace;
    size_t workspace_bytes;
} attention_problem;

static uint16_t *random_bf16(int64_t n, uint64_t seed) {
    uint16_t *host = (uint16_t *)host_allocate(2 * (size_t)n), *device = (uint16_t *)allocate(2 * (size_t)n);
    for (int64_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        const float value = (float)((double)(seed >> 11) * 0x1p-53 * 4 - 2);
        uint32_t bits;
        memcpy(&bits, &value, 4);
        host[i] = (uint16_t)(bits >> 16);
    }
    CUDA(cudaMemcpy(device, host, 2 * (size_t)n, cudaMemcpyHostToDevice));
    free(host);
    return device;
}

/* Runs n sequences that all are this problem's, sequence s with the queries [begin[s], end[s]). */
static void attend(const attention_problem *p, int32_t n, const int32_t *begin, const int32_t *end,
                   uint16_t *out) {
    int32_t q_start[MOST_SEQUENCES + 1] = {0}, most_q = 0;
    for (int32_t s = 0; s < n; s++) {
        q_start[s + 1] = q_start[s] + end[s] - begin[s];
        most_q = end[s] - begin[s] > most_q ? end[s] - begin[s] : most_q;
    }
    const int64_t row = (int64_t)p->n_heads * p->dim, n_tokens = q_start[n];
    uint16_t *q = (uint16_t *)allocate(2 * (size_t)(n_tokens * row));
    uint16_t *all = (uint16_t *)allocate(2 * (size_t)(n_tokens * row));
    CUDA(cudaMemset(all, 0xff, 2 * (size_t)(n_tokens * row)));
    int32_t *ints = (int32_t *)allocate(4 * (size_t)(2 * n + 1 + n * p->max_blocks));
    CUDA(cudaMemcpy(ints, q_start, 4 * (size_t)(n + 1), cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(ints + n + 1, end, 4 * (size_t)n, cudaMemcpyHostToDevice));
    for (int32_t s = 0; s < n; s++) {
        CUDA(cudaMemcpy(ints + 2 * n + 1 + s * p->max_blocks, p->table, 4 * (size_t)p->max_blocks,
                        cudaMemcpyHostToDevice));
        CUDA(cudaMemcpy(q + q_start[s] * row, p->q + begin[s] * row, 2 * (size_t)((end[s] - begin[s]) * row),
                        cudaMemcpyDeviceToDevice));
    }
    mb_attention_args args = {};
    args.q = q;
    args.k_cache = p->k;
    args.v_cache = p->v;
    args.q_start = ints;
    args.kv_len = ints + n + 1;
    args.block_table = ints + 2 * n + 1;
    args.out = all;
    args.n_tokens = n_tokens;
    args.n_sequences = n;
    args.max_blocks = p->max_blocks;
    args.max_q_len = most_q;
    args.max_kv_len = p->length;
    args.n_heads = p->n_heads;
    args.n_kv_heads = p->n_kv_heads;
    args.head_dim = p->dim;
    args.scale = 0.08838834764f;
    args.dtype = args.cache_dtype = MB_BF16;
    CUDA(cudaMemset(p->workspace, 0xff, p->workspace_bytes));
    if (bytes_of(mb_attention_sm90_workspace, &args) > p->workspace_bytes)
        complain("attention", "the workspace of the largest batch is too small for this one",
                 (double)n_tokens);
    MB(mb_attention_sm90(&args, p->workspace, p->workspace_bytes, NULL));
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaMemcpy(out, all, 2 * (size_t)(n_tokens * row), cudaMemcpyDeviceToHost));
    CUDA(cudaFree(q));
    CUDA(cudaFree(all));
    CUDA(cudaFree(ints));
}

static void check_attention_bits(int32_t n_heads, int32_t n_kv_heads, int32_t dim, int32_t length) {
    char name[80];
    snprintf(name, sizeof name, "attention bits Hq=%d Hkv=%d D=%d L=%d", n_heads, n_kv_heads, dim, length);
    attention_problem p = {n_heads, n_kv_heads, dim, length, (length + BLOCK - 1) / BLOCK, 0};
    p.n_pool = p.max_blocks + 3;
    p.q = random_bf16((int64_t)length * n_heads * dim, 1);
    p.k = random_bf16((int64_t)p.n_pool * n_kv_heads * BLOCK * dim, 2);
    p.v = random_bf16((int64_t)p.n_pool * n_kv_heads * BLOCK * dim, 3);
    p.table = (int32_t *)host_allocate(4 * (size_t)p.max_blocks);
    for (int32_t i = 0; i < p.max_blocks; i++)
        p.table[i] = p.n_pool - 1 - i;
    mb_attention_args most = {};
    most.n_tokens = 3 * length;
    most.n_sequences = MOST_SEQUENCES;
    most.max_blocks = p.max_blocks;
    most.max_q_len = length;
    most.max_kv_len = length;
    most.n_heads = n_heads;
    most.n_kv_heads = n_kv_heads;
    most.head_dim = dim;
    most.dtype = most.cache_dtype = MB_BF16;
    p.workspace_bytes = bytes_of(mb_attention_sm90_workspace, &most);
    p.workspace = allocate(p.workspace_bytes);

    const int64_t row = (int64_t)n_heads * dim;
    uint16_t *whole = (uint16_t *)host_allocate(2 * (size_t)(length * row));
    uint16_t *other = (uint16_t *)host_allocate(2 * (size_t)(3 * length * row));
    const int32_t zero = 0;
    attend(&p, 1, &zero, &length, whole);
    static const int32_t chunks[] = {1, 2, 3, 7, 64, 100, 512};
    for (size_t c = 0; c < sizeof chunks / sizeof *chunks; c++) {
        if (chunks[c] == 1 && length > 700)
            continue;
        for (int32_t begin = 0; begin < length; begin += chunks[c]) {
            const int32_t end = begin + chunks[c] < length ? begin + chunks[c] : length;
            attend(&p, 1, &begin, &end, other);
            if (memcmp(other, whole + begin * row, 2 * (size_t)((end - begin) * row)) != 0) {
                complain(name, "a chunk of the prompt has other bits than the whole", chunks[c]);
                break;
            }
        }
    }
    /* decode, a chunk, nothing and the whole prompt in one batch */
    const int32_t begin[] = {length - 1, length / 3, length, 0, length / 2};
    const int32_t end[] = {length, length / 2, length, length, length / 2 + 1};
    attend(&p, 5, begin, end, other);
    int64_t at = 0;
    for (int s = 0; s < 5; s++) {
        const size_t n = (size_t)((end[s] - begin[s]) * row);
        if (memcmp(other + at, whole + begin[s] * row, 2 * n) != 0)
            complain(name, "a sequence has other bits in a batch than alone", s);
        at += (int64_t)n;
    }
    CUDA(cudaFree(p.q));
    CUDA(cudaFree(p.k));
    CUDA(cudaFree(p.v));
    CUDA(cudaFree(p.workspace));
    free(p.table);
    free(whole);
    free(other);
}

/* ---- bits of the dense layer: a row alone and in a batch */

static void check_gemm_bits(int64_t n, int64_t k) {
    enum { ROWS = 300 };
    uint16_t *x = random_bf16(ROWS * k, 4), *w = random_bf16(n * k, 5), *residual = random_bf16(ROWS * n, 6);
    uint16_t *out = (uint16_t *)allocate(2 * (size_t)(ROWS * n));
    uint16_t *whole = (uint16_t *)host_allocate(2 * (size_t)(ROWS * n)),
             *part = (uint16_t *)host_allocate(2 * (size_t)(ROWS * n));
    mb_gemm_args args = {};
    args.weight.data = w;
    args.weight.count = 1;
    args.weight.rows = n;
    args.weight.cols = k;
    args.weight.dtype = args.dtype = args.out_dtype = args.bias_dtype = MB_BF16;
    args.out = out;
    args.n_tokens = ROWS;
    const size_t bytes = bytes_of(mb_gemm_sm90_workspace, &args);
    void *workspace = allocate(bytes);
    static const int64_t counts[] = {ROWS, 1, 2, 8, 9, 16, 17, 33, 64, 65, 130, 299};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        const int64_t first = c == 0 ? 0 : (ROWS - counts[c]) / 2;
        args.x = x + first * k;
        args.residual = residual + first * n;
        args.n_tokens = counts[c];
        CUDA(cudaMemset(out, 0xff, 2 * (size_t)(ROWS * n)));
        MB(mb_gemm_sm90(&args, workspace, bytes, NULL));
        CUDA(cudaDeviceSynchronize());
        CUDA(cudaMemcpy(c == 0 ? whole : part, out, 2 * (size_t)(counts[c] * n), cudaMemcpyDeviceToHost));
        if (c > 0 && memcmp(part, whole + first * n, 2 * (size_t)(counts[c] * n)) != 0)
            complain("gemm bits", "rows have other bits in a smaller batch", (double)counts[c]);
    }
    CUDA(cudaFree(x));
    CUDA(cudaFree(w));
    CUDA(cudaFree(residual));
    CUDA(cudaFree(out));
    CUDA(cudaFree(workspace));
    free(whole);
    free(part);
}

/* ---- fp8: rows that are given in it have the bits of rows that the operator quantises itself */

typedef struct fp8_rows {
    uint8_t *values; /* device [rows, cols] */
    float *scale;    /* device [rows, ceil(cols / 128)] */
} fp8_rows;

/* Of rows in bf16 on the device, quantised by the host. */
static fp8_rows quantised(const uint16_t *rows, int64_t n_rows, int64_t n_cols) {
    const size_t n = (size_t)(n_rows * n_cols), n_scales = (size_t)(n_rows * mb_f8_blocks(n_cols));
    fp8_rows f = {(uint8_t *)allocate(n), (float *)allocate(4 * n_scales)};
    uint16_t *host = (uint16_t *)host_allocate(2 * n);
    uint8_t *bytes = (uint8_t *)host_allocate(n);
    float *scale = (float *)host_allocate(4 * n_scales), *row = (float *)host_allocate(4 * (size_t)n_cols);
    CUDA(cudaMemcpy(host, rows, 2 * n, cudaMemcpyDeviceToHost));
    for (int64_t r = 0; r < n_rows; r++) {
        mb_load_f32(MB_BF16, host, r * n_cols, n_cols, row);
        mb_store_f8_blocks(bytes, r * n_cols, n_cols, scale + r * mb_f8_blocks(n_cols), row);
    }
    CUDA(cudaMemcpy(f.values, bytes, n, cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(f.scale, scale, 4 * n_scales, cudaMemcpyHostToDevice));
    free(host);
    free(bytes);
    free(scale);
    free(row);
    return f;
}

/* e4m3 with block scales. */
static mb_weight random_fp8_weight(int64_t count, int64_t rows, int64_t cols, uint64_t seed) {
    const size_t n = (size_t)(count * rows * cols),
                 n_scales = (size_t)(count * mb_f8_blocks(rows) * mb_f8_blocks(cols));
    uint8_t *bytes = (uint8_t *)host_allocate(n);
    float *scales = (float *)host_allocate(4 * n_scales);
    for (size_t i = 0; i < n; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        bytes[i] = (uint8_t)(seed >> 56);
        if ((bytes[i] & 0x7f) == 0x7f) /* NaN */
            bytes[i] ^= 1;
    }
    for (size_t i = 0; i < n_scales; i++)
        scales[i] = 0.0002f * (float)(i % 7 + 1);
    mb_weight weight = {};
    weight.count = count;
    weight.rows = rows;
    weight.cols = cols;
    weight.scale_rows = weight.scale_cols = MB_F8_BLOCK;
    weight.dtype = MB_F8_E4M3;
    weight.data = allocate(n);
    weight.scale = allocate(4 * n_scales);
    CUDA(cudaMemcpy((void *)weight.data, bytes, n, cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy((void *)weight.scale, scales, 4 * n_scales, cudaMemcpyHostToDevice));
    free(bytes);
    free(scales);
    return weight;
}

/* The same numbers, the first scale being that of all. */
static mb_weight with_one_scale(mb_weight weight) {
    weight.scale_rows = weight.scale_cols = 0;
    return weight;
}

/* The dense layer: x, the same x in fp8, and for qkv's sake with a norm in front beside the normed rows. */
static void check_gemm_x8(int64_t n_tokens, int64_t n, int64_t k, int one_scale) {
    const size_t n_bytes = 2 * (size_t)(n_tokens * n);
    const mb_weight blocks = random_fp8_weight(1, n, k, 21),
                    weight = one_scale ? with_one_scale(blocks) : blocks;
    uint16_t *x = random_bf16(n_tokens * k, 22), *norm = random_bf16(k, 23);
    uint16_t *normed = (uint16_t *)allocate(2 * (size_t)(n_tokens * k));
    uint16_t *out = (uint16_t *)allocate(n_bytes), *host[2];
    mb_gemm_args args = {};
    args.weight = weight;
    args.dtype = args.out_dtype = MB_BF16;
    args.out = out;
    args.n_tokens = n_tokens;
    args.norm_weight.data = norm;
    args.norm_weight.count = args.norm_weight.rows = 1;
    args.norm_weight.cols = k;
    args.norm_weight.dtype = MB_BF16;
    args.eps = 1e-6f;
    args.x = x;
    const size_t bytes = bytes_of(mb_gemm_sm90_workspace, &args);
    void *workspace = allocate(bytes);
    const mb_rms_norm_args norm_alone = mb_gemm_norm(&args, normed);
    MB(mb_rms_norm_sm90(&norm_alone, NULL));
    CUDA(cudaDeviceSynchronize());
    for (int with_norm = 0; with_norm < 2; with_norm++) {
        const uint16_t *rows = with_norm ? normed : x;
        const fp8_rows x8 = quantised(rows, n_tokens, k);
        for (int given = 0; given < 2; given++) {
            mb_gemm_args call = given       ? mb_gemm_of_normed(&args, NULL)
                                : with_norm ? args
                                            : mb_gemm_of_normed(&args, x);
            call.x8 = given ? x8.values : NULL;
            call.x8_scale = given ? x8.scale : NULL;
            CUDA(cudaMemset(out, 0xff, n_bytes));
            CUDA(cudaMemset(workspace, 0xff, bytes));
            MB(mb_gemm_sm90(&call, workspace, bytes, NULL));
            CUDA(cudaDeviceSynchronize());
            host[given] = (uint16_t *)host_allocate(n_bytes);
            CUDA(cudaMemcpy(host[given], out, n_bytes, cudaMemcpyDeviceToHost));
        }
        if (memcmp(host[0], host[1], n_bytes) != 0)
            complain("gemm x8", with_norm ? "other bits than with the norm in front" : "other bits than of x",
                     (double)n_tokens);
        free(host[0]);
        free(host[1]);
        CUDA(cudaFree(x8.values));
        CUDA(cudaFree(x8.scale));
    }
    CUDA(cudaFree((void *)weight.data));
    CUDA(cudaFree((void *)weight.scale));
    CUDA(cudaFree(x));
    CUDA(cudaFree(norm));
    CUDA(cudaFree(normed));
    CUDA(cudaFree(out));
    CUDA(cudaFree(workspace));
}

static void check_moe_x8(int32_t n_tokens) {
    enum { HIDDEN = 320, INTERMEDIATE = 192, EXPERTS = 8, TOP_K = 2 };
    const int64_t n = (int64_t)n_tokens * HIDDEN;
    uint16_t *x = random_bf16(n, 31), *out = (uint16_t *)allocate(2 * (size_t)n), *host[2];
    const fp8_rows x8 = quantised(x, n_tokens, HIDDEN);
    const size_t n_choices = (size_t)n_tokens * TOP_K;
    int32_t *ids = (int32_t *)host_allocate(4 * n_choices), *ids_there = (int32_t *)allocate(4 * n_choices);
    float *weights = (float *)host_allocate(4 * n_choices), *weights_there = (float *)allocate(4 * n_choices);
    for (size_t i = 0; i < n_choices; i++) {
        ids[i] = (int32_t)((i / TOP_K * 5 + i % TOP_K * 3) % EXPERTS);
        weights[i] = 0.1f * (float)(i % 9 + 1);
    }
    CUDA(cudaMemcpy(ids_there, ids, 4 * n_choices, cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy(weights_there, weights, 4 * n_choices, cudaMemcpyHostToDevice));
    mb_moe_forward_args args = {};
    args.x = x;
    args.weights = weights_there;
    args.ids = ids_there;
    args.w13 = random_fp8_weight(EXPERTS, 2 * INTERMEDIATE, HIDDEN, 32);
    args.w2 = random_fp8_weight(EXPERTS, HIDDEN, INTERMEDIATE, 33);
    args.out = out;
    args.n_tokens = n_tokens;
    args.hidden = HIDDEN;
    args.intermediate = INTERMEDIATE;
    args.top_k = TOP_K;
    args.n_experts = args.n_local_experts = EXPERTS;
    args.dtype = MB_BF16;
    args.activation = MB_ACT_SWIGLU;
    const size_t bytes = bytes_of(gpu->ops->moe_forward_workspace, &args);
    void *workspace = allocate(bytes);
    for (int given = 0; given < 2; given++) {
        args.x8 = given ? x8.values : NULL;
        args.x8_scale = given ? x8.scale : NULL;
        CUDA(cudaMemset(out, 0xff, 2 * (size_t)n));
        CUDA(cudaMemset(workspace, 0xff, bytes));
        MB(gpu->ops->moe_forward(&args, workspace, bytes, NULL));
        CUDA(cudaDeviceSynchronize());
        host[given] = (uint16_t *)host_allocate(2 * (size_t)n);
        CUDA(cudaMemcpy(host[given], out, 2 * (size_t)n, cudaMemcpyDeviceToHost));
    }
    if (memcmp(host[0], host[1], 2 * (size_t)n) != 0)
        complain("moe_forward x8", "other bits than of x", n_tokens);
    void *const there[] = {x,
                           out,
                           x8.values,
                           x8.scale,
                           ids_there,
                           weights_there,
                           (void *)args.w13.data,
                           (void *)args.w13.scale,
                           (void *)args.w2.data,
                           (void *)args.w2.scale,
                           workspace};
    for (size_t i = 0; i < sizeof there / sizeof *there; i++)
        CUDA(cudaFree(there[i]));
    free(host[0]);
    free(host[1]);
    free(ids);
    free(weights);
}

/* ---- the dense layer with fp8 weights: near the exact product, and rows as in a larger batch */

/* One scale of a matrix: the bits of as many blocks that all have it. */
static void check_one_scale(const mb_gemm_args *of_one, const uint16_t *expected) {
    const mb_weight *weight = &of_one->weight;
    const size_t n_scales = (size_t)(mb_f8_blocks(weight->rows) * mb_f8_blocks(weight->cols)),
                 n_bytes = 2 * (size_t)(of_one->n_tokens * weight->rows);
    float *scales = (float *)host_allocate(4 * n_scales), *one = (float *)download(weight->scale, 4);
    for (size_t i = 0; i < n_scales; i++)
        scales[i] = *one;
    mb_gemm_args args = *of_one;
    args.weight.scale = allocate(4 * n_scales);
    args.weight.scale_rows = args.weight.scale_cols = MB_F8_BLOCK;
    CUDA(cudaMemcpy((void *)args.weight.scale, scales, 4 * n_scales, cudaMemcpyHostToDevice));
    CUDA(cudaMemset(args.out, 0xff, n_bytes));
    const size_t bytes = bytes_of(mb_gemm_sm90_workspace, &args);
    void *workspace = allocate(bytes);
    MB(mb_gemm_sm90(&args, workspace, bytes, NULL));
    CUDA(cudaDeviceSynchronize());
    void *got = download(args.out, n_bytes);
    if (memcmp(got, expected, n_bytes) != 0)
        complain("gemm fp8", "one scale has other bits than as many blocks", (double)args.n_tokens);
    CUDA(cudaFree((void *)args.weight.scale));
    CUDA(cudaFree(workspace));
    free(got);
    free(scales);
    free(one);
}

/* One scale, and x still to be added up from rows in the call's workspace: as after a reduce of its own. */
static void check_sum_one_scale(int64_t n_tokens, int64_t n, int64_t k) {
    enum { TOP_K = 3 };
    const size_t n_bytes = 2 * (size_t)(n_tokens * n), row_bytes = 2 * (size_t)(n_tokens * TOP_K * k);
    const mb_weight weight = with_one_scale(random_fp8_weight(1, n, k, 41));
    uint16_t *y = random_bf16(n_tokens * TOP_K * k, 42), *residual = random_bf16(n_tokens * k, 43),
             *x = (uint16_t *)allocate(2 * (size_t)(n_tokens * k)), *norm = random_bf16(k, 44),
             *out = (uint16_t *)allocate(n_bytes);
    int32_t *rows = (int32_t *)host_allocate(4 * (size_t)(n_tokens * TOP_K));
    float *factors = (float *)host_allocate(4 * (size_t)(n_tokens * TOP_K));
    for (int32_t i = 0; i < (int32_t)n_tokens * TOP_K; i++) {
        rows[i] = (int32_t)n_tokens * TOP_K - 1 - i;
        factors[i] = 0.1f + 0.2f * (float)(i % 4);
    }
    mb_moe_reduce_args sum = {};
    sum.residual = residual;
    sum.out = x;
    sum.token_row = (int32_t *)allocate(4 * (size_t)(n_tokens * TOP_K));
    sum.weights = (float *)allocate(4 * (size_t)(n_tokens * TOP_K));
    CUDA(cudaMemcpy((void *)sum.token_row, rows, 4 * (size_t)(n_tokens * TOP_K), cudaMemcpyHostToDevice));
    CUDA(cudaMemcpy((void *)sum.weights, factors, 4 * (size_t)(n_tokens * TOP_K), cudaMemcpyHostToDevice));
    sum.n_tokens = n_tokens;
    sum.top_k = TOP_K;
    sum.hidden = (int32_t)k;
    sum.dtype = sum.out_dtype = MB_BF16;
    mb_gemm_args args = {};
    args.weight = weight;
    args.dtype = args.out_dtype = MB_BF16;
    args.x = x;
    args.out = out;
    args.n_tokens = n_tokens;
    args.norm_weight.data = norm;
    args.norm_weight.count = args.norm_weight.rows = 1;
    args.norm_weight.cols = k;
    args.norm_weight.dtype = MB_BF16;
    args.eps = 1e-6f;
    const size_t needed = bytes_of(mb_gemm_sm90_workspace, &args), bytes = needed + row_bytes;
    char *workspace = (char *)allocate(bytes);
    void *host[2];
    for (int in_call = 0; in_call < 2; in_call++) {
        CUDA(cudaMemset(workspace, 0xff, bytes));
        CUDA(cudaMemset(x, 0xff, 2 * (size_t)(n_tokens * k)));
        CUDA(cudaMemcpy(workspace, y, row_bytes, cudaMemcpyDeviceToDevice));
        CUDA(cudaDeviceSynchronize());
        sum.y = workspace;
        args.x_sum = in_call ? &sum : NULL;
        if (!in_call)
            MB(mb_moe_reduce_sm90(&sum, NULL));
        MB(mb_gemm_sm90(&args, workspace, bytes, NULL));
        CUDA(cudaDeviceSynchronize());
        host[in_call] = download(out, n_bytes);
    }
    if (memcmp(host[0], host[1], n_bytes) != 0)
        complain("gemm fp8", "one scale and a sum in front: other bits than after reduce", (double)n_tokens);
    const void *all[] = {weight.data, weight.scale,  y,           residual, x, norm,
                         out,         sum.token_row, sum.weights, workspace};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        CUDA(cudaFree((void *)all[i]));
    free(host[0]);
    free(host[1]);
    free(rows);
    free(factors);
}

static void check_gemm_fp8(int64_t n, int64_t k, int one_scale) {
    enum { ROWS = 70 };
    uint16_t *x = random_bf16(ROWS * k, 7), *out = (uint16_t *)allocate(2 * (size_t)(ROWS * n));
    const mb_weight blocks = random_fp8_weight(1, n, k, 11),
                    weight = one_scale ? with_one_scale(blocks) : blocks;
    uint16_t *x_host = (uint16_t *)host_allocate(2 * (size_t)(ROWS * k));
    uint16_t *whole = (uint16_t *)host_allocate(2 * (size_t)(ROWS * n)),
             *part = (uint16_t *)host_allocate(2 * (size_t)(ROWS * n));
    CUDA(cudaMemcpy(x_host, x, 2 * (size_t)(ROWS * k), cudaMemcpyDeviceToHost));
    mb_gemm_args args = {};
    args.x = x;
    args.weight = weight;
    args.dtype = args.out_dtype = MB_BF16;
    args.out = out;
    args.n_tokens = ROWS;
    const size_t bytes = bytes_of(mb_gemm_sm90_workspace, &args);
    void *workspace = allocate(bytes);
    CUDA(cudaMemset(out, 0xff, 2 * (size_t)(ROWS * n)));
    MB(mb_gemm_sm90(&args, workspace, bytes, NULL));
    CUDA(cudaDeviceSynchronize());
    CUDA(cudaMemcpy(whole, out, 2 * (size_t)(ROWS * n), cudaMemcpyDeviceToHost));
    mb_weight on_host = weight;
    on_host.data = download(weight.data, (size_t)(n * k));
    on_host.scale = download(weight.scale, 4 * (size_t)(mb_f8_blocks(n) * mb_f8_blocks(k)));
    double error = 0, norm = 0;
    for (int64_t t = 0; t < ROWS; t += 23)
        for (int64_t j = 0; j < n; j++) {
            double sum = 0;
            for (int64_t i = 0; i < k; i++)
                sum += mb_check_value(MB_BF16, x_host, t * k + i) * mb_check_weight_value(&on_host, 0, j, i);
            const double got = mb_check_value(MB_BF16, whole, t * n + j);
            error += (got - sum) * (got - sum);
            norm += sum * sum;
        }
    if (!(error < 0.04 * 0.04 * norm)) /* x in e4m3 has four significant bits: some 2.5 % */
        complain("gemm fp8", "far from the exact product", sqrt(error / norm));
    if (one_scale)
        check_one_scale(&args, whole);
    static const int64_t counts[] = {1, 4, 5, 16, 64, 65};
    for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
        const int64_t first = (ROWS - counts[c]) / 2;
        args.n_tokens = counts[c];
        args.x = x + first * k;
        CUDA(cudaMemset(out, 0xff, 2 * (size_t)(ROWS * n)));
        MB(mb_gemm_sm90(&args, workspace, bytes, NULL));
        CUDA(cudaDeviceSynchronize());
        CUDA(cudaMemcpy(part, out, 2 * (size_t)(counts[c] * n), cudaMemcpyDeviceToHost));
        if (memcmp(part, whole + first * n, 2 * (size_t)(counts[c] * n)) != 0)
            complain("gemm fp8", "rows have other bits in a smaller batch", (double)counts[c]);
    }
    CUDA(cudaFree(x));
    CUDA(cudaFree((void *)weight.data));
    CUDA(cudaFree((void *)weight.scale));
    CUDA(cudaFree(out));
    CUDA(cudaFree(workspace));
    free((void *)on_host.data);
    free((void *)on_host.scale);
    free(x_host);
    free(whole);
    free(part);
}

int main(int argc, char **argv) {
    only = argc > 1 ? argv[1] : NULL;
    MB(mb_device_open_cuda(0, &gpu));
    cudaStream_t stream;
    CUDA(cudaStreamCreate(&stream));
    run_cases("embed", mb_embed_cases, stream);
    run_cases("norm", mb_norm_cases, stream);
    run_cases("gemm", mb_gemm_cases, stream);
    run_cases("rope", mb_rope_cases, stream);
    run_cases("attention", mb_attention_cases, stream);
    run_cases("decode_attention", mb_decode_attention_cases, stream);
    run_cases("sample", mb_sample_cases, stream);
    run_cases("moe_plan", mb_moe_plan_cases, stream);
    run_cases("grouped_gemm", mb_grouped_gemm_cases, stream);
    run_cases("moe", mb_moe_cases, stream);
    if (only && strcmp(only, "bits") != 0) {
        if (n_run == 0)
            complain(only, "there is no such operator", 0);
        printf(wrong ? "%d WRONG\n" : "all right\n", wrong);
        return wrong ? 1 : 0;
    }
    check_attention_bits(32, 4, 128, 700);
    check_attention_bits(8, 8, 128, 300);
    check_attention_bits(16, 1, 64, 517);
    check_attention_bits(64, 4, 128, 1300);
    check_gemm_bits(2048, 4096);
    check_gemm_bits(5120, 2048);
    check_gemm_bits(136, 72);
    for (int one_scale = 0; one_scale < 2; one_scale++) {
        check_gemm_fp8(512, 2048, one_scale);
        check_gemm_fp8(264, 400, one_scale);
    }
    static const int64_t token_counts[] = {1, 4, 7, 40, 64, 65, 300};
    for (size_t i = 0; i < sizeof token_counts / sizeof *token_counts; i++) {
        for (int one_scale = 0; one_scale < 2; one_scale++) {
            check_gemm_x8(token_counts[i], 512, 2048, one_scale);
            check_gemm_x8(token_counts[i], 264, 400, one_scale);
        }
        check_sum_one_scale(token_counts[i], 512, 2048);
        check_moe_x8((int32_t)token_counts[i]);
    }
    printf(wrong ? "%d WRONG\n" : "all right\n", wrong);
    return wrong ? 1 : 0;
}
