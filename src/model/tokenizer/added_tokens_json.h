/*
 * added_tokens_json.h - the added tokens of a checkpoint, from the three files that may name them, as
 * Hugging Face's AutoTokenizer.from_pretrained collects them:
 *
 *   tokenizer.json         "added_tokens"; the ids of this file count
 *   tokenizer_config.json  "added_tokens_decoder" has more tokens, and the flags of this file count. Special
 *                          tokens by name ("pad_token", ...) that stand nowhere else get the next free ids
 *   added_tokens.json      {"token": id} has more tokens; it is read only when the configuration has no
 *                          "added_tokens_decoder"
 */
#ifndef MB_MODEL_ADDED_TOKENS_JSON_H
#define MB_MODEL_ADDED_TOKENS_JSON_H

#include <jansson.h>

#include "model/tokenizer/tokenizer_parts.h"

typedef struct mb_added_sources {
    const char *path, *config_path, *legacy_path; /* of the three files, for sentences */
    const json_t *root, *config, *legacy;         /* their contents; the last two may be NULL */
    int32_t vocab;                                /* size of the model's embedding */
} mb_added_sources;

/* Fills tokenizer->added (by id), raw and normalized; uses_nfc is set before. MB_ERR_FORMAT: a value of the
 * wrong type, one id for two tokens, one text for two ids, in tokenizer.json an id outside of [0, vocab). A
 * warning names tokens of the other files whose id is beyond vocab (they are left out) or whose id or flags
 * are not those of tokenizer.json. */
mb_status mb_added_tokens_read(const mb_added_sources *sources, mb_tokenizer *tokenizer);

/* An id as an integer in [0, vocab); the token is for the sentence. */
mb_status mb_token_id_read(const char *path, const char *token, const json_t *value, int32_t vocab,
                           int32_t *id);

#endif
