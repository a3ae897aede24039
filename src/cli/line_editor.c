/*
 * On a terminal the editing is libedit's. The characters are read by a function of ours: libedit's own goes
 * on after the first Ctrl-C.
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

struct cli_line_editor {
    const char *prompt;
    int on_terminal;
    char *line; /* getline's, or the copy of libedit's */
    size_t capacity;
    EditLine *edit;
    History *history;
};

static char *show_prompt(EditLine *edit) {
    cli_line_editor *editor;
    el_get(edit, EL_CLIENTDATA, &editor);
    return (char *)editor->prompt;
}

/* Reads one character, of as many bytes as it takes. 1, 0 at the end, -1 on error or Ctrl-C. */
static int read_character(EditLine *edit, wchar_t *character) {
    (void)edit;
    mbstate_t state;
    memset(&state, 0, sizeof state);
    for (;;) {
        char byte;
        ssize_t n = read(STDIN_FILENO, &byte, 1);
        if (n < 0 && errno == EINTR && !cli_interrupted())
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

static cli_line read_terminal(cli_line_editor *editor, const char **line) {
    int length;
    HistEvent event;
    const char *edited = el_gets(editor->edit, &length);
    if (cli_interrupted()) {
        cli_interrupt_clear();
        printf("\n");
        return CLI_LINE_INTERRUPTED;
    }
    if (edited == NULL || length <= 0) {
        printf("\n");
        return CLI_LINE_END;
    }
    mb_free(editor->line);
    editor->line = mb_strdup(edited);
    if (editor->line == NULL)
        return CLI_LINE_END;
    editor->line[strcspn(editor->line, "\n")] = '\0';
    if (editor->line[strspn(editor->line, " \t")] != '\0')
        history(editor->history, &event, H_ENTER, editor->line);
    *line = editor->line;
    return CLI_LINE_READ;
}

static void close_terminal(cli_line_editor *editor) {
    if (editor->history != NULL)
        history_end(editor->history);
    if (editor->edit != NULL)
        el_end(editor->edit);
    mb_free(editor->line);
}

static cli_line read_plain(cli_line_editor *editor, const char **line) {
    ssize_t length = getline(&editor->line, &editor->capacity, stdin);
    if (cli_interrupted()) {
        cli_interrupt_clear();
        clearerr(stdin);
        return CLI_LINE_INTERRUPTED;
    }
    if (length < 0)
        return CLI_LINE_END;
    editor->line[strcspn(editor->line, "\n")] = '\0';
    *line = editor->line;
    return CLI_LINE_READ;
}

cli_line_editor *cli_line_editor_open(const char *prompt) {
    cli_line_editor *editor = mb_calloc(1, sizeof *editor);
    if (editor == NULL)
        return NULL;
    editor->prompt = prompt;
    editor->on_terminal = isatty(STDIN_FILENO) && isatty(STDOUT_FILENO);
    if (editor->on_terminal && open_terminal(editor) != 0) {
        cli_line_editor_close(editor);
        return NULL;
    }
    return editor;
}

void cli_line_editor_close(cli_line_editor *editor) {
    if (editor == NULL)
        return;
    if (editor->on_terminal)
        close_terminal(editor);
    else
        free(editor->line); /* getline's */
    mb_free(editor);
}

cli_line cli_line_editor_read(cli_line_editor *editor, const char **line) {
    cli_interrupt_ends_reads(1);
    cli_line result = editor->on_terminal ? read_terminal(editor, line) : read_plain(editor, line);
    cli_interrupt_ends_reads(0);
    return result;
}
