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
#include <termios.h>
#include <unistd.h>
#include <wchar.h>

#include <histedit.h>

#include "base/alloc.h"
#include "cli/history_file.h"
#include "cli/interrupt.h"
#include "cli/output.h"
#include "cli/terminal_guard.h"

struct cli_line_editor {
    const char *prompt;
    cli_complete_fn complete;
    int asks;        /* a person reads the prompt */
    int edits;       /* and edits the line */
    int interrupted; /* by Ctrl-C, in this line */
    int line_has_begun;
    int after_escape; /* the key before was Escape: Alt-Enter is one key in two characters */
    EditLine *edit;
    History *history;
    cli_history_file *history_file;
    char *bytes; /* the edited line; of plain input what was read and not yet handed out: [start, end) */
    size_t capacity, start, end;
    int at_end; /* of plain input */
};

/* ---- A terminal: characters --------------------------------------------------------------------------- */

/* What stands around pasted text. */
static const wchar_t PASTE_BEGINS[] = L"\033[200~", PASTE_ENDS[] = L"\033[201~";

/* Enter after a backslash is handed to libedit as this character (Ctrl-^), which begins a new line. */
enum { NEW_LINE_FOR_BACKSLASH = 0x1e, ESCAPE = 0x1b };

static cli_line_editor *editor_of(EditLine *edit) {
    cli_line_editor *editor;
    el_get(edit, EL_CLIENTDATA, &editor);
    return editor;
}

static char *show_prompt(EditLine *edit) {
    return (char *)editor_of(edit)->prompt;
}

/* The window has another size: libedit forgets what it has drawn, and draws the line again. */
static void redraw(EditLine *edit) {
    printf("\r");
    el_resize(edit);
    el_set(edit, EL_REFRESH);
}

/* libedit lets the terminal turn each \n into \r, which makes two line breaks of the \r\n in a pasted
 * text. */
static void keep_line_breaks(void) {
    struct termios modes;
    if (tcgetattr(STDIN_FILENO, &modes) == 0 && (modes.c_iflag & (tcflag_t)(INLCR | ICRNL)) != 0) {
        modes.c_iflag &= ~(tcflag_t)(INLCR | ICRNL);
        tcsetattr(STDIN_FILENO, TCSADRAIN, &modes);
    }
}

/* The program was stopped and goes on: the shell has set the terminal's modes in between. */
static void set_up_again(EditLine *edit) {
    el_set(edit, EL_PREP_TERM, 0); /* libedit takes its own modes for set */
    el_set(edit, EL_PREP_TERM, 1);
    keep_line_breaks();
    printf(CLI_PASTE_MODE_ON);
    redraw(edit);
}

/* Reads one character, of as many bytes as it takes. 1, 0 at the end, -1 on error or Ctrl-C. */
static int read_character(EditLine *edit, wchar_t *character) {
    cli_line_editor *editor = editor_of(edit);
    mbstate_t state;
    memset(&state, 0, sizeof state);
    for (;;) {
        char byte;
        cli_wait wait = cli_interrupt_wait(STDIN_FILENO);
        if (wait == CLI_WAIT_INTERRUPTED) {
            editor->interrupted = 1;
            return -1;
        }
        if (wait == CLI_WAIT_RESIZED) {
            redraw(edit);
            continue;
        }
        if (wait == CLI_WAIT_CONTINUED) {
            set_up_again(edit);
            continue;
        }
        ssize_t n = read(STDIN_FILENO, &byte, 1);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return (int)n;
        size_t used = mbrtowc(character, &byte, 1, &state);
        if (used == (size_t)-1)
            memset(&state, 0, sizeof state); /* not a character in this locale: skip the byte */
        else if (used != (size_t)-2)
            return 1;
    }
}

/* As read_character, for libedit: Enter after a backslash at the end of the line is another key. */
static int read_key(EditLine *edit, wchar_t *character) {
    cli_line_editor *editor = editor_of(edit);
    if (!editor->line_has_begun) /* libedit has set the terminal's modes by now */
        keep_line_breaks();
    editor->line_has_begun = 1;
    int n = read_character(edit, character);
    if (n == 1 && (*character == L'\r' || *character == L'\n') && !editor->after_escape) {
        const LineInfoW *line = el_wline(edit);
        if (line->cursor == line->lastchar && line->cursor > line->buffer && line->cursor[-1] == L'\\')
            *character = NEW_LINE_FOR_BACKSLASH;
    }
    editor->after_escape = n == 1 && *character == ESCAPE;
    return n;
}

