/*
 * backward_weights_check.cu - checks and times the gradients of the experts' weights
 * (mb_moe_backward_weights_sm90).
 *
 *   backward_weights_check [--small] [--check] [--time]
 *
 * Ugly problems: empty experts, one expert that has all rows, counts at the edges of steps, sizes that are no
 * multiples of a tile, either operand gathered or none, both dtypes, results in fp32 and in dtype, added to
 * what is there or not. Every element is compared with a sum in fp64. Results are poisoned before, and what
 * lies in front of and behind them must stay. Rows that belong to another expert or to none are NaN where a
 * leak would show. An expert alone gives the bits that it gives among the others, and so does a second run.
 *
 * Times are those of a layer's dw13 and dw2. Exit status 1 when anything is wrong. --check times nothing,
 * --time does nothing else. --small, for compute-sanitizer: each of the four kernels, turned and not,
 * added to and not, once on more items than a GPU has pairs of CTAs, and on tiles that are cut on both
 * sides; nothing is run a second time.
 */
#include "backward_weights_times.cuh"

enum { PAD_ROWS = 70, GUARD_BYTES = 4096 };

/* Counts of rows. */
enum pattern { RAGGED, ONE_HAS_ALL, NONE_HAS_ANY, AT_EDGES, WHOLE_STEPS, N_PATTERNS };
static const char *const pattern_names[] = {"ragged", "one has all", "none has any", "edges", "whole steps"};

/* Which operand has an index. */
enum gathered { GATHER_A, GATHER_B, GATHER_NONE, N_GATHERED };
static const char *const gathered_names[] = {"a gathered", "b gathered", "none gathered"};

typedef struct problem {
    int32_t n_experts, m, n;
    int pattern, gathered;
    mb_dtype dtype;
    int32_t *offsets; /* host */
    int64_t n_rows, n_tokens;
    int32_t *index, *offsets_device; /* device */
    void *a, *b;
    int64_t a_rows, b_rows;
    char subject[160];
} problem;

/* ---- Problems */

static int32_t count_of(int pattern, int32_t expert, int32_t n_experts, uint64_t seed) {
    static const int32_t edges[] = {1, 0, 15, 16, 17, 48, 49, 63, 64, 65, 127, 128, 129, 255, 256, 257};
    const uint64_t random = (seed * 7919 + (uint64_t)expert * 104729) * 2654435761u >> 16;
    switch (pattern) {
    case RAGGED:
        return expert % 5 == 3 ? 0 : 1 + (int32_t)(random % 300);
    case ONE_HAS_ALL:
        return expert == n_experts / 2 ? 1789 : 0;
    case NONE_HAS_ANY:
        return 0;
    case AT_EDGES:
        return edges[(expert + seed) % (sizeof edges / sizeof *edges)];
    default:
        return (int32_t)(random % 4) * 64;
    }
}

/* Values at random places, as a permutation: odd steps through a power of two. */
static void choose_tokens(int32_t *index, int64_t n_rows, int64_t n_tokens, uint64_t seed) {
    int64_t size = 1, at = (int64_t)(seed % 97), r = 0;
    while (size < n_tokens)
        size *= 2;
    for (int64_t i = 0; i < size && r < n_rows; i++) {
        at = (at * 5 + 77) % size; /* a full period */
        if (at < n_tokens)
            index[r++] = (int32_t)at;
    }
}

