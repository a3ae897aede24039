/* count_tokens_sm90.cu - the tokens of one sequence counted, for penalties: one CTA. It runs once when a
 * sequence begins; from then on the sampler counts. */
#include "ops/hopper/launch.cuh"
#include "ops/sample/sample.h"

enum { N_THREADS = 1024 };

static __global__ void __launch_bounds__(N_THREADS) count_tokens(mb_count_tokens_args args) {
    mb_grid_wait();
    for (int32_t i = threadIdx.x; i < args.vocab; i += N_THREADS)
        args.seen[i] = 0;
    __syncthreads();
    for (int64_t i = threadIdx.x; i < args.n_ids; i += N_THREADS) {
        const int32_t id = args.ids[i];
        if (id < 0 || id >= args.vocab)
            continue;
        if (i < args.n_prompt)
            atomicOr(&args.seen[id], 1);
        else
            atomicAdd(&args.seen[id], 2);
    }
    mb_grid_launch_dependents();
}

mb_status mb_count_tokens_sm90(const mb_count_tokens_args *args, mb_stream stream) {
    MB_TRY(mb_count_tokens_check(args));
    return mb_launch("count_tokens", count_tokens, dim3(1), N_THREADS, 0, stream, args);
}
