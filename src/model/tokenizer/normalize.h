/* normalize.h - Unicode normalisation form C (Unicode Annex 15), as the reference tokenizer applies it. */
#ifndef MB_MODEL_NORMALIZE_H
#define MB_MODEL_NORMALIZE_H

#include "model/text_buffer.h"

/* Replaces the contents of *normalized by the normal form of well-formed UTF-8 text. The time is linear in
 * n_bytes, for long runs of combining marks too. Fails with MB_ERR_MEMORY only. */
mb_status mb_normalize_nfc(const char *text, size_t n_bytes, mb_text_buffer *normalized);

#endif
