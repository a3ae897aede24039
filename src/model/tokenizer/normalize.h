/* normalize.h - Unicode normalisation form C (Unicode Annex 15), as the reference tokenizer applies it. */
#ifndef MB_MODEL_NORMALIZE_H
#define MB_MODEL_NORMALIZE_H

#include "model/text_buffer.h"

/* Replaces the contents of *normalized by the NFC of well-formed UTF-8 text. Time is linear in n_bytes,
 * however many combining marks follow one another. MB_ERR_MEMORY. */
mb_status mb_normalize_nfc(const char *text, size_t n_bytes, mb_text_buffer *normalized);

#endif
