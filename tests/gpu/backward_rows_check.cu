/*
 * backward_rows_check.cu - checks and times the backward's gradients of rows on a GPU: dp, hs and dot
 * from d_out, and dx's rows from dp.
 *
 *   backward_rows_check [--check] [--small] [--times]
 *
 * Fresh random data, poisoned outputs and workspace. Every element against sums in fp64, rows of no
 * expert untouched, the second run and rows in other company bitwise equal. All seven activations on
 * every shape. Times are medians of launches one after another, beside the grouped GEMM of the same size
 * whose weights are read along K. Exit status 1 when anything is wrong. --check times nothing; --times
 * checks nothing. --small, for compute-sanitizer: every activation once, in either type in turn, on tiles
 * of every size, and each type on outputs of two tiles; one run of each.
 */
#include "backward_rows_problem.cuh"
#include "backward_rows_times.cuh"

static const rows_shape shapes[] = {
    {64, 40, 128, 128, 3, ROWS_DRAWN, 0},
    {50, 150, 200, 96, 5, ROWS_DRAWN, 0},
    {33, 301, 72, 8, 1, ROWS_DRAWN, EXTREMES},
    {90, 700, 264, 328, 7, ROWS_ALL_TO_ONE, ROWS_BEFORE_AND_BEHIND},
    {17, 97, 8, 520, 60, ROWS_DRAWN, EXTREMES},
    {300, 1100, 136, 264, 9, ROWS_SKEWED, 0},
    {128, 513, 320, 64, 6, ROWS_ODD_ONLY, ROWS_BEFORE_AND_BEHIND},
    {1000, 3000, 512, 256, 4, ROWS_DRAWN, 0},
    {700, 2900, 200, 776, 11, ROWS_SKEWED, EXTREMES},
};
enum { N_SHAPES = sizeof(shapes) / sizeof(shapes[0]) };

/* Experts of some 290, 180, 90, 35 and 5 rows: tiles of every number of tokens. K of two steps, stages of
 * p of 64 and of 8 outputs. */
static const rows_shape every_tile = {100, 600, 72, 72, 5, ROWS_SKEWED, EXTREMES};
static const rows_shape two_column_tiles = {17, 40, 264, 264, 3, ROWS_ALL_TO_ONE, ROWS_BEFORE_AND_BEHIND};

/* ---- The products against fp64 */

static void check_values(const rows_problem *p, int n_runs) {
    const int64_t R = p->s.R, width = p->rows.intermediate, width13 = p->dx.width13;
    for (int repeat = 0; repeat < n_runs; repeat++) {
        poison_outputs(p, repeat);
        run_rows(p);
        run_dx(p);
        CUDA(cudaDeviceSynchronize());
        if (repeat == 0) {
            compare_with_fp64(p);
            check_no_other_rows(p, "dp", p->rows.dp, width13 * 2);
            check_no_other_rows(p, "hs", p->rows.hs, width * 2);
            check_no_other_rows(p, "dx_rows", p->dx.dx_rows, p->rows.hidden * 2);
            for (int64_t part = 0; part < mb_moe_backward_dot_parts(width); part++)
                check_no_other_rows(p, "dot", p->rows.dot + part * R, sizeof(float));
            keep_outputs(p);
        } else
            check_same_as_kept(p);
    }
}

/* ---- Rows in other company */

/* Every third row, alone: its own offsets, tokens, weights and p. */
static void check_company(const rows_problem *p) {
    rows_problem few;
    int32_t *chosen = NULL;
    const int n = make_subset(p, &few, &chosen);
    poison_outputs(&few, 0);
    run_rows(&few);
    run_dx(&few);
    CUDA(cudaDeviceSynchronize());
    compare_subset(p, &few, chosen, n);
    free(chosen);
    free_subset(&few);
}

/* ---- Calls that do nothing, and those that must be refused */

