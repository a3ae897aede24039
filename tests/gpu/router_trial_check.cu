#include "ops/moe/moe_sm90.h"
#include "timing.cuh"
#include "values.cuh"

static void launch(const void *context, cudaStream_t stream) {
    MB(mb_moe_router_gemm_sm90((const mb_moe_router_gemm_args *)context, NULL, 0, stream));
}
static __global__ void empty(void) {}
static void launch_empty(const void *context, cudaStream_t stream) {
    (void)context;
    empty<<<1, 32, 0, stream>>>();
}

int main(void) {
    void *flush = allocate(FLUSH_BYTES);
    printf("empty %.2f\n", time_graph(launch_empty, NULL, flush));
    static const int shapes[][3] = {{1, 2048, 128},    {4, 2048, 128},    {16, 2048, 128},  {17, 2048, 128},
                                    {32, 2048, 128},   {64, 2048, 128},   {128, 2048, 128}, {256, 2048, 128},
                                    {384, 2048, 128},  {512, 2048, 128},  {768, 2048, 128}, {1024, 2048, 128},
                                    {2048, 2048, 128}, {4096, 2048, 128}, {8192, 2048, 128}, {1, 4096, 128},
                                    {64, 4096, 128},   {512, 4096, 128},  {4096, 4096, 128}, {37, 264, 60},
                                    {300, 72, 9},      {70, 1992, 131}};
    for (const auto &s : shapes) {
        const int64_t n = (int64_t)s[0] * s[2];
        mb_moe_router_gemm_args args = {};
        args.x = random_values((int64_t)s[0] * s[1], MB_BF16, 1, 1.0f);
        args.weight = random_values((int64_t)s[1] * s[2], MB_BF16, 2, 0.1f);
        args.n_tokens = s[0];
        args.hidden = s[1];
        args.n_experts = s[2];
        args.dtype = args.weight_dtype = MB_BF16;
        float *base = (float *)allocate(sizeof(float) * (size_t)n), *out = (float *)allocate(sizeof(float) * (size_t)n);
        printf("T %5d H %4d E %3d", s[0], s[1], s[2]);
        for (int trial = 0; trial <= 5; trial++) {
            static const int bytes[] = {0, 24 * 128, 32 * 128, 48 * 128, 40 * 128, 48 * 128};
            if ((s[1] + 63) / 64 * bytes[trial] > 227 << 10) {
                printf("     -  ");
                continue;
            }
            char text[8];
            snprintf(text, sizeof text, "%d", trial);
            setenv("MB_ROUTER", text, 1);
            args.logits = trial ? out : base;
            CUDA(cudaMemset(args.logits, 0xff, sizeof(float) * (size_t)n));
            launch(&args, NULL);
            CUDA(cudaDeviceSynchronize());
            if (trial && differences(base, out, n, MB_F32) > 0)
                complain("router", "other bits", trial);
            printf(" %7.2f", time_graph(launch, &args, flush));
        }
        printf("\n");
        const void *memory[] = {args.x, args.weight, base, out};
        for (const void *one : memory)
            CUDA(cudaFree((void *)one));
    }
    printf(wrong ? "%d WRONG\n" : "all right\n", wrong);
    return wrong ? 1 : 0;
}
