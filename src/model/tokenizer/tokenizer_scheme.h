/* tokenizer_scheme.h - the parts of tokenizer.json that say how text is cut: normaliser, pre-tokenizer,
 * decoder. */
#ifndef MB_MODEL_TOKENIZER_SCHEME_H
#define MB_MODEL_TOKENIZER_SCHEME_H

#include <jansson.h>

#include "base/status.h"

typedef struct mb_tokenizer_scheme {
    int uses_nfc;
    const json_t *pattern; /* a string of the document */
} mb_tokenizer_scheme;

/* Checks that `root` follows the Qwen scheme in all that is not vocabulary: normalizer NFC or null,
 * pre_tokenizer [Split(Regex, Isolated), ByteLevel], post_processor ByteLevel or null, decoder ByteLevel, and
 * a BPE model with none of its variants (dropout, unknown token, affixes, byte fallback, ignored merges).
 * MB_ERR_UNSUPPORTED names what is different; MB_ERR_FORMAT: a value of the wrong type. "truncation" and
 * "padding" are settings of a batch, and are not looked at. */
mb_status mb_tokenizer_scheme_read(const char *path, const json_t *root, mb_tokenizer_scheme *scheme);

#endif
