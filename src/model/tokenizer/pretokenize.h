/*
 * pretokenize.h - cuts text into pieces by the pattern of tokenizer.json, as the reference's
 * Split(Isolated) does: each match is a piece, and so is the text between two matches.
 *
 * The reference matches with Oniguruma, we with PCRE2; pattern.h says which constructs are read.
 */
#ifndef MB_MODEL_PRETOKENIZE_H
#define MB_MODEL_PRETOKENIZE_H

#include <stddef.h>

#include "base/status.h"

typedef struct mb_pretokenizer mb_pretokenizer;

/* The pattern is well-formed UTF-8 and zero-terminated. MB_ERR_UNSUPPORTED: constructs that the two engines
 * read differently. MB_ERR_FORMAT: not a pattern. */
mb_status mb_pretokenizer_open(const char *path, const char *pattern, mb_pretokenizer **pretokenizer);
void mb_pretokenizer_close(mb_pretokenizer *pretokenizer);

/* One piece of text, not empty. A failure ends the cutting. */
typedef mb_status (*mb_piece_fn)(void *user, const char *piece, size_t n_bytes);

/* Calls on_piece for the pieces of well-formed UTF-8 text, in order. Matching has limits on steps
 * (proportional to n_bytes), memory and depth: MB_ERR_CAPACITY when a pattern needs more than the limits. */
mb_status mb_pretokenize(const mb_pretokenizer *pretokenizer, const char *text, size_t n_bytes,
                         mb_piece_fn on_piece, void *user);

#endif
