/*
 * profile.h - where the time of a session's steps goes, operator by operator, and what the operators move
 * and compute.
 *
 * A session that is not profiled has no part of this. While one is, it has one step in flight. Each
 * operator's time is taken on the device, before it and after it. On the CPU the clock is read around each
 * call. On a GPU a step that would run as a CUDA graph runs as one that takes the times too, captured anew
 * for each step. Other steps, and all with MB_GRAPHS_NONE or MB_GRAPHS_ATTENTION, are launched kernel by
 * kernel. Operators do not overlap then. A GPU's step without a profile may have several operators in one
 * launch, above all steps of up to four tokens; while one is profiled each operator is launched by itself.
 */
#ifndef MOEBIUS_PROFILE_H
#define MOEBIUS_PROFILE_H

#include "moebius/moebius.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { MB_PROFILE_OPERATORS = 64 };

/* All calls of one operator; those of gemm for each size of the weight by itself. */
typedef struct mb_profile_operator {
    const char *name; /* as in the op table: "attention"; lives as long as the program */
    int64_t n, k;     /* gemm: rows and columns of the weight; else 0 */
    uint64_t n_calls;
    double us;
    /* Inputs that are needed and outputs, once each: of experts those that were hit, of the KV cache the
     * positions that were attended. A multiply-add is two flops. The padding of a graph counts as work. */
    double bytes, flops;
    /* The sum over the calls of the least time: of the bytes at the rate that the device's memory reaches,
     * or of the flops at the rate of the type, whichever is longer. 0 on the CPU. */
    double floor_us;
} mb_profile_operator;

/* All sums are over n_steps. Steps for which the session had no CUDA graph yet are not among them. */
typedef struct mb_profile {
    uint64_t n_steps;
    double device_us;  /* from the beginning of a step's first operator to the end of its last */
    double between_us; /* of device_us: no operator ran */
    double host_us;    /* the stepping thread planned the step, filled its arrays and committed its results */
    double bytes, flops;
    double floor_us; /* of a step: the larger of its bytes' and its flops' time. 0 on the CPU */
    int32_t n_operators;
    mb_profile_operator operators[MB_PROFILE_OPERATORS]; /* the largest us first */
} mb_profile;

/* Begins a profile, of the steps that mb_step plans from now on. One that is in progress begins anew.
 * MB_ERR_STATE: a step is running. MB_ERR_MEMORY. */
MB_API mb_status mb_profile_start(mb_session *session);

/* Ends it. MB_ERR_STATE: none was started, or a step is running. */
MB_API mb_status mb_profile_stop(mb_session *session, mb_profile *profile);

#ifdef __cplusplus
}
#endif
#endif
