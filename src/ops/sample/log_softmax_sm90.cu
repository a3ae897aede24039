/* log_softmax_sm90.cu - log of the softmax, a cluster of CTAs a row: maximum, sum in fp64, difference. */
#include "ops/sample/row.cuh"

static __global__ void __launch_bounds__(SAMPLE_THREADS) log_softmax(mb_log_softmax_args args) {
    __shared__ float scratch[SAMPLE_WARPS];
    __shared__ unsigned long long maxima[MOST_CTAS];
    __shared__ double sums[N_PIECES];
    const row_place at = find_place(args.vocab);
    mb_cluster_arrive_relaxed();
    mb_grid_launch_dependents();
    mb_grid_wait();
    mb_cluster_wait(); /* all CTAs have begun */
    const int64_t row = blockIdx.x / at.n_ctas;
    const float *logits = args.logits + row * args.vocab;
    float *out = args.out + row * args.vocab, maximum = -CUDART_INF_F;
    for (int32_t p = at.first; p < N_PIECES; p += at.step) {
        const int32_t end = begin_of(&at, p + 1);
        for (int32_t chunk = begin_of(&at, p); chunk < end; chunk += CHUNK) {
            float v[AT_ONCE][4];
            load_chunk(logits, at.vocab, chunk, end, v);
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    maximum = fmaxf(maximum, v[k][e]);
        }
    }
    maximum = mb_cta_max<SAMPLE_THREADS>(maximum, scratch);
    if (threadIdx.x < 32)
        tell_all(&at, &maxima[at.rank], __float_as_uint(maximum));
    mb_cluster_sync();
    for (uint32_t rank = 0; rank < at.n_ctas; rank++)
        maximum = fmaxf(maximum, __uint_as_float((uint32_t)maxima[rank]));
    sum_pieces(&at, logits, maximum, sums);
    mb_cluster_sync();
    const double shift = log_sum_exp(maximum, sums);
    for (int32_t p = at.first; p < N_PIECES; p += at.step)
        for (int32_t i = begin_of(&at, p) + threadIdx.x % 32; i < begin_of(&at, p + 1); i += 32)
            out[i] = (float)((double)logits[i] - shift);
}

mb_status mb_log_softmax_sm90(const mb_log_softmax_args *args, mb_stream stream) {
    MB_TRY(mb_log_softmax_check(args));
    if (args->n_rows == 0)
        return MB_OK;
    return launch_rows("log_softmax", log_softmax, args->n_rows, stream, args);
}