static problem make_problem(int32_t n_experts, int32_t m, int32_t n, int pattern, int gathered,
                            mb_dtype dtype, uint64_t seed) {
    problem p = {};
    p.n_experts = n_experts, p.m = m, p.n = n, p.pattern = pattern, p.gathered = gathered, p.dtype = dtype;
    p.offsets = (int32_t *)host_allocate(sizeof(int32_t) * (size_t)(n_experts + 1));
    for (int32_t e = 0; e < n_experts; e++)
        p.offsets[e + 1] = p.offsets[e] + count_of(pattern, e, n_experts, seed);
    p.n_rows = p.offsets[n_experts];
    p.n_tokens = p.n_rows + 37;
    p.a_rows = gathered == GATHER_A ? p.n_tokens : p.n_rows + PAD_ROWS;
    p.b_rows = gathered == GATHER_B ? p.n_tokens : p.n_rows + PAD_ROWS;
    p.a = random_values(p.a_rows * m, dtype, seed, 1);
    p.b = random_values(p.b_rows * n, dtype, seed + 1, 1);
    p.offsets_device = (int32_t *)allocate(sizeof(int32_t) * (size_t)(n_experts + 1));
    CUDA(cudaMemcpy(p.offsets_device, p.offsets, sizeof(int32_t) * (size_t)(n_experts + 1),
                    cudaMemcpyHostToDevice));
    if (gathered != GATHER_NONE) {
        int32_t *index = (int32_t *)host_allocate(sizeof(int32_t) * (size_t)p.n_rows);
        choose_tokens(index, p.n_rows, p.n_tokens, seed);
        p.index = (int32_t *)allocate(sizeof(int32_t) * (size_t)p.n_rows);
        CUDA(cudaMemcpy(p.index, index, sizeof(int32_t) * (size_t)p.n_rows, cudaMemcpyHostToDevice));
        free(index);
    }
    snprintf(p.subject, sizeof p.subject, "E %d, m %d, n %d, %s, %s, %s, seed %llu", n_experts, m, n,
             pattern_names[pattern], gathered_names[gathered], mb_dtype_name(dtype),
             (unsigned long long)seed);
    return p;
}

static void free_problem(problem *p) {
    CUDA(cudaFree(p->a));
    CUDA(cudaFree(p->b));
    CUDA(cudaFree(p->index));
    CUDA(cudaFree(p->offsets_device));
    free(p->offsets);
}

static mb_moe_backward_weights_args args_of(const problem *p, mb_dtype out_dtype, int accumulate, void *out) {
    mb_moe_backward_weights_args args = {};
    args.a = p->a;
    args.b = p->b;
    args.a_index = p->gathered == GATHER_A ? p->index : NULL;
    args.b_index = p->gathered == GATHER_B ? p->index : NULL;
    args.offsets = p->offsets_device;
    args.out = out;
    args.n_experts = p->n_experts;
    args.m = p->m;
    args.n = p->n;
    args.dtype = p->dtype;
    args.out_dtype = out_dtype;
    args.accumulate = accumulate;
    return args;
}

/* ---- The reference */

/* sums[e][i][j], and with `absolute` of the products' sizes. */
static __global__ void reference(mb_moe_backward_weights_args args, int absolute, double *sums) {
    const int64_t per_expert = (int64_t)args.m * args.n, n = per_expert * args.n_experts;
    for (int64_t at = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; at < n;
         at += (int64_t)gridDim.x * blockDim.x) {
        const int64_t e = at / per_expert, i = at % per_expert / args.n, j = at % args.n;
        double sum = 0;
        for (int64_t r = args.offsets[e]; r < args.offsets[e + 1]; r++) {
            const int64_t a_row = args.a_index ? args.a_index[r] : r,
                          b_row = args.b_index ? args.b_index[r] : r;
            const double product = (double)load_value(args.a, a_row * args.m + i, args.dtype) *
                                   (double)load_value(args.b, b_row * args.n + j, args.dtype);
            sum += absolute ? fabs(product) : product;
        }
        sums[at] = sum;
    }
}

typedef struct comparison {
    unsigned long long n_wrong;
    double apart, size; /* squares */
} comparison;

/* An element is right within the rounding of the result and of the sum: the tensor cores' sums are of 16
 * products, whose bits below 2^-22 of the largest may be lost. Empty experts must be exact: 0, or as
 * before. */
static __global__ void compare(mb_moe_backward_weights_args args, const void *before, const double *sums,
                               const double *sizes, double unit, comparison *found) {
    const int64_t per_expert = (int64_t)args.m * args.n, n = per_expert * args.n_experts;
    const double least = args.out_dtype == MB_F16 ? 0x1p-25 : 0; /* half the smallest number */
    comparison mine = {};
    for (int64_t at = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; at < n;
         at += (int64_t)gridDim.x * blockDim.x) {
        const int64_t e = at / per_expert, n_rows = args.offsets[e + 1] - args.offsets[e];
        const double old = args.accumulate ? (double)load_value(before, at, args.out_dtype) : 0;
        const double expected = sums[at] + old, value = (double)load_value(args.out, at, args.out_dtype);
        const double most = n_rows == 0
                                ? 0
                                : least + unit * fabs(expected) +
                                      sizes[at] * (double)(n_rows / 16 + 4) * 0x1p-22 + fabs(old) * 0x1p-22;
        mine.n_wrong += !(fabs(value - expected) <= most);
        mine.apart += (value - expected) * (value - expected);
        mine.size += expected * expected;
    }
    atomicAdd(&found->n_wrong, mine.n_wrong);
    atomicAdd(&found->apart, mine.apart);
    atomicAdd(&found->size, mine.size);
}

