/* moe_musts.cuh - the times that the forward must and should reach on one H100 SXM, in us. */
#ifndef MB_TESTS_MOE_MUSTS_CUH
#define MB_TESTS_MOE_MUSTS_CUH

#include "moe_problem.cuh"

typedef struct moe_must {
    int T, H, I, E;
    double must_16bit, aim_16bit, must_fp8, aim_fp8, must_tf32; /* 0: none */
} moe_must;

static const moe_must moe_musts[] = {
    {1, 2048, 768, 128, 38, 32, 26, 20, 0},
    {4, 2048, 768, 128, 120, 105, 66, 56, 0},
    {16, 2048, 768, 128, 310, 285, 160, 145, 620},
    {64, 2048, 768, 128, 455, 425, 232, 215, 0},
    {256, 2048, 768, 128, 470, 435, 240, 220, 0},
    {704, 2048, 768, 128, 490, 450, 262, 235, 1000},
    {4096, 2048, 768, 128, 720, 620, 420, 350, 0},
    {16384, 2048, 768, 128, 2000, 1850, 1200, 1020, 0},
    {4096, 4096, 1024, 128, 1750, 1500, 950, 800, 0},
    {32768, 4096, 1024, 128, 10500, 9700, 6000, 5300, 0},
    {16384, 4096, 1024, 256, 6000, 5400, 3300, 2900, 0},
};

static inline void print_must(const problem *p, double us) {
    for (size_t i = 0; i < sizeof(moe_musts) / sizeof(moe_musts[0]); i++) {
        const moe_must *m = &moe_musts[i];
        if (m->T != p->s.T || m->H != p->s.H || m->I != p->s.I || m->E != p->s.E)
            continue;
        const mb_dtype weights = p->k->weights;
        const int is_tf32 = p->k == &kinds[TF32];
        const double must = weights == MB_F8_E4M3 ? m->must_fp8
                            : weights != MB_F32   ? m->must_16bit
                            : is_tf32             ? m->must_tf32
                                                  : 0;
        const double aim = weights == MB_F8_E4M3 ? m->aim_fp8 : weights != MB_F32 ? m->aim_16bit : 0;
        if (must > 0)
            printf("  must %.0f", must);
        if (aim > 0)
            printf(" aim %.0f", aim);
        if (must > 0)
            printf(": %s", aim > 0 && us <= aim ? "aim reached" : us <= must ? "met" : "NOT MET");
    }
}

#endif
