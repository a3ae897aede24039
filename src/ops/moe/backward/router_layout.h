/* router_layout.h - how the router's training operators divide their workspace on sm_90. Plain C;
 * arguments were checked. */
#ifndef MB_OPS_MOE_BACKWARD_ROUTER_LAYOUT_H
#define MB_OPS_MOE_BACKWARD_ROUTER_LAYOUT_H

#include "base/arena.h"
#include "moebius/train.h"

#ifdef __cplusplus
extern "C" {
#endif

enum {
    MB_LOSSES_TOKENS = 32, /* of a part, at least */
    MB_LOSSES_PARTS = 128, /* at most */
    MB_ROUNDING_WORD = 32, /* tokens of a word of `chosen` */
    MB_ROUNDING_LISTED = 1024,
};

/* The tokens in parts, and the sums of each. How they are cut depends on their number alone. */
typedef struct mb_losses_layout {
    double *probabilities; /* [n_parts, E] sums of q */
    int32_t *counts;       /* [n_parts, E] */
    double *squares;       /* [n_parts] sums of logsumexp^2 */
    int64_t part_tokens;
    int32_t n_parts;
} mb_losses_layout;
mb_losses_layout mb_moe_router_losses_layout(const mb_moe_router_losses_args *args, mb_arena *arena);

/* A token's place in an order of tokens: 96 bits, different for different tokens. The largest is the
 * first. */
typedef struct mb_token_rank {
    uint64_t score;
    uint32_t token;
} mb_token_rank;

typedef struct mb_rounding_layout {
    double *log_sums;     /* [T] */
    uint64_t *score_keys; /* [E, n_words * MB_ROUNDING_WORD] */
    uint32_t *chosen;     /* [E, n_words] a bit for each token whose choice the expert was */
    uint8_t *n_added;     /* [T] choices that were added */
    /* [E, MB_ROUNDING_LISTED] the first tokens to add, in order, as if all had a free place */
    int32_t *candidates;
    int32_t *n_candidates;       /* [E] 0: the expert does not go up */
    mb_token_rank *last_dropped; /* [E] if the expert goes down; undefined where its count is a multiple */
    int32_t *goes_down;          /* [E] */
    int64_t n_words;
} mb_rounding_layout;
mb_rounding_layout mb_moe_token_rounding_layout(const mb_moe_token_rounding_args *args, mb_arena *arena);

#ifdef __cplusplus
}
#endif
#endif
