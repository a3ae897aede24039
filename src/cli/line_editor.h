/* line_editor.h - lines from a person: edited and with a history on a terminal, plain from a file or pipe. */
#ifndef MB_CLI_LINE_EDITOR_H
#define MB_CLI_LINE_EDITOR_H

#include <stddef.h>

typedef struct cli_line_editor cli_line_editor;

typedef enum cli_line { CLI_LINE_READ, CLI_LINE_INTERRUPTED, CLI_LINE_END, CLI_LINE_FAILED } cli_line;

/* NULL when memory ran out. */
cli_line_editor *cli_line_editor_open(const char *prompt);
void cli_line_editor_close(cli_line_editor *editor);

/* *line: without its line break, valid until the next call; *length: its bytes, which may be zeros.
 * Ctrl-C gives CLI_LINE_INTERRUPTED and drops what a person typed so far; the end of input (Ctrl-D)
 * gives CLI_LINE_END, a failure that was reported CLI_LINE_FAILED. */
cli_line cli_line_editor_read(cli_line_editor *editor, const char **line, size_t *length);

#endif
