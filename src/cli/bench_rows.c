#include "cli/bench_rows.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#include "cli/options.h"
#include "cli/output.h"

#ifndef MOEBIUS_COMMIT
#define MOEBIUS_COMMIT "unknown"
#endif

int cli_bench_rows_open(cli_bench_rows *rows, int on_stdout, const char *path) {
    *rows = (cli_bench_rows){.on_stdout = on_stdout, .path = path};
    if (path == NULL)
        return CLI_OK;
    rows->file = fopen(path, "a");
    return rows->file != NULL ? CLI_OK : cli_failure("--output: %s: %s", path, strerror(errno));
}

static int write_line(FILE *file, const json_t *row) {
    errno = 0;
    return json_dumpf(row, file, JSON_REAL_PRECISION(6)) == 0 && fputc('\n', file) != EOF &&
           fflush(file) == 0;
}

int cli_bench_rows_write(cli_bench_rows *rows, json_t *row) {
    int status = CLI_OK;
    if (row == NULL)
        return cli_failure("a result cannot be written as JSON: the model's name is not UTF-8, or no memory");
    if (rows->on_stdout && !write_line(stdout, row))
        status = CLI_FAILED; /* the end of the program tells why */
    if (rows->file != NULL && !write_line(rows->file, row))
        status = cli_failure("--output: %s: %s", rows->path, strerror(errno));
    json_decref(row);
    return status;
}

int cli_bench_rows_close(cli_bench_rows *rows, int status) {
    if (rows->file != NULL && fclose(rows->file) != 0 && status == CLI_OK)
        return cli_failure("--output: %s: %s", rows->path, strerror(errno));
    return status;
}

const char *cli_bench_commit(void) {
    return MOEBIUS_COMMIT;
}

void cli_bench_date(char *date, size_t capacity) {
    time_t now = time(NULL);
    struct tm today;
    strftime(date, capacity, "%Y-%m-%d", gmtime_r(&now, &today));
}

/* The processor's marketing name, as /proc/cpuinfo has it; "cpu" where there is none. */
static void find_processor(char *name, size_t capacity) {
    char line[256];
    snprintf(name, capacity, "cpu");
    FILE *file = fopen("/proc/cpuinfo", "r");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        const char *colon = strchr(line, ':');
        if (strncmp(line, "model name", 10) == 0 && colon != NULL && strlen(colon) > 3) {
            snprintf(name, capacity, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
            break;
        }
    }
    if (file != NULL)
        fclose(file);
}

void cli_bench_card(const char *device, char *name, size_t capacity) {
    if (strcmp(device, "cpu") == 0)
        find_processor(name, capacity);
    else
        snprintf(name, capacity, "%s", device);
}

mb_activation cli_bench_activation(const char *name) {
    static const char *const names[] = {"swiglu", "geglu", "reglu", "silu", "gelu", "relu", "relu2"};
    size_t i = 0;
    while (i + 1 < CLI_COUNT(names) && strcmp(names[i], name) != 0)
        i++;
    return (mb_activation)i;
}
