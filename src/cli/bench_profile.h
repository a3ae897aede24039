/* bench_profile.h - what moebius bench --profile prints of a pass, and its row. */
#ifndef MB_CLI_BENCH_PROFILE_H
#define MB_CLI_BENCH_PROFILE_H

#include <jansson.h>

#include "cli/bench.h"

/* A table with a bar for each operator. name: "prefill", "decode". A pass without profiled steps prints
 * nothing. */
void cli_bench_print_profile(const char *name, const cli_bench_pass *pass);

/* Adds the profile's keys to a row. */
void cli_bench_add_profile(json_t *row, const cli_bench_pass *pass);

#endif
