/* output.h - stdout, with its errors remembered, and what a terminal must not be sent. */
#ifndef MB_CLI_OUTPUT_H
#define MB_CLI_OUTPUT_H

#include <stddef.h>
#include <stdint.h>

/* printf to stdout. After the first failed write the following ones do nothing. */
__attribute__((format(printf, 1, 2))) void cli_print(const char *format, ...);

/* Prints text that a model wrote. On a terminal, control characters other than newline and tab are left
 * out: an escape sequence could rename the window or worse. */
void cli_print_text(const char *text, size_t n_bytes);

enum { CLI_SIZE_TEXT = 32 };
/* "1.23 GB", in powers of 1000; returns text. */
const char *cli_size_text(uint64_t n_bytes, char text[CLI_SIZE_TEXT]);

/* Sends what is buffered; streaming commands call it for every token. */
void cli_flush(void);

int cli_output_failed(void);         /* a write to stdout failed, e.g. because its reader has left */
int cli_output_is_terminal(void);    /* stdout */
int cli_messages_are_terminal(void); /* stderr */

/* The terminal moves its cursor and has styles: TERM says so, being neither empty nor "dumb". */
int cli_terminal_is_smart(void);

/* Escape sequences that begin and end faint letters on stdout and on stderr; both are "" where there is
 * no terminal that has them, or NO_COLOR asks for none. */
const char *cli_output_faint(void);
const char *cli_output_normal(void);
const char *cli_messages_faint(void);
const char *cli_messages_normal(void);

/* At the end of a command: flushes and returns `status`, or CLI_FAILED when output was lost. A reader
 * that has left (a closed pipe) is not worth a message; other losses are. */
int cli_finish_output(int status);

/* Prints mb_last_error() and returns CLI_FAILED. */
int cli_report_failure(void);

/* Prints a sentence in the same form and returns CLI_FAILED. */
__attribute__((format(printf, 1, 2))) int cli_failure(const char *format, ...);

int cli_is_utf8(const char *text);

/* Reads all of stdin, at most 256 MiB. The text ends with a zero that *n_bytes does not count, and is freed
 * with mb_free. A failure is reported, and NULL returned. */
char *cli_read_input(size_t *n_bytes);

/* Seconds of a clock that only goes forward. */
double cli_now(void);

#endif
