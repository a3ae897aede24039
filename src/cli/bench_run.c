#include "cli/bench.h"

#include <stdlib.h>

#include "base/alloc.h"
#include "base/median.h"
#include "base/random.h"
#include "cli/generate.h"
#include "cli/interrupt.h"
#include "cli/output.h"

enum { LEAST_CHUNK = 512 }; /* the smallest default of any device */

/* One measurement in progress. */
typedef struct bench_run {
    mb_session *session;
    mb_request request; /* the same for every sequence but for its ids */
    int32_t *ids;       /* [batch, length] */
    uint64_t *sequences;
    const cli_bench_case *bench;
    int32_t vocab;
    uint64_t random;
    int profiles_decode;
} bench_run;

/* What one run gave. */
typedef struct bench_times {
    double prefill_s, decode_s;
    int64_t n_prefill_steps, n_decoded;
    mb_profile decode_profile;
} bench_times;

/* Ids over the whole vocabulary, the same for the same seed everywhere. */
static int32_t random_id(bench_run *run) {
    return (int32_t)(mb_random(&run->random) % (uint64_t)run->vocab);
}

/* Queues fresh prompts for the whole batch. */
static int submit_all(bench_run *run) {
    size_t length = (size_t)run->bench->length;
    for (int32_t i = 0; i < run->bench->batch; i++) {
        int32_t *ids = run->ids + (size_t)i * length;
        for (size_t j = 0; j < length; j++)
            ids[j] = random_id(run);
        run->request.ids = ids;
        if (mb_submit(run->session, &run->request, &run->sequences[i]) != MB_OK) {
            while (i-- > 0)
                mb_release(run->session, run->sequences[i]);
            return cli_report_failure();
        }
    }
    return CLI_OK;
}

/* With the step that is still in flight, so that the next run's time does not begin with its end. */
static void release_all(bench_run *run) {
    int n_unfinished = 1;
    for (int32_t i = 0; i < run->bench->batch; i++)
        mb_release(run->session, run->sequences[i]);
    while (n_unfinished > 0 && mb_step(run->session, &n_unfinished) == MB_OK)
        continue;
}

/* Runs one step. *n_new: tokens that the step made. *n_started grows by the sequences that got their
 * first token. */
static int step(bench_run *run, uint8_t *started, int32_t *n_started, int64_t *n_new) {
    int n_unfinished;
    *n_new = 0;
    if (cli_interrupted())
        return CLI_INTERRUPTED;
    if (mb_step(run->session, &n_unfinished) != MB_OK)
        return cli_report_failure();
    for (int32_t i = 0; i < run->bench->batch; i++) {
        mb_token tokens[4];
        size_t n_tokens;
        mb_state state;
        if (mb_read(run->session, run->sequences[i], tokens, CLI_COUNT(tokens), &n_tokens, &state) != MB_OK)
            return cli_report_failure();
        if (state == MB_FAILED)
            return cli_report_failed_sequence(run->session, run->sequences[i]);
        if (n_tokens > 0 && !started[i]) {
            started[i] = 1;
            ++*n_started;
        }
        *n_new += (int64_t)n_tokens;
    }
    return CLI_OK;
}

static int begin_profile(bench_run *run) {
    return mb_profile_start(run->session) == MB_OK ? CLI_OK : cli_report_failure();
}

static int end_profile(bench_run *run, mb_profile *profile) {
    return mb_profile_stop(run->session, profile) == MB_OK ? CLI_OK : cli_report_failure();
}

/* One run: steps until every sequence has its first token, then n_steps of pure decoding. */
static int run_steps(bench_run *run, uint8_t *started, int32_t n_steps, bench_times *times) {
    int32_t batch = run->bench->batch, n_started = 0;
    int64_t n_new;
    int status = CLI_OK;
    double begin = cli_now();
    while (status == CLI_OK && n_started < batch) {
        status = step(run, started, &n_started, &n_new);
        times->n_prefill_steps++;
    }
    times->prefill_s = cli_now() - begin;
    if (status == CLI_OK && run->profiles_decode)
        status = begin_profile(run);
    double middle = cli_now();
    for (int32_t i = 0; i < n_steps && status == CLI_OK; i++) {
        status = step(run, started, &n_started, &n_new);
        times->n_decoded += n_new;
    }
    times->decode_s = cli_now() - middle;
    if (status == CLI_OK && run->profiles_decode)
        status = end_profile(run, &times->decode_profile);
    return status;
}

static int measure(bench_run *run, int32_t n_steps, bench_times *times) {
    *times = (bench_times){0};
    uint8_t *started = mb_calloc((size_t)run->bench->batch, 1);
    if (started == NULL)
        return cli_failure("no memory for a batch of %d", (int)run->bench->batch);
    int status = submit_all(run);
    if (status == CLI_OK) {
        status = run_steps(run, started, n_steps, times);
        release_all(run);
    }
    mb_free(started);
    return status;
}

/* Prefill and decode in runs of their own: in a shared run, early sequences would decode while late ones are
 * still in prefill. */
static int measure_both(bench_run *run, int64_t decode_tokens, int32_t n_steps, bench_times *prefill,
                        bench_times *decode) {
    run->request.max_new_tokens = 1;
    int status = measure(run, 0, prefill);
    run->request.max_new_tokens = decode_tokens;
    return status == CLI_OK ? measure(run, n_steps, decode) : status;
}