static double unit_of(mb_dtype dtype) { /* half a unit in the last place, and a little */
    return dtype == MB_F32 ? 0x1.01p-24 : dtype == MB_BF16 ? 0x1.01p-8 : 0x1.01p-11;
}

/* ---- Checks */

typedef struct guarded {
    unsigned char *all, *out;
    size_t n_bytes;
} guarded;

static guarded make_guarded(size_t n_bytes) {
    guarded g = {(unsigned char *)allocate(n_bytes + 2 * GUARD_BYTES), NULL, n_bytes};
    g.out = g.all + GUARD_BYTES;
    return g;
}

static void poison(const guarded *g) {
    CUDA(cudaMemset(g->all, 0xff, g->n_bytes + 2 * GUARD_BYTES));
}

static void check_guards(const char *subject, const guarded *g) {
    for (int side = 0; side < 2; side++) {
        unsigned char *bytes = (unsigned char *)download(side ? g->out + g->n_bytes : g->all, GUARD_BYTES);
        int n = 0;
        for (int i = 0; i < GUARD_BYTES; i++)
            n += bytes[i] != 0xff;
        if (n)
            complain(subject, side ? "bytes written behind the result" : "bytes written in front of it", n);
        free(bytes);
    }
}

/* Expert e alone. */
static void check_alone(const problem *p, mb_dtype out_dtype, const guarded *g, int32_t e) {
    const int64_t n = (int64_t)p->m * p->n;
    const size_t n_bytes = (size_t)n * mb_dtype_bytes(out_dtype);
    void *out = allocate(n_bytes);
    CUDA(cudaMemset(out, 0xff, n_bytes));
    mb_moe_backward_weights_args args = args_of(p, out_dtype, 0, out);
    args.offsets += e;
    args.n_experts = 1;
    MB(mb_moe_backward_weights_sm90(&args, NULL));
    const double n_differ = differences(out, g->out + n_bytes * (size_t)e, n, out_dtype);
    if (n_differ > 0)
        complain(p->subject, "elements of an expert alone that have other bits than in company", n_differ);
    CUDA(cudaFree(out));
}

/* is_thorough: a second run, and experts alone, have the same bits. */
static void check_result(const problem *p, mb_dtype out_dtype, int accumulate, const double *sums,
                         const double *sizes, comparison *found, int is_thorough) {
    const int64_t n = (int64_t)p->n_experts * p->m * p->n;
    const size_t n_bytes = (size_t)n * mb_dtype_bytes(out_dtype);
    char subject[240];
    snprintf(subject, sizeof subject, "%s, out %s%s", p->subject, mb_dtype_name(out_dtype),
             accumulate ? ", added" : "");
    guarded g = make_guarded(n_bytes), again = make_guarded(n_bytes);
    poison(&g);
    poison(&again);
    void *before = accumulate ? random_values(n, out_dtype, 99, 20) : NULL;
    if (accumulate) {
        CUDA(cudaMemcpy(g.out, before, n_bytes, cudaMemcpyDeviceToDevice));
        CUDA(cudaMemcpy(again.out, before, n_bytes, cudaMemcpyDeviceToDevice));
    }
    mb_moe_backward_weights_args args = args_of(p, out_dtype, accumulate, again.out);
    if (is_thorough)
        MB(mb_moe_backward_weights_sm90(&args, NULL));
    args.out = g.out;
    MB(mb_moe_backward_weights_sm90(&args, NULL));
    CUDA(cudaMemset(found, 0, sizeof *found));
    compare<<<1024, 256>>>(args, before, sums, sizes, unit_of(out_dtype), found);
    CUDA(cudaDeviceSynchronize());
    comparison host;
    CUDA(cudaMemcpy(&host, found, sizeof host, cudaMemcpyDeviceToHost));
    const double relative = host.size > 0 ? sqrt(host.apart / host.size) : 0;
    if (host.n_wrong)
        complain(subject, "elements are too far from the sum in fp64", (double)host.n_wrong);
    if (!(relative <= (out_dtype == MB_F32 ? 2e-5 : out_dtype == MB_BF16 ? 2.5e-3 : 3.2e-4)))
        complain(subject, "|out - reference| / |reference|", relative);
    const double n_differ = is_thorough ? differences(g.out, again.out, n, out_dtype) : 0;
    if (n_differ > 0)
        complain(subject, "elements have other bits in a second run", n_differ);
    check_guards(subject, &g);
    if (is_thorough && !accumulate)
        for (int32_t e = 0; e<p->n_experts; e += p->n_experts> 3 ? 3 : 1)
            check_alone(p, out_dtype, &g, e);
    CUDA(cudaFree(before));
    CUDA(cudaFree(g.all));
    CUDA(cudaFree(again.all));
}

