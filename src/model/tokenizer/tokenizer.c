/* tokenizer.c - an opened tokenizer: its tokens by id and by text, and its end. */
#include "model/tokenizer/tokenizer.h"

#include <string.h>

#include "base/alloc.h"
#include "model/tokenizer/tokenizer_parts.h"

void mb_tokenizer_close(mb_tokenizer *tokenizer) {
    if (!tokenizer)
        return;
    for (size_t i = 0; i < tokenizer->n_added; i++) {
        mb_free(tokenizer->added[i].content);
        mb_free(tokenizer->added[i].match);
    }
    mb_free(tokenizer->added);
    mb_added_matcher_free(&tokenizer->raw);
    mb_added_matcher_free(&tokenizer->normalized);
    mb_pretokenizer_close(tokenizer->pretokenizer);
    mb_bpe_free(&tokenizer->bpe);
    mb_vocabulary_free(&tokenizer->vocabulary);
    mb_free(tokenizer);
}

const mb_added_token *mb_tokenizer_added(const mb_tokenizer *tokenizer, int32_t id) {
    size_t low = 0, high = tokenizer->n_added;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (tokenizer->added[middle].id < id)
            low = middle + 1;
        else
            high = middle;
    }
    return low < tokenizer->n_added && tokenizer->added[low].id == id ? &tokenizer->added[low] : NULL;
}

mb_status mb_tokenizer_bytes(const mb_tokenizer *tokenizer, int32_t id, const char **bytes, size_t *n_bytes,
                             int *is_special) {
    const mb_added_token *added = mb_tokenizer_added(tokenizer, id);
    if (added) {
        *bytes = added->content;
        *n_bytes = added->n_content;
        *is_special = added->is_special;
        return MB_OK;
    }
    *is_special = 0;
    *bytes = "";
    *n_bytes = 0;
    if (id < 0 || id >= tokenizer->n_rows)
        return mb_fail(MB_ERR_ARGUMENT, "no token has the id %d; ids go from 0 to %d", id,
                       tokenizer->n_rows - 1);
    if (id < tokenizer->vocabulary.n_tokens && tokenizer->vocabulary.tokens[id].bytes) {
        *bytes = tokenizer->vocabulary.tokens[id].bytes;
        *n_bytes = tokenizer->vocabulary.tokens[id].n_bytes;
    }
    return MB_OK;
}

int32_t mb_tokenizer_id(const mb_tokenizer *tokenizer, const char *token) {
    for (size_t i = 0; i < tokenizer->n_added; i++)
        if (strcmp(tokenizer->added[i].content, token) == 0)
            return tokenizer->added[i].id;
    return mb_vocabulary_find(&tokenizer->vocabulary, token, strlen(token));
}

int32_t mb_tokenizer_size(const mb_tokenizer *tokenizer) {
    return tokenizer->n_ids;
}
