/* bench_rows.h - the result rows of both benchmarks: what every row says, and where the rows go. */
#ifndef MB_CLI_BENCH_ROWS_H
#define MB_CLI_BENCH_ROWS_H

#include <jansson.h>
#include <stdio.h>

#include "moebius/ops.h"

/* Of the options --json (rows on stdout in place of the table) and --output FILE (appended to it). */
typedef struct cli_bench_rows {
    int on_stdout;
    const char *path; /* NULL: no file */
    FILE *file;
} cli_bench_rows;

/* All of these report their failures. _write takes the reference to `row`; NULL says that it could not
 * be made. _close returns `status`, or CLI_FAILED when rows were lost. */
int cli_bench_rows_open(cli_bench_rows *rows, int on_stdout, const char *path);
int cli_bench_rows_write(cli_bench_rows *rows, json_t *row);
int cli_bench_rows_close(cli_bench_rows *rows, int status);

/* Where and when: the commit, the card's name (the processor's when `device` is "cpu"), and today as
 * 2026-11-22. */
const char *cli_bench_commit(void);
void cli_bench_card(const char *device, char *name, size_t capacity);
void cli_bench_date(char *date, size_t capacity);

/* The choices of --activation, and the activation of a choice: the place in the list is that in the enum. */
#define CLI_ACTIVATIONS "swiglu|geglu|reglu|silu|gelu|relu|relu2"
mb_activation cli_bench_activation(const char *name);

#endif