/* ---- A terminal: keys of ours ------------------------------------------------------------------------- */

static unsigned char begin_line(EditLine *edit, int key) {
    (void)key;
    return el_winsertstr(edit, L"\n") == 0 ? CC_REFRESH : CC_ERROR;
}

static unsigned char begin_line_for_backslash(EditLine *edit, int key) {
    const LineInfoW *line = el_wline(edit);
    if (line->cursor > line->buffer && line->cursor[-1] == L'\\')
        el_wdeletestr(edit, 1);
    return begin_line(edit, key);
}

/* Pasted text as it goes into the line: line breaks are one character each, and of the other control
 * characters only tabs stay. Returns its length. */
static size_t clean_paste(wchar_t *text, size_t n) {
    size_t n_out = 0;
    for (size_t i = 0; i < n; i++) {
        int is_break = text[i] == L'\r' || text[i] == L'\n';
        if (text[i] == L'\r' && i + 1 < n && text[i + 1] == L'\n')
            continue;
        if (is_break || text[i] == L'\t' ||
            (text[i] >= 0x20 && text[i] != 0x7f && !(text[i] >= 0x80 && text[i] < 0xa0)))
            text[n_out++] = is_break ? L'\n' : text[i];
    }
    text[n_out] = L'\0';
    return n_out;
}

/* Takes what is pasted, up to the sequence that ends it, into the line. A line break in it does not send the
 * line. */
static unsigned char take_paste(EditLine *edit, int key) {
    enum { N_END = sizeof PASTE_ENDS / sizeof *PASTE_ENDS - 1 };
    wchar_t *text = NULL;
    size_t n = 0, capacity = 0;
    int got = 1;
    (void)key;
    for (;;) {
        if (mb_grow((void **)&text, &capacity, n + 1, sizeof *text) != 0) {
            mb_free(text);
            return CC_ERROR; /* no memory: what follows of the paste is typed */
        }
        got = read_character(edit, &text[n]);
        if (got != 1)
            break;
        n++;
        if (n >= N_END && wmemcmp(text + n - N_END, PASTE_ENDS, N_END) == 0)
            break;
    }
    unsigned char result = CC_EOF; /* the end of input, or Ctrl-C, which editor->interrupted tells */
    if (got == 1)
        result = clean_paste(text, n - N_END) == 0 || el_winsertstr(edit, text) == 0 ? CC_REFRESH : CC_ERROR;
    mb_free(text);
    return result;
}

/* Adds what all candidates have in common; when that is nothing, lists them, without the folder that is typed
 * already. */
static unsigned char show_candidates(EditLine *edit, const cli_candidates *found) {
    const char *first = found->items[0];
    size_t n_common = cli_candidates_common(found), length = strlen(first);
    if (n_common == found->n_typed && found->count > 1) {
        size_t n_folder = found->n_typed;
        while (n_folder > 1 && first[n_folder - 1] != '/')
            n_folder--;
        n_folder = n_folder > 1 ? n_folder : 0; /* the slash of a command is shown */
        printf("\n");
        for (size_t i = 0; i < found->count; i++) {
            cli_print_text(found->items[i] + n_folder, strlen(found->items[i]) - n_folder);
            printf("%s", i + 1 < found->count ? "  " : "\n");
        }
        return CC_REDISPLAY;
    }
    char *rest = mb_malloc(length + 2);
    if (rest == NULL)
        return CC_ERROR;
    int is_whole = found->count == 1 && first[length - 1] != '/';
    snprintf(rest, length + 2, "%.*s%s", (int)(n_common - found->n_typed), first + found->n_typed,
             is_whole ? " " : "");
    int inserted = el_insertstr(edit, rest);
    mb_free(rest);
    return inserted == 0 ? CC_REFRESH : CC_ERROR;
}

static unsigned char complete(EditLine *edit, int key) {
    cli_line_editor *editor = editor_of(edit);
    const LineInfo *line = el_line(edit);
    size_t n_before = (size_t)(line->cursor - line->buffer);
    cli_candidates found = {0};
    unsigned char result = CC_ERROR; /* beeps */
    char *before = mb_malloc(n_before + 1);
    (void)key;
    if (before != NULL) {
        memcpy(before, line->buffer, n_before);
        before[n_before] = '\0';
        editor->complete(before, &found);
        if (found.count > 0)
            result = show_candidates(edit, &found);
    }
    cli_candidates_free(&found);
    mb_free(before);
    return result;
}

