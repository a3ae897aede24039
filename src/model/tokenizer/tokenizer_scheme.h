/* tokenizer_scheme.h - the parts of tokenizer.json that say how text is cut: normaliser, pre-tokenizer,
 * post-processor, decoder, and the variant of BPE. */
#ifndef MB_MODEL_TOKENIZER_SCHEME_H
#define MB_MODEL_TOKENIZER_SCHEME_H

#include <jansson.h>

#include "base/status.h"

typedef struct mb_tokenizer_scheme {
    int uses_nfc;
    const char *pattern; /* a string of the document */
} mb_tokenizer_scheme;

/* Checks that `root` follows the Qwen scheme in everything but its tokens:
 *   normalizer      NFC or none
 *   pre_tokenizer   Split (Regex, Isolated), then ByteLevel
 *   post_processor  none, ByteLevel, or a TemplateProcessing that adds no token (transformers 5 saves one)
 *   decoder         ByteLevel
 *   model           BPE without variants: dropout, unknown token, affixes, byte fallback, ignored merges
 * A Sequence is what it contains. MB_ERR_UNSUPPORTED names what is different; MB_ERR_FORMAT: a value of the
 * wrong type. "truncation" and "padding" are settings of a batch and are not looked at. */
mb_status mb_tokenizer_scheme_read(const char *path, const json_t *root, mb_tokenizer_scheme *scheme);

#endif
