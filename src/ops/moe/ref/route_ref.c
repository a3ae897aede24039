#include "ops/common/dtype.h"
#include "ops/common/parallel.h"
#include "ops/common/vector.h"
#include "ops/moe/arguments.h"
#include "ops/moe/moe.h"
#include "ops/moe/ref/ref.h"

#include <math.h>
#include <stdatomic.h>

enum { MAX_EXPERTS = 1024 };

int mb_silence_nan(int32_t n, float *logits) {
    int found = 0;
    for (int32_t e = 0; e < n; e++)
        if (isnan(logits[e])) {
            logits[e] = -INFINITY;
            found = 1;
        }
    return found;
}

/* The K largest logits, largest first: insertion into a sorted list, behind equal ones that came before. */
static void choose(const float *logits, int32_t n_experts, int32_t top_k, int32_t *ids) {
    int32_t n = 0;
    for (int32_t e = 0; e < n_experts; e++) {
        if (n == top_k && !(logits[e] > logits[ids[n - 1]]))
            continue;
        int32_t place = n < top_k ? n++ : n - 1;
        for (; place > 0 && logits[e] > logits[ids[place - 1]]; place--)
            ids[place] = ids[place - 1];
        ids[place] = e;
    }
}

/* e^(logit - maximum); the maximum's own is 1 even where the difference of infinities would be NaN, so that
 * a row of nothing but -infinity gives equal weights. */
static float relative_exp(float logit, float maximum) {
    return logit == maximum ? 1.0f : mb_exp(logit - maximum);
}

void mb_route_weights(int32_t n_experts, const float *logits, int32_t n_choices, const int32_t *ids,
                      int over_chosen, float *weights) {
    float maximum = -INFINITY;
    double sum = 0;
    int32_t n = over_chosen ? n_choices : n_experts;
    for (int32_t i = 0; i < n; i++) {
        int32_t e = over_chosen ? ids[i] : i;
        if (e >= 0)
            maximum = fmaxf(maximum, logits[e]);
    }
    for (int32_t i = 0; i < n; i++) {
        int32_t e = over_chosen ? ids[i] : i;
        if (e >= 0)
            sum += (double)relative_exp(logits[e], maximum);
    }
    for (int32_t k = 0; k < n_choices; k++)
        weights[k] = ids[k] >= 0 ? (float)((double)relative_exp(logits[ids[k]], maximum) / sum) : 0;
}

typedef struct routing {
    const mb_moe_route_args *args;
    atomic_int *had_nan;
} routing;

static void route_token(const void *context, int64_t t) {
    const routing *r = context;
    const mb_moe_route_args *args = r->args;
    int32_t n_experts = args->n_experts, top_k = args->top_k;
    int32_t *ids = args->ids + t * top_k;
    float *weights = args->weights + t * top_k;
    float logits[MAX_EXPERTS];
    mb_load_f32(args->logits_dtype, args->logits, t * n_experts, n_experts, logits);
    if (mb_silence_nan(n_experts, logits))
        atomic_store(r->had_nan, 1);
    choose(logits, n_experts, top_k, ids);
    mb_route_weights(n_experts, logits, top_k, ids, args->order == MB_ROUTE_TOPK_SOFTMAX || args->renormalize,
                     weights);
}

mb_status mb_moe_route_ref(const mb_moe_route_args *args, mb_stream stream) {
    MB_TRY(mb_moe_route_check(args));
    atomic_int had_nan = 0;
    routing r = {args, &had_nan};
    mb_parallel_for(stream, 16.0 * (double)args->n_tokens * args->n_experts, args->n_tokens, route_token, &r);
    if (had_nan && args->nan_flag)
        *args->nan_flag = 1;
    return MB_OK;
}
