#include "bench/sizes.h"

#include <stddef.h>

#include "base/status.h"

enum { MAX_SIDE = 1 << 20 };

mb_status mb_bench_check_sizes(const mb_bench_sizes *args) {
    const struct {
        const char *name;
        int64_t value, maximum;
    } sides[] = {
        {"n_tokens", args->n_tokens, MAX_SIDE},
        {"hidden", args->hidden, MAX_SIDE},
        {"intermediate", args->intermediate, MAX_SIDE},
        {"n_experts", args->n_experts, 1024},
        {"top_k", args->top_k, 32},
    };
    for (size_t i = 0; i < sizeof sides / sizeof sides[0]; i++)
        if (sides[i].value < 1 || sides[i].value > sides[i].maximum)
            return mb_fail(MB_ERR_ARGUMENT, "%s is %lld, not in 1 .. %lld", sides[i].name,
                           (long long)sides[i].value, (long long)sides[i].maximum);
    if (args->top_k > args->n_experts)
        return mb_fail(MB_ERR_ARGUMENT, "top_k is %d, more than the %d experts", args->top_k,
                       args->n_experts);
    if (args->n_repeats < 0)
        return mb_fail(MB_ERR_ARGUMENT, "n_repeats is %d", args->n_repeats);
    return MB_OK;
}
