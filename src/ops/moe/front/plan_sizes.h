/*
 * plan_sizes.h - how many CTAs the plan has on sm_90, and the bytes of its workspace. Plain C, tested
 * without a GPU.
 *
 * The plan of few experts and choices is in plan_sm90.cu: `count` and `place`, or `place` alone when one
 * CTA is enough. The plan of many is in plan_many_sm90.cu.
 */
#ifndef MB_OPS_MOE_PLAN_SIZES_H
#define MB_OPS_MOE_PLAN_SIZES_H

#include "moebius/ops.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    FEW_EXPERTS = 1024, /* a thread each in the scan */
    FEW_EXPERT_BITS = 10,
    PLAN_THREADS = 1024,
    ONE_CTA_CHOICES = 1024, /* up to here one CTA is quicker than two launches */
    MAX_PLAN_CTAS = 128,
    MANY_CHOICES = 1 << 22, /* from here on the plan of many experts is quicker for few as well */
};

/* The plan of many experts. */
enum {
    MAX_CHUNK_EXPERTS = 1700000, /* chunks times experts */
    BATCH = 1024,                /* choices of a turn: 10 bits */
    PLACE_THREADS = 512,
    PLACE_WARPS = PLACE_THREADS / 32,
    MAX_SCAN_CTAS = 64,
    EXPERT_BITS = 14,
    MAX_GROUP_EXPERTS = 1 << EXPERT_BITS,
};

/* CTAs of the plan of few experts. */
uint32_t mb_plan_ctas(int64_t n_choices);

int mb_plan_is_of_many(const mb_moe_plan_args *args);

/* The plan of many experts: CTAs are n_groups groups of experts times n_chunks chunks of choices, all SMs
 * at most. */
typedef struct mb_plan_grid {
    uint32_t n_chunks, n_groups;
    uint32_t chunk_choices; /* a multiple of BATCH */
    uint32_t group_experts;
} mb_plan_grid;
mb_plan_grid mb_plan_grid_of_many(const mb_moe_plan_args *args, int n_processors);

/* Bytes of workspace: of one call, and enough for every call with as many tokens or fewer. The sizes were
 * checked before. */
size_t mb_plan_bytes(const mb_moe_plan_args *args, int n_processors);
size_t mb_plan_most_bytes(const mb_moe_plan_args *most, int n_processors);

#ifdef __cplusplus
}
#endif
#endif
