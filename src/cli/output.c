#include "cli/output.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <jansson.h>

#include "base/alloc.h"
#include "cli/options.h"
#include "moebius/status.h"

static int output_error; /* errno of the first failed write to stdout; 0: none */

static void note_output(int succeeded) {
    if (!succeeded && output_error == 0)
        output_error = errno != 0 ? errno : EIO;
}

const char *cli_size_text(uint64_t n_bytes, char text[CLI_SIZE_TEXT]) {
    static const char *const units[] = {"bytes", "kB", "MB", "GB", "TB"};
    double value = (double)n_bytes;
    size_t unit = 0;
    while (value >= 1000 && unit + 1 < sizeof units / sizeof *units) {
        value /= 1000;
        unit++;
    }
    snprintf(text, CLI_SIZE_TEXT, "%.*f %s", unit > 0 ? 2 : 0, value, units[unit]);
    return text;
}

void cli_print(const char *format, ...) {
    va_list arguments;
    if (output_error != 0)
        return;
    va_start(arguments, format);
    note_output(vprintf(format, arguments) >= 0);
    va_end(arguments);
}

static void write_all(const char *bytes, size_t n_bytes) {
    if (output_error == 0 && n_bytes > 0)
        note_output(fwrite(bytes, 1, n_bytes, stdout) == n_bytes);
}

/* The length of the control character at the start of text[0, n_bytes), or 0 when there is none. Control
 * characters are C0 (without newline and tab), DEL, and C1, which UTF-8 spells C2 80 to C2 9F. */
static size_t control_length(const unsigned char *text, size_t n_bytes) {
    if ((text[0] < 0x20 && text[0] != '\n' && text[0] != '\t') || text[0] == 0x7f)
        return 1;
    return n_bytes >= 2 && text[0] == 0xc2 && text[1] >= 0x80 && text[1] < 0xa0 ? 2 : 0;
}

void cli_print_text(const char *text, size_t n_bytes) {
    size_t start = 0;
    if (cli_output_is_terminal()) {
        for (size_t i = 0; i < n_bytes;) {
            size_t control = control_length((const unsigned char *)text + i, n_bytes - i);
            if (control > 0) {
                write_all(text + start, i - start);
                start = i + control;
            }
            i += control > 0 ? control : 1;
        }
    }
    write_all(text + start, n_bytes - start);
}

void cli_flush(void) {
    if (output_error == 0)
        note_output(fflush(stdout) == 0);
}

int cli_output_failed(void) {
    return output_error != 0;
}

int cli_output_is_terminal(void) {
    return isatty(STDOUT_FILENO);
}

int cli_messages_are_terminal(void) {
    return isatty(STDERR_FILENO);
}

int cli_terminal_is_smart(void) {
    const char *term = getenv("TERM");
    return term != NULL && *term != '\0' && strcmp(term, "dumb") != 0;
}

static const char *style(int is_terminal, const char *sequence) {
    const char *no_color = getenv("NO_COLOR");
    return is_terminal && cli_terminal_is_smart() && (no_color == NULL || *no_color == '\0') ? sequence : "";
}

static const char FAINT[] = "\033[2m", NORMAL[] = "\033[0m";

const char *cli_output_faint(void) {
    return style(cli_output_is_terminal(), FAINT);
}

const char *cli_output_normal(void) {
    return style(cli_output_is_terminal(), NORMAL);
}

const char *cli_messages_faint(void) {
    return style(cli_messages_are_terminal(), FAINT);
}

const char *cli_messages_normal(void) {
    return style(cli_messages_are_terminal(), NORMAL);
}

int cli_finish_output(int status) {
    cli_flush();
    note_output(!ferror(stdout)); /* manuals are printed without a look at errors */
    if (output_error == 0)
        return status;
    if (output_error != EPIPE)
        fprintf(stderr, "moebius: standard output: %s\n", strerror(output_error));
    return CLI_FAILED;
}

int cli_failure(const char *format, ...) {
    va_list arguments;
    cli_flush(); /* what was printed before comes first where both go to one place */
    fprintf(stderr, "moebius: ");
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    return CLI_FAILED;
}

int cli_report_failure(void) {
    return cli_failure("%s", mb_last_error());
}

char *cli_read_input(size_t *n_bytes) {
    enum { MAX_INPUT_BYTES = 256 << 20 };
    void *text = NULL;
    size_t capacity = 0, used = 0;
    for (;;) {
        if (used > MAX_INPUT_BYTES) {
            mb_free(text);
            cli_failure(
                "standard input: more than %d bytes, which is too long for a prompt; give it in parts",
                MAX_INPUT_BYTES);
            return NULL;
        }
        if (mb_grow(&text, &capacity, used + 65536, 1) != 0) {
            mb_free(text);
            cli_failure("standard input: no memory for more than %zu bytes", used);
            return NULL;
        }
        ssize_t n = read(STDIN_FILENO, (char *)text + used, capacity - used - 1);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            mb_free(text);
            cli_failure("standard input: %s", strerror(errno));
            return NULL;
        }
        if (n == 0)
            break;
        used += (size_t)n;
    }
    ((char *)text)[used] = '\0';
    *n_bytes = used;
    return text;
}

int cli_is_utf8(const char *text) {
    json_t *string = json_string(text);
    int is_utf8 = string != NULL;
    json_decref(string);
    return is_utf8;
}

double cli_now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}