/* A prefill is few steps, often one, so a profile that is shown is of n_repeat of them. Decoding has the
 * steps of a timed run, and one more: the first may have been in flight when the profile began. */
static int profile_both(bench_run *run, int64_t decode_tokens, cli_bench_result *result) {
    bench_times times = {0};
    run->request.max_new_tokens = 1;
    int status = begin_profile(run);
    for (int32_t i = 0; i < (run->bench->profile ? run->bench->n_repeat : 1) && status == CLI_OK; i++)
        status = measure(run, 0, &times);
    if (status == CLI_OK)
        status = end_profile(run, &result->prefill.profile);
    run->request.max_new_tokens = decode_tokens;
    run->profiles_decode = 1;
    if (status == CLI_OK)
        status = measure(run, run->bench->n_new + 1, &times);
    result->decode.profile = times.decode_profile;
    return status;
}

/* The first repeat is the warm-up. */
static int repeat_all(bench_run *run, int64_t decode_tokens, double *prefill_s, double *decode_s,
                      cli_bench_result *result) {
    const cli_bench_case *bench = run->bench;
    const double batch = bench->batch;
    bench_times prefill, decode;
    int status = CLI_OK;
    for (int32_t i = 0; i <= bench->n_repeat && status == CLI_OK; i++) {
        status = measure_both(run, decode_tokens, bench->n_new, &prefill, &decode);
        if (status == CLI_OK && i > 0) {
            prefill_s[i - 1] = prefill.prefill_s;
            decode_s[i - 1] = decode.decode_s / (double)decode.n_decoded;
        }
    }
    if (status != CLI_OK)
        return status;
    double whole_prefill_s = mb_median(prefill_s, (size_t)bench->n_repeat);
    double token_s = mb_median(decode_s, (size_t)bench->n_repeat);
    result->prefill = (cli_bench_pass){.tok_s = batch * bench->length / whole_prefill_s,
                                       .step_us = 1e6 * whole_prefill_s / (double)prefill.n_prefill_steps};
    result->decode = (cli_bench_pass){.tok_s = 1 / token_s, .step_us = 1e6 * batch * token_s};
    return profile_both(run, decode_tokens, result);
}

/* Sequences whose prefill ends first decode during the prefill of the others: they need room for those
 * tokens too. A step has at least LEAST_CHUNK tokens of a prompt that is so long, or half of the step, because
 * decoding takes no more than the other half. */
static int64_t prefill_steps(const cli_bench_case *bench) {
    int32_t half = bench->max_step_tokens / 2;
    return bench->batch *
           ((int64_t)bench->length / (half > 0 && half < LEAST_CHUNK ? half : LEAST_CHUNK) + 1);
}

int64_t cli_bench_positions(const cli_bench_case *bench) {
    return bench->length + bench->n_new + prefill_steps(bench) + 1;
}

int cli_bench_run(mb_model *model, const cli_bench_case *bench, cli_bench_result *result) {
    size_t batch = (size_t)bench->batch, n_repeat = (size_t)bench->n_repeat;
    mb_session_options options;
    mb_model_info info;
    mb_session_options_init(&options);
    mb_model_get_info(model, &info);
    bench_run run = {.bench = bench, .vocab = info.vocab, .random = bench->seed};
    double *prefill = mb_malloc_array(n_repeat, sizeof *prefill);
    double *decode = mb_malloc_array(n_repeat, sizeof *decode);
    run.ids = mb_malloc_array(batch * (size_t)bench->length, sizeof *run.ids);
    run.sequences = mb_malloc_array(batch, sizeof *run.sequences);
    int status = CLI_OK;
    if (prefill == NULL || decode == NULL || run.ids == NULL || run.sequences == NULL)
        status = cli_failure("no memory for %zu prompts of %d tokens", batch, (int)bench->length);

    int64_t decode_tokens = bench->n_new + prefill_steps(bench) + 1;
    options.max_sequences = bench->batch;
    options.max_queued = bench->batch;
    options.graphs = bench->graphs;
    options.steps_in_flight = bench->steps_in_flight;
    options.max_step_tokens = options.prefill_chunk = bench->max_step_tokens;
    options.prefix_caching = 0;      /* every prompt is computed */
    options.max_decode_slowdown = 0; /* prefill is timed, and those who decode may wait */
    options.max_context = cli_bench_positions(bench);
    options.kv_tokens = (int64_t)bench->batch * ((cli_bench_positions(bench) + 63) / 64 * 64);
    mb_request_init(model, &run.request);
    run.request.n_ids = (size_t)bench->length;
    run.request.ignore_eos = 1;
    run.request.sampling = (mb_sampling){.top_p = 1, .repetition_penalty = 1};
    mb_status opened = MB_OK;
    if (status == CLI_OK)
        opened = mb_session_open(model, &options, &run.session);
    *result = (cli_bench_result){.is_left_out = opened == MB_ERR_MEMORY};
    if (opened != MB_OK && !result->is_left_out)
        status = cli_report_failure();
    if (status == CLI_OK && opened == MB_OK)
        status = repeat_all(&run, decode_tokens, prefill, decode, result);
    if (run.session != NULL) {
        mb_session_memory memory;
        mb_session_get_memory(run.session, &memory);
        result->step_tokens = memory.step_tokens;
    }
    mb_session_close(run.session);
    mb_free(run.sequences);
    mb_free(run.ids);
    mb_free(decode);
    mb_free(prefill);
    return status;
}