static void check_refusals(const rows_problem *p) {
    mb_moe_backward_rows_args none = p->rows;
    mb_moe_backward_dx_args none_dx = p->dx;
    none.n_rows = none_dx.n_rows = 0;
    none.p = none.d_out = NULL;
    none_dx.dp = NULL;
    expect(p->name, "no rows", mb_moe_backward_rows_sm90(&none, NULL, 0, NULL), MB_OK);
    expect(p->name, "no rows of dx", mb_moe_backward_dx_sm90(&none_dx, NULL, 0, NULL), MB_OK);
#define REFUSE(what, change, status)                                                                 \
    do {                                                                                             \
        mb_moe_backward_rows_args a = p->rows;                                                       \
        change;                                                                                      \
        expect(p->name, what, mb_moe_backward_rows_sm90(&a, p->workspace, p->workspace_bytes, NULL), \
               status);                                                                              \
    } while (0)
    REFUSE("fp32", a.dtype = MB_F32, MB_ERR_UNSUPPORTED);
    REFUSE("H of 12", a.hidden = 12, MB_ERR_ARGUMENT);
    REFUSE("I of 4", a.intermediate = 4, MB_ERR_ARGUMENT);
    REFUSE("no activation", a.activation = MB_ACT_NONE, MB_ERR_ARGUMENT);
    REFUSE("more than 2^32 bytes of d_out", a.n_tokens = (int64_t)1 << 30, MB_ERR_UNSUPPORTED);
    REFUSE("p not aligned", a.p = (const char *)a.p + 8, MB_ERR_ARGUMENT);
    REFUSE("dot NULL", a.dot = NULL, MB_ERR_ARGUMENT);
#undef REFUSE
    expect(p->name, "small workspace", mb_moe_backward_rows_sm90(&p->rows, p->workspace, 8, NULL),
           MB_ERR_CAPACITY);
    expect(p->name, "small workspace of dx", mb_moe_backward_dx_sm90(&p->dx, p->workspace, 8, NULL),
           MB_ERR_CAPACITY);
}

/* Every shape, activation and dtype. */
static void check_shapes(void) {
    for (int i = 0; i < N_SHAPES; i++)
        for (int activation = 0; activation < MB_ACT_NONE; activation++)
            for (int f16 = 0; f16 < 2; f16++) {
                rows_problem p;
                make_problem(&p, &shapes[i], (mb_activation)activation, f16 ? MB_F16 : MB_BF16,
                             (uint64_t)(1000 * i + 10 * activation + f16));
                check_values(&p, 2);
                check_company(&p);
                if (i == 1 && activation == 0)
                    check_refusals(&p);
                free_problem(&p);
            }
    printf("%d shapes, 7 activations, bf16 and fp16\n", N_SHAPES);
}

static void check_sanitized(const rows_shape *s, int activation, mb_dtype dtype, int has_refusals) {
    rows_problem p;
    make_problem(&p, s, (mb_activation)activation, dtype, (uint64_t)(7000 + activation));
    check_values(&p, 1);
    if (has_refusals)
        check_refusals(&p);
    free_problem(&p);
}

static void check_small(void) {
    for (int activation = 0; activation < MB_ACT_NONE; activation++)
        check_sanitized(&every_tile, activation, activation % 2 ? MB_F16 : MB_BF16, activation == 0);
    check_sanitized(&two_column_tiles, MB_ACT_SWIGLU, MB_F16, 0);
    check_sanitized(&two_column_tiles, MB_ACT_RELU, MB_BF16, 0);
}

int main(int argc, char **argv) {
    int check_only = 0, small = 0, times_only = 0;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--check") == 0)
            check_only = 1;
        else if (strcmp(argv[i], "--small") == 0)
            small = check_only = 1;
        else if (strcmp(argv[i], "--times") == 0)
            times_only = 1;
        else {
            fprintf(stderr, "backward_rows_check: %s is no option\n", argv[i]);
            return 2;
        }
    }
    cudaDeviceProp card;
    CUDA(cudaGetDeviceProperties(&card, 0));
    printf("%s\n", card.name);
    if (small)
        check_small();
    else if (!times_only)
        check_shapes();
    if (!times_only)
        printf("largest diff of dp %.1e, hs %.1e, dx %.1e, dot %.1e\n", largest[DP], largest[HS], largest[DX],
               largest[DOT]);
    fflush(stdout);
    if (!check_only)
        time_shapes();
    printf("%s\n", wrong ? "WRONG" : "all right");
    return wrong != 0;
}