static __global__ void fill_nan_rows(void *values, const int32_t *index, int64_t first, int64_t n_rows,
                                     int64_t width, mb_dtype dtype) {
    for (int64_t i = blockIdx.x * (int64_t)blockDim.x + threadIdx.x; i < n_rows * width;
         i += (int64_t)gridDim.x * blockDim.x) {
        const int64_t r = first + i / width;
        store_value(values, (index ? index[r] : r) * width + i % width, dtype, NAN);
    }
}

/* Rows of no expert. */
static void spoil_padding(const problem *p) {
    if (p->gathered != GATHER_A)
        fill_nan_rows<<<64, 256>>>(p->a, NULL, p->n_rows, PAD_ROWS, p->m, p->dtype);
    if (p->gathered != GATHER_B)
        fill_nan_rows<<<64, 256>>>(p->b, NULL, p->n_rows, PAD_ROWS, p->n, p->dtype);
    CUDA(cudaGetLastError());
}

/* Every second expert's rows are NaN, of both operands: the others' results must be what they were. */
static void check_neighbours(const problem *p, mb_dtype out_dtype) {
    const int64_t per_expert = (int64_t)p->m * p->n;
    const size_t expert_bytes = (size_t)per_expert * mb_dtype_bytes(out_dtype),
                 n_bytes = expert_bytes * (size_t)p->n_experts;
    unsigned char *clean = (unsigned char *)allocate(n_bytes), *spoilt = (unsigned char *)allocate(n_bytes);
    mb_moe_backward_weights_args args = args_of(p, out_dtype, 0, clean);
    MB(mb_moe_backward_weights_sm90(&args, NULL));
    for (int32_t e = 1; e < p->n_experts; e += 2) {
        const int64_t first = p->offsets[e], n_rows = p->offsets[e + 1] - first;
        fill_nan_rows<<<64, 256>>>(p->a, args.a_index, first, n_rows, p->m, p->dtype);
        fill_nan_rows<<<64, 256>>>(p->b, args.b_index, first, n_rows, p->n, p->dtype);
    }
    args.out = spoilt;
    CUDA(cudaMemset(spoilt, 0xff, n_bytes));
    MB(mb_moe_backward_weights_sm90(&args, NULL));
    for (int32_t e = 0; e < p->n_experts; e += 2) {
        const double n_differ = differences(clean + expert_bytes * (size_t)e,
                                            spoilt + expert_bytes * (size_t)e, per_expert, out_dtype);
        if (n_differ > 0)
            complain(p->subject, "elements changed by the NaN of a neighbour's rows", n_differ);
    }
    CUDA(cudaFree(clean));
    CUDA(cudaFree(spoilt));
}

static void check_problem(int32_t n_experts, int32_t m, int32_t n, int pattern, int gathered, mb_dtype dtype,
                          uint64_t seed, int is_thorough) {
    problem p = make_problem(n_experts, m, n, pattern, gathered, dtype, seed);
    const size_t sums_bytes = sizeof(double) * (size_t)n_experts * (size_t)m * (size_t)n;
    double *sums = (double *)allocate(sums_bytes), *sizes = (double *)allocate(sums_bytes);
    comparison *found = (comparison *)allocate(sizeof *found);
    spoil_padding(&p);
    const mb_moe_backward_weights_args args = args_of(&p, MB_F32, 0, NULL);
    reference<<<1024, 256>>>(args, 0, sums);
    reference<<<1024, 256>>>(args, 1, sizes);
    CUDA(cudaGetLastError());
    for (int accumulate = 0; accumulate < 2; accumulate++) {
        check_result(&p, MB_F32, accumulate, sums, sizes, found, is_thorough);
        check_result(&p, dtype, accumulate, sums, sizes, found, is_thorough);
    }
    if (is_thorough)
        check_neighbours(&p, MB_F32);
    CUDA(cudaFree(sums));
    CUDA(cudaFree(sizes));
    CUDA(cudaFree(found));
    free_problem(&p);
}