static void bind_keys(EditLine *edit) {
    static const struct {
        const wchar_t *name, *help;
        unsigned char (*run)(EditLine *edit, int key);
    } functions[] = {
        {L"moebius-line", L"Begin a new line", begin_line},
        {L"moebius-line-for-backslash", L"Replace a backslash by a new line", begin_line_for_backslash},
        {L"moebius-paste", L"Take pasted text", take_paste},
        {L"moebius-complete", L"Complete a command or a path", complete},
    };
    static const struct {
        const wchar_t *key, *function;
    } keys[] = {
        {L"\036", L"moebius-line-for-backslash"},
        {L"\033\r", L"moebius-line"}, /* Alt-Enter */
        {L"\033\n", L"moebius-line"},
        {PASTE_BEGINS, L"moebius-paste"},
        {L"\t", L"moebius-complete"},
    };
    for (size_t i = 0; i < sizeof functions / sizeof *functions; i++)
        el_wset(edit, EL_ADDFN, functions[i].name, functions[i].help, functions[i].run);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        el_wset(edit, EL_BIND, keys[i].key, keys[i].function, NULL);
}

/* ---- A terminal: lines -------------------------------------------------------------------------------- */

static void remember(void *user, const char *entry) {
    cli_line_editor *editor = user;
    HistEvent event;
    history(editor->history, &event, H_ENTER, entry);
}

static int open_terminal(cli_line_editor *editor) {
    HistEvent event;
    /* Characters are Unicode also where no locale is set up, as in most containers. */
    if (setlocale(LC_CTYPE, "") == NULL || MB_CUR_MAX == 1)
        setlocale(LC_CTYPE, "C.UTF-8");
    cli_terminal_guard_open();
    editor->edit = el_init("moebius", stdin, stdout, stderr);
    editor->history = history_init();
    if (editor->edit == NULL || editor->history == NULL)
        return -1;
    history(editor->history, &event, H_SETSIZE, 1000);
    history(editor->history, &event, H_SETUNIQUE, 1);
    el_set(editor->edit, EL_CLIENTDATA, editor);
    el_set(editor->edit, EL_PROMPT, show_prompt);
    el_set(editor->edit, EL_EDITOR, "emacs");
    el_set(editor->edit, EL_HIST, history, editor->history);
    el_set(editor->edit, EL_GETCFN, read_key);
    el_source(editor->edit, NULL); /* the user's ~/.editrc; it may choose vi's keys, so ours come after it */
    bind_keys(editor->edit);
    editor->history_file = cli_history_file_open(remember, editor);
    cli_resize_catch();
    cli_continue_catch();
    return 0;
}

static cli_line read_terminal(cli_line_editor *editor, const char **line, size_t *length) {
    int n;
    editor->interrupted = editor->after_escape = editor->line_has_begun = 0;
    cli_terminal_guard_line_begins();
    printf(CLI_PASTE_MODE_ON);
    const char *edited = el_gets(editor->edit, &n);
    printf(CLI_PASTE_MODE_OFF);
    cli_terminal_guard_line_ends();
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
    *length = strlen(editor->bytes);
    if (*length > 0 && editor->bytes[*length - 1] == '\n') /* the Enter that sent the line */
        editor->bytes[--*length] = '\0';
    if (editor->bytes[strspn(editor->bytes, " \t\n")] != '\0') {
        remember(editor, editor->bytes);
        cli_history_file_add(editor->history_file, editor->bytes);
    }
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
        if (cli_interrupt_wait(STDIN_FILENO) == CLI_WAIT_INTERRUPTED) {
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

cli_line_editor *cli_line_editor_open(const char *prompt, cli_complete_fn complete_word) {
    cli_line_editor *editor = mb_calloc(1, sizeof *editor);
    if (editor == NULL)
        return NULL;
    editor->prompt = prompt;
    editor->complete = complete_word;
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
    cli_history_file_close(editor->history_file);
    mb_free(editor->bytes);
    mb_free(editor);
}

cli_line cli_line_editor_read(cli_line_editor *editor, const char **line, size_t *length) {
    return editor->edits ? read_terminal(editor, line, length) : read_plain(editor, line, length);
}
