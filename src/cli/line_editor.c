/*
 * A person at a terminal gets libedit's editing. Its characters are read by a function of ours, which
 * notices Ctrl-C: libedit's own would go on reading. Files, pipes and terminals that cannot move the cursor
 * (TERM=dumb) give plain lines.
 */
#include "cli/line_editor.h"

#include <errno.h>
#include <locale.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <wchar.h>

#include <histedit.h>

#include "base/alloc.h"
#include "cli/interrupt.h"
#include "cli/output.h"

struct cli_line_editor {
    const char *prompt;
    int asks;        /* a person reads the prompt */
    int edits;       /* and edits the line */
    int interrupted; /* by Ctrl-C, in this line */
    EditLine *edit;
    History *history;
    char *bytes; /* the edited line; of plain input what was read and not yet handed out: [start, end) */
    size_t capacity, start, end;
    int at_end; /* of plain input */
};

/* ---- A terminal --------------------------------------------------------------------------------------- */

static char *show_prompt(EditLine *edit) {
    cli_line_editor *editor;
    el_get(edit, EL_CLIENTDATA, &editor);
    return (char *)editor->prompt;
}

/* Reads one character, of as many bytes as it takes. 1, 0 at the end, -1 on error or Ctrl-C. */
static int read_character(EditLine *edit, wchar_t *character) {
    cli_line_editor *editor;
    mbstate_t state;
    el_get(edit, EL_CLIENTDATA, &editor);
    memset(&state, 0, sizeof state);
    for (;;) {
        char byte;
        if (!cli_interrupt_wait(STDIN_FILENO)) {
            editor->interrupted = 1;
            return -1;
        }
        ssize_t n = read(STDIN_FILENO, &byte, 1);
        if (n < 0 && errno == EINTR)
            continue; /* the window changed its size, or the program was stopped and goes on */
        if (n <= 0)
            return (int)n;
        size_t used = mbrtowc(character, &byte, 1, &state);
        if (used == (size_t)-1)
            memset(&state, 0, sizeof state); /* not a character in this locale: skip the byte */
        else if (used != (size_t)-2)
            return 1;
    }
}

static int open_terminal(cli_line_editor *editor) {
    HistEvent event;
    /* Characters are Unicode also where no locale is set up, as in most containers. */
    if (setlocale(LC_CTYPE, "") == NULL || MB_CUR_MAX == 1)
        setlocale(LC_CTYPE, "C.UTF-8");
    editor->edit = el_init("moebius", stdin, stdout, stderr);
    editor->history = history_init();
    if (editor->edit == NULL || editor->history == NULL)
        return -1;
    history(editor->history, &event, H_SETSIZE, 1000);
    el_set(editor->edit, EL_CLIENTDATA, editor);
    el_set(editor->edit, EL_PROMPT, show_prompt);
    el_set(editor->edit, EL_EDITOR, "emacs");
    el_set(editor->edit, EL_HIST, history, editor->history);
    el_set(editor->edit, EL_GETCFN, read_character);
    el_source(editor->edit, NULL); /* the user's ~/.editrc */
    return 0;
}

static cli_line read_terminal(cli_line_editor *editor, const char **line, size_t *length) {
    int n;
    HistEvent event;
    editor->interrupted = 0;
    const char *edited = el_gets(editor->edit, &n);
    if (editor->interrupted) {
        printf("\n");
        return CLI_LINE_INTERRUPTED;
    }
    if (edited == NULL || n <= 0) {
        printf("\n");
        return CLI_LINE_END;
    }
    mb_free(editor->bytes);
    editor->bytes = mb_strdup(edited);
    if (editor->bytes == NULL) {
        cli_failure("no memory for a line of %d bytes", n);
        return CLI_LINE_FAILED;
    }
    *line = editor->bytes;
    *length = strcspn(editor->bytes, "\n");
    editor->bytes[*length] = '\0';
    if (editor->bytes[strspn(editor->bytes, " \t")] != '\0')
        history(editor->history, &event, H_ENTER, editor->bytes);
    return CLI_LINE_READ;
}

/* ---- Plain input -------------------------------------------------------------------------------------- */

/* Appends more input to what is there. 1, 0 at the end of input, -1 after a failure that was reported. */
static int read_more(cli_line_editor *editor) {
    enum { PORTION = 4096 };
    if (editor->start > 0) {
        memmove(editor->bytes, editor->bytes + editor->start, editor->end - editor->start);
        editor->end -= editor->start;
        editor->start = 0;
    }
    if (mb_grow((void **)&editor->bytes, &editor->capacity, editor->end + PORTION, 1) != 0) {
        cli_failure("no memory for a line of more than %zu bytes", editor->end);
        return -1;
    }
    ssize_t n;
    do
        n = read(STDIN_FILENO, editor->bytes + editor->end, PORTION);
    while (n < 0 && errno == EINTR);
    if (n < 0) {
        cli_failure("standard input: %s", strerror(errno));
        return -1;
    }
    editor->end += (size_t)n;
    return n > 0;
}

/* Hands out bytes [start, break_at). The line break may be of two characters, as Windows writes it. */
static cli_line take_line(cli_line_editor *editor, size_t break_at, const char **line, size_t *length) {
    *line = editor->bytes + editor->start;
    *length = break_at - editor->start;
    if (*length > 0 && (*line)[*length - 1] == '\r')
        --*length;
    editor->start = break_at < editor->end ? break_at + 1 : break_at;
    return CLI_LINE_READ;
}

static cli_line read_plain(cli_line_editor *editor, const char **line, size_t *length) {
    if (editor->asks) {
        printf("%s", editor->prompt);
        fflush(stdout);
    }
    for (size_t n_seen = 0;;) {
        size_t n = editor->end - editor->start;
        const char *first = n > 0 ? editor->bytes + editor->start : NULL;
        const char *line_break = n > n_seen ? memchr(first + n_seen, '\n', n - n_seen) : NULL;
        if (line_break != NULL)
            return take_line(editor, editor->start + (size_t)(line_break - first), line, length);
        if (editor->at_end)
            return n > 0 ? take_line(editor, editor->end, line, length) : CLI_LINE_END;
        n_seen = n;
        if (!cli_interrupt_wait(STDIN_FILENO)) {
            if (editor->asks)
                printf("\n");
            return CLI_LINE_INTERRUPTED; /* what a program has written of a line is kept */
        }
        int more = read_more(editor);
        if (more < 0)
            return CLI_LINE_FAILED;
        editor->at_end = !more;
    }
}

/* ---- Both --------------------------------------------------------------------------------------------- */

cli_line_editor *cli_line_editor_open(const char *prompt) {
    cli_line_editor *editor = mb_calloc(1, sizeof *editor);
    if (editor == NULL)
        return NULL;
    editor->prompt = prompt;
    editor->asks = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    editor->edits = editor->asks && cli_terminal_is_smart();
    if (editor->edits && open_terminal(editor) != 0) {
        cli_line_editor_close(editor);
        return NULL;
    }
    return editor;
}

void cli_line_editor_close(cli_line_editor *editor) {
    if (editor == NULL)
        return;
    if (editor->history != NULL)
        history_end(editor->history);
    if (editor->edit != NULL)
        el_end(editor->edit);
    mb_free(editor->bytes);
    mb_free(editor);
}

cli_line cli_line_editor_read(cli_line_editor *editor, const char **line, size_t *length) {
    return editor->edits ? read_terminal(editor, line, length) : read_plain(editor, line, length);
}
