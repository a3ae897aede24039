/*
 * stop_text.h - the texts that end an answer, found across the borders of the pieces in which the answer
 * comes.
 *
 * The answer ends where the first byte completes one of the texts; the text itself, and all that follows, is
 * left out. When one byte completes several texts, the longest of them counts. So the result does not depend
 * on the pieces. What may become a stop text is withheld until the bytes that follow decide. When pieces and
 * stop texts are UTF-8, so is every part that is handed out. A matcher is for one thread at a time.
 */
#ifndef MOEBIUS_STOP_TEXT_H
#define MOEBIUS_STOP_TEXT_H

#include <stddef.h>

#include "moebius/status.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct mb_stop_text mb_stop_text;

/* The texts are copied. None at all is allowed: then every piece is handed out as it comes.
 * MB_ERR_ARGUMENT: an empty text. */
MB_API mb_status mb_stop_text_open(const char *const *texts, size_t n_texts, mb_stop_text **matcher);
MB_API void mb_stop_text_close(mb_stop_text *matcher); /* NULL allowed */

/* Takes the next piece of the answer. *text [*n_bytes], valid until the next call: what is now known to be
 * part of the answer; it may begin with what was withheld before. It is not zero-terminated, and NULL when
 * there is none. Once a stop text has come, nothing more is handed out. */
MB_API mb_status mb_stop_text_push(mb_stop_text *matcher, const char *piece, size_t n_piece,
                                   const char **text, size_t *n_bytes);

/* The stop text that came, counted from 0 as they were given to mb_stop_text_open; -1: none so far. */
MB_API int mb_stop_text_found(const mb_stop_text *matcher);

/* The answer has ended otherwise: *text gets what is still withheld. The matcher then begins a new answer. */
MB_API void mb_stop_text_finish(mb_stop_text *matcher, const char **text, size_t *n_bytes);

#ifdef __cplusplus
}
#endif
#endif
