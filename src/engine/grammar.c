/* grammar.c - grammars of moebius/grammar.h for an opened model. */
#include <string.h>

#include "base/alloc.h"
#include "grammar/store.h"
#include "model/model.h"

/* Special tokens are no text, whatever their bytes; but for the one that ends a reasoning part, which some
 * checkpoints mark as special. */
static int is_text(const char *bytes, size_t n_bytes, int is_special) {
    static const char end_of_thinking[] = "</think>";
    return !is_special ||
           (n_bytes == sizeof end_of_thinking - 1 && memcmp(bytes, end_of_thinking, n_bytes) == 0);
}

static mb_status make_trie(const void *user, mb_token_trie **trie) {
    const mb_model *model = user;
    int32_t vocab = model->config.vocab;
    mb_token_bytes_of *tokens = mb_calloc((size_t)vocab, sizeof *tokens);
    mb_status status = MB_OK;
    if (!tokens)
        return mb_fail(MB_ERR_MEMORY, "no memory for the bytes of %d tokens", (int)vocab);
    for (int32_t id = 0; id < vocab && status == MB_OK; id++) {
        int is_special = 0;
        status =
            mb_tokenizer_bytes(model->tokenizer, id, &tokens[id].bytes, &tokens[id].n_bytes, &is_special);
        if (status == MB_OK && !is_text(tokens[id].bytes, tokens[id].n_bytes, is_special))
            tokens[id].n_bytes = 0;
    }
    if (status == MB_OK)
        status = mb_trie_open(tokens, vocab, trie);
    mb_free(tokens);
    return status;
}

mb_status mb_grammar_open(const mb_model *model, mb_grammar_kind kind, const char *text, size_t n_bytes,
                          mb_grammar **grammar) {
    MB_TRY(mb_need(grammar, "mb_grammar_open: grammar"));
    *grammar = NULL;
    MB_TRY(mb_need(model, "mb_grammar_open: model"));
    if (kind == MB_GRAMMAR_JSON_OBJECT)
        n_bytes = 0;
    else
        MB_TRY(mb_need(text, "mb_grammar_open: text"));
    if (!model->tokenizer) {
        MB_TRY(mb_kept_failure_report(&model->tokenizer_failure));
        return mb_fail(MB_ERR_UNSUPPORTED, "a grammar needs the checkpoint's tokenizer.json; there is none");
    }
    return mb_grammar_store_get(model->grammars, make_trie, model, kind, text, n_bytes, grammar);
}
