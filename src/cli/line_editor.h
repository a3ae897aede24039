/* line_editor.h - lines from a person: edited and with a history on a terminal, plain from a file or pipe. */
#ifndef MB_CLI_LINE_EDITOR_H
#define MB_CLI_LINE_EDITOR_H

#include <stddef.h>

#include "cli/candidates.h"

typedef struct cli_line_editor cli_line_editor;

typedef enum cli_line { CLI_LINE_READ, CLI_LINE_INTERRUPTED, CLI_LINE_END, CLI_LINE_FAILED } cli_line;

/* What Tab offers after `before`, the text up to the cursor. No candidates: nothing. */
typedef void (*cli_complete_fn)(const char *before, cli_candidates *candidates);

/* NULL when memory ran out. */
cli_line_editor *cli_line_editor_open(const char *prompt, cli_complete_fn complete);
void cli_line_editor_close(cli_line_editor *editor);

/* *line: without the line break at its end, valid until the next call; *length: its bytes, which may be
 * zeros. An edited line has line breaks in it where a person typed Alt-Enter, or a backslash before Enter,
 * or pasted them. Ctrl-C gives CLI_LINE_INTERRUPTED and drops what a person typed so far; the end of input
 * (Ctrl-D) gives CLI_LINE_END, a failure that was reported CLI_LINE_FAILED. */
cli_line cli_line_editor_read(cli_line_editor *editor, const char **line, size_t *length);

#endif
