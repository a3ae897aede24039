/*
 * model_text.c - what a checkpoint says about text: its tokenizer and its chat template.
 *
 * A model can be used by token ids alone. So a tokenizer or a template that cannot be used does not stop
 * the model from opening: the failure is kept, and the functions that need the part return it.
 */
#include <string.h>

#include "base/alloc.h"
#include "base/file.h"
#include "model/model.h"

/* More than any real file of its kind by far; a larger one is refused before it is read. */
enum { MAX_CONFIG_BYTES = 16 << 20, MAX_TOKENIZER_BYTES = 256 << 20 };

/* Keeps the failure just recorded. Running out of memory is no property of the checkpoint and is handed
 * on. */
static mb_status keep(mb_status status, mb_kept_failure *kept) {
    if (status == MB_OK || status == MB_ERR_MEMORY)
        return status;
    kept->sentence = mb_strdup(mb_last_error());
    kept->status = status;
    return kept->sentence ? MB_OK : mb_fail(MB_ERR_MEMORY, "no memory for an error sentence");
}

mb_status mb_kept_failure_report(const mb_kept_failure *kept) {
    return kept->sentence ? mb_fail(kept->status, "%s", kept->sentence) : MB_OK;
}

static mb_tokenizer_file as_source(const mb_small_file *file) {
    return (mb_tokenizer_file){file->path, file->bytes, file->n_bytes};
}

static mb_status read_tokenizer(const char *directory, int32_t vocab, mb_tokenizer **tokenizer) {
    mb_small_file files[3] = {0};
    mb_status status = mb_file_read_optional(directory, "tokenizer.json", MAX_TOKENIZER_BYTES, &files[0]);
    if (status != MB_OK || !files[0].bytes)
        return status;
    status = mb_file_read_optional(directory, "tokenizer_config.json", MAX_CONFIG_BYTES, &files[1]);
    if (status == MB_OK)
        status = mb_file_read_optional(directory, "added_tokens.json", MAX_CONFIG_BYTES, &files[2]);
    mb_tokenizer_files sources = {as_source(&files[0]), as_source(&files[1]), as_source(&files[2])};
    if (status == MB_OK)
        status = mb_tokenizer_open(&sources, vocab, tokenizer);
    for (size_t i = 0; i < 3; i++)
        mb_free(files[i].bytes);
    return status;
}

mb_status mb_model_open_text(mb_model *model, const char *directory, const char *template_name) {
    if (template_name)
        MB_TRY(mb_chat_template_open_named(directory, template_name, &model->chat_template));
    else
        MB_TRY(keep(mb_chat_template_open(directory, &model->chat_template), &model->chat_failure));
    return keep(read_tokenizer(directory, model->config.vocab, &model->tokenizer), &model->tokenizer_failure);
}

void mb_model_close_text(mb_model *model) {
    mb_tokenizer_close(model->tokenizer);
    mb_chat_template_close(model->chat_template);
    mb_free(model->tokenizer_failure.sentence);
    mb_free(model->chat_failure.sentence);
}
