#include "ops/moe/backward/router_layout.h"

#include "base/status.h"
#include "ops/common/dtype.h"
#include "ops/common/workspace.h"
#include "ops/moe/backward/router_sm90.h"
#include "ops/moe/routing_arguments.h"

mb_losses_layout mb_moe_router_losses_layout(const mb_moe_router_losses_args *args, mb_arena *arena) {
    mb_losses_layout l = {0};
    if (args->n_tokens == 0)
        return l;
    int64_t n_parts = mb_ceil_div(args->n_tokens, MB_LOSSES_TOKENS);
    n_parts = n_parts < MB_LOSSES_PARTS ? n_parts : MB_LOSSES_PARTS;
    l.part_tokens = mb_ceil_div(args->n_tokens, n_parts);
    l.n_parts = (int32_t)mb_ceil_div(args->n_tokens, l.part_tokens);
    size_t n = (size_t)n_parts * (size_t)args->n_experts; /* (n_parts does not fall as tokens get more) */
    l.probabilities = mb_arena_push(arena, n, sizeof *l.probabilities);
    l.counts = mb_arena_push(arena, n, sizeof *l.counts);
    l.squares = mb_arena_push(arena, (size_t)n_parts, sizeof *l.squares);
    return l;
}

mb_rounding_layout mb_moe_token_rounding_layout(const mb_moe_token_rounding_args *args, mb_arena *arena) {
    mb_rounding_layout l = {0};
    if (args->n_tokens == 0)
        return l;
    size_t n_tokens = (size_t)args->n_tokens, n_experts = (size_t)args->n_experts;
    l.n_words = mb_ceil_div(args->n_tokens, MB_ROUNDING_WORD);
    size_t n_words = (size_t)l.n_words;
    l.log_sums = mb_arena_push(arena, n_tokens, sizeof *l.log_sums);
    l.score_keys = mb_arena_push(arena, n_words * MB_ROUNDING_WORD, n_experts * sizeof *l.score_keys);
    l.chosen = mb_arena_push(arena, n_words, n_experts * sizeof *l.chosen);
    l.n_added = mb_arena_push(arena, n_tokens, sizeof *l.n_added);
    l.candidates = mb_arena_push(arena, n_experts, MB_ROUNDING_LISTED * sizeof *l.candidates);
    l.n_candidates = mb_arena_push(arena, n_experts, sizeof *l.n_candidates);
    l.last_dropped = mb_arena_push(arena, n_experts, sizeof *l.last_dropped);
    l.goes_down = mb_arena_push(arena, n_experts, sizeof *l.goes_down);
    return l;
}

mb_status mb_moe_router_losses_sm90_workspace(const mb_moe_router_losses_args *most, size_t *bytes) {
    MB_TRY(mb_moe_router_losses_check_sizes(most));
    mb_arena arena;
    mb_arena_measure(&arena);
    mb_moe_router_losses_layout(most, &arena);
    return mb_workspace_measured("moe_router_losses", &arena, bytes);
}

mb_status mb_moe_token_rounding_sm90_workspace(const mb_moe_token_rounding_args *most, size_t *bytes) {
    MB_TRY(mb_moe_token_rounding_check_sizes(most));
    mb_arena arena;
    mb_arena_measure(&arena);
    mb_moe_token_rounding_layout(most, &arena);
    return mb_workspace_measured("moe_token_rounding", &arena, bytes);
}
