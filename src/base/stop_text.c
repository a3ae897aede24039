/*
 * Knuth, Morris and Pratt's search, for each text by itself: after every byte `n_matched` is the length of
 * the longest beginning of the text that the answer ends with. The longest of these, over all texts, is
 * withheld. What is withheld is the beginning of a stop text, so it needs no memory of its own.
 */
#include "moebius/stop_text.h"

#include <string.h>

#include "base/alloc.h"
#include "base/status.h"

typedef struct pattern {
    char *text;
    size_t length;
    size_t n_matched;
    /* back[n]: after n matched bytes, the length of the next shorter beginning that they end with. */
    size_t *back;
} pattern;

struct mb_stop_text {
    pattern *patterns;
    size_t n_patterns;
    int found;
    const char *withheld; /* the beginning of the text that matches longest */
    size_t n_withheld;
    char *out; /* what the last call handed out */
    size_t capacity;
};

static void prepare(pattern *stop) {
    size_t n = 0;
    stop->back[0] = stop->back[1] = 0;
    for (size_t i = 1; i < stop->length; i++) {
        while (n > 0 && stop->text[i] != stop->text[n])
            n = stop->back[n];
        n += stop->text[i] == stop->text[n];
        stop->back[i + 1] = n;
    }
}

mb_status mb_stop_text_open(const char *const *texts, size_t n_texts, mb_stop_text **matcher) {
    MB_TRY(mb_need(matcher, "mb_stop_text_open: matcher"));
    *matcher = NULL;
    if (n_texts > 0)
        MB_TRY(mb_need(texts, "mb_stop_text_open: texts"));
    for (size_t i = 0; i < n_texts; i++)
        MB_TRY(mb_need(texts[i], "mb_stop_text_open: a text"));
    for (size_t i = 0; i < n_texts; i++)
        if (texts[i][0] == '\0')
            return mb_fail(MB_ERR_ARGUMENT, "stop text %zu is empty; leave it out", i);
    mb_stop_text *made = mb_calloc(1, sizeof *made);
    if (made == NULL)
        return mb_fail(MB_ERR_MEMORY, "no memory for %zu stop texts", n_texts);
    made->found = -1;
    made->patterns = n_texts > 0 ? mb_calloc(n_texts, sizeof *made->patterns) : NULL;
    if (n_texts > 0 && made->patterns == NULL)
        goto no_memory;
    for (size_t i = 0; i < n_texts; i++) {
        pattern *stop = &made->patterns[made->n_patterns++];
        stop->length = strlen(texts[i]);
        stop->text = mb_strdup(texts[i]);
        stop->back = mb_malloc_array(stop->length + 1, sizeof *stop->back);
        if (stop->text == NULL || stop->back == NULL)
            goto no_memory;
        prepare(stop);
    }
    *matcher = made;
    return MB_OK;
no_memory:
    mb_stop_text_close(made);
    return mb_fail(MB_ERR_MEMORY, "no memory for %zu stop texts", n_texts);
}

void mb_stop_text_close(mb_stop_text *matcher) {
    if (matcher == NULL)
        return;
    for (size_t i = 0; i < matcher->n_patterns; i++) {
        mb_free(matcher->patterns[i].text);
        mb_free(matcher->patterns[i].back);
    }
    mb_free(matcher->patterns);
    mb_free(matcher->out);
    mb_free(matcher);
}

/* Moves every pattern on by one byte. */
static void match_byte(mb_stop_text *matcher, char byte) {
    matcher->n_withheld = 0;
    size_t longest = 0;
    for (size_t i = 0; i < matcher->n_patterns; i++) {
        pattern *stop = &matcher->patterns[i];
        size_t n = stop->n_matched;
        while (n > 0 && stop->text[n] != byte)
            n = stop->back[n];
        n += stop->text[n] == byte;
        stop->n_matched = n;
        if (n > matcher->n_withheld) {
            matcher->withheld = stop->text;
            matcher->n_withheld = n;
        }
        if (n == stop->length && n > longest) {
            longest = n;
            matcher->found = (int)i;
        }
    }
}

/* Hands out what was withheld when the piece came, and the piece's first n_taken bytes, but for the last
 * n_kept_back of all of these. */
static void hand_out(mb_stop_text *matcher, const char *before, size_t n_before, const char *piece,
                     size_t n_taken, size_t n_kept_back, const char **text, size_t *n_bytes) {
    size_t n = n_before + n_taken - n_kept_back;
    size_t n_old = n < n_before ? n : n_before;
    if (n == 0)
        return;
    if (n_old > 0)
        memcpy(matcher->out, before, n_old);
    memcpy(matcher->out + n_old, piece, n - n_old);
    *text = matcher->out;
    *n_bytes = n;
}

mb_status mb_stop_text_push(mb_stop_text *matcher, const char *piece, size_t n_piece, const char **text,
                            size_t *n_bytes) {
    MB_TRY(mb_need(matcher, "mb_stop_text_push: matcher"));
    MB_TRY(mb_need(text, "mb_stop_text_push: text"));
    MB_TRY(mb_need(n_bytes, "mb_stop_text_push: n_bytes"));
    const char *before = matcher->withheld;
    size_t n_before = matcher->n_withheld, n_taken = 0;
    *text = NULL;
    *n_bytes = 0;
    if (matcher->found >= 0 || n_piece == 0)
        return MB_OK;
    MB_TRY(mb_need(piece, "mb_stop_text_push: piece"));
    if (mb_grow((void **)&matcher->out, &matcher->capacity, n_before + n_piece, 1) != 0)
        return mb_fail(MB_ERR_MEMORY, "no memory for %zu bytes of an answer", n_before + n_piece);
    while (n_taken < n_piece && matcher->found < 0)
        match_byte(matcher, piece[n_taken++]);
    size_t n_kept_back = matcher->found >= 0 ? matcher->patterns[matcher->found].length : matcher->n_withheld;
    hand_out(matcher, before, n_before, piece, n_taken, n_kept_back, text, n_bytes);
    return MB_OK;
}

int mb_stop_text_found(const mb_stop_text *matcher) {
    return matcher->found;
}

void mb_stop_text_finish(mb_stop_text *matcher, const char **text, size_t *n_bytes) {
    int is_part = matcher->found < 0 && matcher->n_withheld > 0;
    *text = is_part ? matcher->withheld : NULL;
    *n_bytes = is_part ? matcher->n_withheld : 0;
    for (size_t i = 0; i < matcher->n_patterns; i++)
        matcher->patterns[i].n_matched = 0;
    matcher->n_withheld = 0;
    matcher->found = -1;
}
