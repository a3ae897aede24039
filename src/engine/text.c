/* text.c - the text calls of moebius.h: tokens to and from text, and chat prompts, for an opened model. */
#include <string.h>

#include "base/alloc.h"
#include "model/model.h"

static mb_status need_tokenizer(const mb_model *model) {
    if (model->tokenizer)
        return MB_OK;
    MB_TRY(mb_kept_failure_report(&model->tokenizer_failure));
    return mb_fail(MB_ERR_UNSUPPORTED, "the checkpoint has no tokenizer.json; work with token ids instead");
}

mb_status mb_tokenize(const mb_model *model, const char *text, size_t n_bytes, int parse_special,
                      int32_t *ids, size_t capacity, size_t *n_ids) {
    MB_TRY(mb_need(model, "mb_tokenize: model"));
    MB_TRY(mb_need(n_ids, "mb_tokenize: n_ids"));
    *n_ids = 0;
    if (n_bytes > 0)
        MB_TRY(mb_need(text, "mb_tokenize: text"));
    if (capacity > 0)
        MB_TRY(mb_need(ids, "mb_tokenize: ids"));
    MB_TRY(need_tokenizer(model));
    int32_t *encoded;
    size_t n;
    MB_TRY(mb_tokenizer_encode(model->tokenizer, text, n_bytes, parse_special, &encoded, &n));
    *n_ids = n;
    if (n <= capacity && n > 0)
        memcpy(ids, encoded, n * sizeof *ids);
    mb_free(encoded);
    if (n > capacity)
        return mb_fail(MB_ERR_CAPACITY, "the text is %zu tokens, the buffer holds %zu", n, capacity);
    return MB_OK;
}

mb_status mb_token_bytes(const mb_model *model, int32_t id, const char **bytes, size_t *n_bytes,
                         int *is_special) {
    MB_TRY(mb_need(model, "mb_token_bytes: model"));
    MB_TRY(mb_need(bytes, "mb_token_bytes: bytes"));
    MB_TRY(mb_need(n_bytes, "mb_token_bytes: n_bytes"));
    MB_TRY(need_tokenizer(model));
    int special;
    return mb_tokenizer_bytes(model->tokenizer, id, bytes, n_bytes, is_special ? is_special : &special);
}

/* ---- Streaming ---------------------------------------------------------------------------------------- */

struct mb_decoder {
    const mb_tokenizer *tokenizer;
    int skip_special;
    mb_utf8_stream stream;
    char *text; /* what the last call handed out */
    size_t capacity;
};

/* What mb_utf8_stream_push may write for one token, with the terminator; enough for _finish too. */
static size_t room_for(size_t n_bytes) {
    return 3 * (n_bytes + 4) + 1;
}

mb_status mb_decoder_open(const mb_model *model, int skip_special, mb_decoder **decoder) {
    MB_TRY(mb_need(decoder, "mb_decoder_open: decoder"));
    *decoder = NULL;
    MB_TRY(mb_need(model, "mb_decoder_open: model"));
    MB_TRY(need_tokenizer(model));
    mb_decoder *opened = mb_calloc(1, sizeof *opened);
    if (!opened)
        return mb_fail(MB_ERR_MEMORY, "no memory for a decoder");
    opened->tokenizer = model->tokenizer;
    opened->skip_special = skip_special;
    if (mb_grow((void **)&opened->text, &opened->capacity, room_for(0), 1) != 0) {
        mb_free(opened);
        return mb_fail(MB_ERR_MEMORY, "no memory for a decoder");
    }
    *decoder = opened;
    return MB_OK;
}

void mb_decoder_close(mb_decoder *decoder) {
    if (!decoder)
        return;
    mb_free(decoder->text);
    mb_free(decoder);
}

mb_status mb_decoder_push(mb_decoder *decoder, int32_t id, const char **text, size_t *n_bytes) {
    MB_TRY(mb_need(decoder, "mb_decoder_push: decoder"));
    MB_TRY(mb_need(text, "mb_decoder_push: text"));
    MB_TRY(mb_need(n_bytes, "mb_decoder_push: n_bytes"));
    *text = "";
    *n_bytes = 0;
    const char *bytes;
    size_t n;
    int is_special;
    MB_TRY(mb_tokenizer_bytes(decoder->tokenizer, id, &bytes, &n, &is_special));
    if (is_special && decoder->skip_special)
        return MB_OK;
    if (n > SIZE_MAX / 8 || mb_grow((void **)&decoder->text, &decoder->capacity, room_for(n), 1) != 0)
        return mb_fail(MB_ERR_MEMORY, "no memory to decode a token of %zu bytes", n);
    *n_bytes = mb_utf8_stream_push(&decoder->stream, bytes, n, decoder->text);
    decoder->text[*n_bytes] = '\0';
    *text = decoder->text;
    return MB_OK;
}

mb_status mb_decoder_finish(mb_decoder *decoder, const char **text, size_t *n_bytes) {
    MB_TRY(mb_need(decoder, "mb_decoder_finish: decoder"));
    MB_TRY(mb_need(text, "mb_decoder_finish: text"));
    MB_TRY(mb_need(n_bytes, "mb_decoder_finish: n_bytes"));
    *n_bytes = mb_utf8_stream_finish(&decoder->stream, decoder->text);
    decoder->text[*n_bytes] = '\0';
    *text = decoder->text;
    return MB_OK;
}

/* ---- Chat --------------------------------------------------------------------------------------------- */

void mb_chat_options_init(mb_chat_options *options) {
    *options = (mb_chat_options){.add_generation_prompt = 1, .enable_thinking = -1};
}

mb_status mb_chat_render(const mb_model *model, const char *messages_json, const mb_chat_options *options,
                         char **text) {
    mb_chat_options defaults;
    mb_chat_options_init(&defaults);
    MB_TRY(mb_need(text, "mb_chat_render: text"));
    *text = NULL;
    MB_TRY(mb_need(model, "mb_chat_render: model"));
    MB_TRY(mb_need(messages_json, "mb_chat_render: messages_json"));
    if (model->chat_failure.sentence)
        return mb_fail(model->chat_failure.status, "%s; choose another with --chat-template",
                       model->chat_failure.sentence);
    return mb_chat_template_render(model->chat_template, messages_json, options ? options : &defaults, text);
}
