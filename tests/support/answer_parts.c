#include "support/answer_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct writer {
    FILE *to;
    mb_answer_event_kind open; /* the text that is not closed yet */
    int is_open;
    int32_t call;
} writer;

static void close_text(writer *w) {
    if (w->is_open)
        fputc(')', w->to);
    w->is_open = 0;
}

static void check(int is_true, const char *what) {
    if (is_true)
        return;
    fprintf(stderr, "answer_parts: %s\n", what);
    abort();
}

static void write_event(writer *w, const mb_answer_event *event) {
    check(strlen(event->text) <= event->n_bytes && event->text[event->n_bytes] == '\0',
          "a text is not ended");
    int is_text = event->kind == MB_ANSWER_REASONING || event->kind == MB_ANSWER_CONTENT ||
                  event->kind == MB_ANSWER_ARGUMENTS;
    check(is_text == (event->n_bytes > 0), "an event without its text, or with one that it must not have");
    if (!is_text || !w->is_open || w->open != event->kind || w->call != event->call) {
        close_text(w);
        switch (event->kind) {
        case MB_ANSWER_REASONING:
            fputs("R(", w->to);
            break;
        case MB_ANSWER_CONTENT:
            fputs("C(", w->to);
            break;
        case MB_ANSWER_CALL:
            check(strlen(event->id) == 29 && strncmp(event->id, "call_", 5) == 0, "an id of another form");
            check(event->name[0] != '\0', "a call without a name");
            fprintf(w->to, "T%d(%s)", event->call, event->name);
            break;
        case MB_ANSWER_ARGUMENTS:
            fprintf(w->to, "A%d(", event->call);
            break;
        case MB_ANSWER_CALL_END:
            fprintf(w->to, "E%d", event->call);
            break;
        case MB_ANSWER_BROKEN:
            fprintf(w->to, "B%d", event->call);
            break;
        case MB_ANSWER_STOP:
            fputs("S", w->to);
            break;
        }
        w->is_open = is_text;
        w->open = event->kind;
        w->call = event->call;
    }
    fwrite(event->text, 1, event->n_bytes, w->to);
}

static void drain(writer *w, mb_answer_parser *parser) {
    mb_answer_event event;
    while (mb_answer_next(parser, &event))
        write_event(w, &event);
}

char *answer_parts(const mb_answer_options *options, const char *text, size_t n_bytes, const size_t *pieces,
                   size_t n_pieces) {
    char *parts;
    size_t n_parts;
    writer w = {.to = open_memstream(&parts, &n_parts)};
    mb_answer_parser *parser;
    check(w.to && mb_answer_open(options, &parser) == MB_OK, mb_last_error());
    for (size_t at = 0, k = 0, n; at < n_bytes; at += n, k++) {
        n = n_pieces > 0 && pieces[k % n_pieces] > 0 ? pieces[k % n_pieces] : n_bytes;
        if (n > n_bytes - at)
            n = n_bytes - at;
        check(mb_answer_push(parser, text + at, n) == MB_OK, mb_last_error());
        drain(&w, parser);
    }
    check(mb_answer_finish(parser) == MB_OK, mb_last_error());
    drain(&w, parser);
    close_text(&w);
    mb_answer_close(parser);
    fclose(w.to);
    return parts;
}
