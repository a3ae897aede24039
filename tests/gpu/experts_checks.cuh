/* experts_checks.cuh - the experts alone against the same step inside of a forward: the same bits. */
#ifndef MB_TESTS_EXPERTS_CHECKS_CUH
#define MB_TESTS_EXPERTS_CHECKS_CUH

#include "moe_problem.cuh"
#include "ops/moe/layout_sm90.h"

/* The rows of x that row_index names, one after another. */
static inline void *gather_rows(const mb_moe_experts_args *args, int64_t n_rows) {
    const size_t row_bytes = mb_dtype_row_bytes(args->dtype, args->hidden);
    char *x = (char *)download(args->x, (size_t)args->n_tokens * row_bytes);
    int32_t *row_index = (int32_t *)download(args->row_index, sizeof(int32_t) * (size_t)n_rows);
    char *rows = (char *)host_allocate((size_t)n_rows * row_bytes), *on_device;
    for (int64_t r = 0; r < n_rows; r++)
        memcpy(rows + (size_t)r * row_bytes, x + (size_t)row_index[r] * row_bytes, row_bytes);
    on_device = (char *)allocate((size_t)n_rows * row_bytes);
    CUDA(cudaMemcpy(on_device, rows, (size_t)n_rows * row_bytes, cudaMemcpyHostToDevice));
    free(x);
    free(row_index);
    free(rows);
    return on_device;
}

/* Runs the operator in memory of its own; y is poisoned, so rows that are not written differ. */
static inline void compare_experts(const problem *p, mb_moe_experts_args args, int64_t n_rows,
                                   const char *what) {
    const void *expected = args.y;
    const size_t y_bytes = (size_t)args.n_rows * mb_dtype_row_bytes(args.dtype, args.hidden);
    const size_t workspace_bytes = bytes_of(mb_moe_experts_sm90_workspace, &args);
    void *workspace = allocate(workspace_bytes);
    args.y = allocate(y_bytes);
    CUDA(cudaMemset(args.y, 0xff, y_bytes));
    CUDA(cudaMemset(workspace, 0xff, workspace_bytes));
    MB(mb_moe_experts_sm90(&args, workspace, workspace_bytes, NULL));
    CUDA(cudaDeviceSynchronize());
    const double n = differences(expected, args.y, n_rows * args.hidden, args.dtype);
    if (n > 0)
        complain(p->name, what, n);
    expect(p->name, "experts: workspace too small",
           mb_moe_experts_sm90(&args, workspace, workspace_bytes / 2, NULL), MB_ERR_CAPACITY);
    CUDA(cudaFree(args.y));
    CUDA(cudaFree(workspace));
}

/* steps: of the forward that has just run, whose workspace still holds plan and y. n_rows: of the local
 * experts. */
static inline void check_experts_alone(const problem *p, const mb_moe_steps *steps, int64_t n_rows) {
    enum { MOST_GATHERED = 1 << 22 };
    mb_moe_experts_args args = steps->experts;
    compare_experts(p, args, n_rows, "elements of y that the experts alone compute otherwise");
    if (n_rows == 0 || n_rows * args.hidden > MOST_GATHERED)
        return;
    void *gathered = gather_rows(&args, n_rows);
    args.x = gathered;
    args.row_index = NULL;
    args.n_tokens = args.n_rows = n_rows;
    compare_experts(p, args, n_rows, "elements of y that the experts compute otherwise from gathered rows");
    CUDA(cudaFree(gathered));
}

#endif
