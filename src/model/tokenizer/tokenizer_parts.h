/* tokenizer_parts.h - what an opened tokenizer consists of; for the tokenizer's own files. */
#ifndef MB_MODEL_TOKENIZER_PARTS_H
#define MB_MODEL_TOKENIZER_PARTS_H

#include "model/tokenizer/added_tokens.h"
#include "model/tokenizer/bpe.h"
#include "model/tokenizer/pretokenize.h"
#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/vocabulary.h"

struct mb_tokenizer {
    mb_vocabulary vocabulary;
    mb_bpe bpe;
    mb_pretokenizer *pretokenizer;
    mb_added_token *added; /* by id */
    size_t n_added;
    mb_added_matcher raw, normalized;
    int uses_nfc;
    int32_t n_ids;  /* largest id + 1 */
    int32_t n_rows; /* rows of the model's embedding: ids that the model can give */
};

/* NULL when no added token has this id. */
const mb_added_token *mb_tokenizer_added(const mb_tokenizer *tokenizer, int32_t id);

#endif