static void check_refusals(void) {
    problem p = make_problem(2, 64, 64, WHOLE_STEPS, GATHER_A, MB_BF16, 1);
    void *out = allocate(sizeof(float) * 2 * 64 * 64);
    const mb_moe_backward_weights_args good = args_of(&p, MB_F32, 0, out);
    struct {
        const char *what;
        mb_moe_backward_weights_args args;
        mb_status expected;
    } cases[] = {{"two indices", good, MB_ERR_UNSUPPORTED}, {"m of 60", good, MB_ERR_ARGUMENT},
                 {"no experts", good, MB_ERR_ARGUMENT},     {"fp32 operands", good, MB_ERR_UNSUPPORTED},
                 {"fp16 results", good, MB_ERR_ARGUMENT},   {"a misaligned", good, MB_ERR_ARGUMENT},
                 {"no offsets", good, MB_ERR_ARGUMENT},     {"no out", good, MB_ERR_ARGUMENT}};
    cases[0].args.b_index = p.index;
    cases[1].args.m = 60;
    cases[2].args.n_experts = 0;
    cases[3].args.dtype = MB_F32;
    cases[4].args.out_dtype = MB_F16;
    cases[5].args.a = (const char *)p.a + 2;
    cases[6].args.offsets = NULL;
    cases[7].args.out = NULL;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        expect("refusals", cases[i].what, mb_moe_backward_weights_sm90(&cases[i].args, NULL),
               cases[i].expected);
    CUDA(cudaFree(out));
    free_problem(&p);
}

static void check_all(void) {
    static const int32_t sizes[][2] = {{8, 8},     {128, 256},  {256, 128}, {264, 520},
                                       {72, 1000}, {1000, 136}, {600, 344}};
    int n_problems = 0;
    uint64_t seed = 1;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        for (int pattern = 0; pattern < N_PATTERNS; pattern++)
            for (int gathered = 0; gathered < N_GATHERED; gathered++) {
                seed++;
                n_problems++;
                check_problem(pattern == AT_EDGES ? 16 : 9, sizes[i][0], sizes[i][1], pattern, gathered,
                              seed / 2 % 2 ? MB_F16 : MB_BF16, seed, 1);
            }
    printf("%d problems\n", n_problems);
}

static void check_small(void) {
    /* An item an expert: some pairs have two, one after the other. */
    check_problem(80, 8, 8, AT_EDGES, GATHER_A, MB_BF16, 40, 0);
    check_problem(80, 8, 8, AT_EDGES, GATHER_B, MB_F16, 41, 0);
    check_problem(80, 8, 8, AT_EDGES, GATHER_NONE, MB_BF16, 42, 0);
    /* 64 and 65 rows; the second tile of each operand has 8 columns. */
    check_problem(2, 264, 264, AT_EDGES, GATHER_A, MB_F16, 8, 0);
    check_problem(2, 264, 264, AT_EDGES, GATHER_B, MB_BF16, 8, 0);
}

int main(int argc, char **argv) {
    int is_small = 0, is_check = 0, is_time = 0;
    for (int i = 1; i < argc; i++) {
        is_small |= strcmp(argv[i], "--small") == 0;
        is_check |= strcmp(argv[i], "--check") == 0;
        is_time |= strcmp(argv[i], "--time") == 0;
    }
    if (!is_time) {
        check_refusals();
        if (is_small)
            check_small();
        else
            check_all();
    }
    if (!is_small && !is_check) {
        void *flush = allocate(FLUSH_BYTES);
        print_times_head();
        for (size_t i = 0; i < N_LAYERS; i++)
            time_layer(&layers[i], flush);
        CUDA(cudaFree(flush));
    }
    printf(wrong ? "%d WRONG\n" : "all right\n", wrong);
    return wrong ? 1 : 0;
}
