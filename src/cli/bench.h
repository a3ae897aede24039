/* bench.h - timing prefill and decode at one length and batch, for bench.c; the other benchmarks. */
#ifndef MB_CLI_BENCH_H
#define MB_CLI_BENCH_H

#include "cli/options.h"
#include "moebius/moebius.h"
#include "moebius/profile.h"

typedef struct cli_bench_case {
    int32_t length, batch; /* tokens of each prompt, sequences at once */
    int32_t n_new;         /* decode: steps that are timed */
    int32_t n_repeat;
    uint64_t seed;
    mb_graphs graphs;
    int profile;             /* will be shown */
    int32_t steps_in_flight; /* 0: the default */
    int32_t max_step_tokens; /* of all prompts, or of one; 0: the default */
} cli_bench_case;

typedef struct cli_bench_pass {
    double tok_s;
    double step_us;     /* the time of the timed runs, divided by their steps */
    mb_profile profile; /* of further runs */
} cli_bench_pass;

typedef struct cli_bench_result {
    cli_bench_pass prefill; /* prompt tokens of all sequences per second until each has its first new token */
    cli_bench_pass decode;  /* new tokens of all sequences per second, all of them running */
    int64_t step_tokens;    /* most in a step */
    int is_left_out;
} cli_bench_result;

/* Positions that one sequence takes. The model must have at least as many. */
int64_t cli_bench_positions(const cli_bench_case *bench);

/* One warm-up and n_repeat timed runs of each; the medians. Then runs that are profiled. Failures are
 * reported; Ctrl-C gives CLI_INTERRUPTED. When the device's memory cannot hold the batch, mb_last_error()
 * says so, nothing is reported, and result->is_left_out is 1 with CLI_OK. */
int cli_bench_run(mb_model *model, const cli_bench_case *bench, cli_bench_result *result);

/* moebius bench moe, serve, text and train. */
extern const cli_command cli_bench_moe_command, cli_bench_serve_command, cli_bench_text_command,
    cli_bench_train_command;

#endif
