/* The text calls of moebius.h on the demo model: buffers, special tokens, streaming, chat prompts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "moebius/moebius.h"

enum { MAX_IDS = 256 };

static mb_model *model;

static int open_model(void **state) {
    (void)state;
    const mb_model_options options = {.device = "cpu", .chat_template = "qwen3"};
    if (mb_model_open("models/demo", &options, &model) != MB_OK)
        fail_msg("%s", mb_last_error());
    return 0;
}

static int close_model(void **state) {
    (void)state;
    mb_model_close(model);
    return 0;
}

static size_t tokenize(const char *text, int parse_special, int32_t *ids) {
    size_t n;
    if (mb_tokenize(model, text, strlen(text), parse_special, ids, MAX_IDS, &n) != MB_OK)
        fail_msg("%s", mb_last_error());
    return n;
}

static void test_small_buffers_are_left_alone(void **state) {
    (void)state;
    static const char text[] = "reverse the word table";
    int32_t all[MAX_IDS], some[MAX_IDS];
    size_t n = tokenize(text, 0, all), needed;
    assert_true(n > 3);
    for (size_t capacity = 0; capacity < n; capacity++) {
        memset(some, 0x7F, sizeof some);
        assert_int_equal(mb_tokenize(model, text, strlen(text), 0, some, capacity, &needed), MB_ERR_CAPACITY);
        assert_int_equal(needed, n);
        assert_int_equal(some[0], 0x7F7F7F7F);
    }
    assert_int_equal(mb_tokenize(model, text, strlen(text), 0, some, n, &needed), MB_OK);
    assert_memory_equal(all, some, n * sizeof *all);
    assert_int_equal(mb_tokenize(model, "", 0, 0, NULL, 0, &needed), MB_OK);
    assert_int_equal(needed, 0);
    assert_int_equal(mb_tokenize(model, "\xFF", 1, 0, some, MAX_IDS, &needed), MB_ERR_FORMAT);
}

static void test_special_tokens(void **state) {
    (void)state;
    int32_t ids[MAX_IDS];
    const char *bytes;
    size_t n_bytes;
    int is_special;
    assert_int_equal(tokenize("<|im_end|>", 1, ids), 1);
    assert_int_equal(mb_token_bytes(model, ids[0], &bytes, &n_bytes, &is_special), MB_OK);
    assert_int_equal(n_bytes, 10);
    assert_memory_equal(bytes, "<|im_end|>", 10);
    assert_true(is_special);
    assert_true(tokenize("<|im_end|>", 0, ids) > 1); /* plain text */
    assert_int_equal(mb_token_bytes(model, ids[0], &bytes, &n_bytes, NULL), MB_OK);
    assert_int_equal(mb_token_bytes(model, -1, &bytes, &n_bytes, NULL), MB_ERR_ARGUMENT);
    assert_int_equal(mb_token_bytes(model, INT32_MAX, &bytes, &n_bytes, NULL), MB_ERR_ARGUMENT);
}

/* Pushes all ids; every piece must be whole UTF-8, together they must be `expected`. */
static void check_stream(mb_decoder *decoder, const int32_t *ids, size_t n, const char *expected) {
    char text[1024] = "";
    size_t used = 0, n_bytes;
    const char *piece;
    for (size_t i = 0; i <= n; i++) {
        mb_status status = i < n ? mb_decoder_push(decoder, ids[i], &piece, &n_bytes)
                                 : mb_decoder_finish(decoder, &piece, &n_bytes);
        assert_int_equal(status, MB_OK);
        assert_int_equal(strlen(piece), n_bytes);
        assert_true(n_bytes == 0 || ((unsigned char)piece[0] & 0xC0) != 0x80); /* not amid a character */
        assert_true(used + n_bytes < sizeof text);
        memcpy(text + used, piece, n_bytes + 1);
        used += n_bytes;
    }
    assert_string_equal(text, expected);
}

static void test_streaming_decoder(void **state) {
    (void)state;
    static const char text[] = "caf\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80 end<|im_end|>";
    int32_t ids[MAX_IDS];
    size_t n = tokenize(text, 1, ids), n_bytes;
    const char *piece;
    mb_decoder *all, *plain;
    assert_int_equal(mb_decoder_open(model, 0, &all), MB_OK);
    assert_int_equal(mb_decoder_open(model, 1, &plain), MB_OK);
    for (int round = 0; round < 2; round++) { /* it can be used again */
        check_stream(all, ids, n, text);
        check_stream(plain, ids, n, "caf\xC3\xA9 \xE2\x82\xAC \xF0\x9F\x98\x80 end");
    }
    /* the first byte of a character alone: held back, then replaced */
    size_t n_emoji = tokenize("\xF0\x9F\x98\x80", 0, ids);
    assert_true(n_emoji > 1);
    assert_int_equal(mb_decoder_push(all, ids[0], &piece, &n_bytes), MB_OK);
    assert_int_equal(n_bytes, 0);
    assert_int_equal(mb_decoder_finish(all, &piece, &n_bytes), MB_OK);
    assert_string_equal(piece, "\xEF\xBF\xBD");
    assert_int_equal(mb_decoder_push(all, -5, &piece, &n_bytes), MB_ERR_ARGUMENT);
    assert_string_equal(piece, "");
    mb_decoder_close(all);
    mb_decoder_close(plain);
    mb_decoder_close(NULL);
}

static void test_chat_prompt(void **state) {
    (void)state;
    static const char messages[] = "[{\"role\": \"user\", \"content\": \"Hi\"}]";
    mb_chat_options options;
    mb_chat_options_init(&options);
    char *text;
    assert_int_equal(mb_chat_render(model, messages, NULL, &text), MB_OK);
    assert_string_equal(text, "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n");
    mb_free_text(text);
    options.enable_thinking = 0;
    assert_int_equal(mb_chat_render(model, messages, &options, &text), MB_OK);
    assert_string_equal(text,
                        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n");
    mb_free_text(text);
    options.add_generation_prompt = 0;
    assert_int_equal(mb_chat_render(model, messages, &options, &text), MB_OK);
    assert_string_equal(text, "<|im_start|>user\nHi<|im_end|>\n");
    mb_free_text(text);
    assert_int_equal(mb_chat_render(model, "{", NULL, &text), MB_ERR_FORMAT);
    assert_null(text);
    mb_free_text(NULL);
}

static void test_null_arguments_are_refused(void **state) {
    (void)state;
    int32_t ids[MAX_IDS];
    size_t n;
    const char *bytes;
    char *text;
    mb_decoder *decoder;
    assert_int_equal(mb_tokenize(NULL, "a", 1, 0, ids, MAX_IDS, &n), MB_ERR_ARGUMENT);
    assert_int_equal(mb_tokenize(model, NULL, 1, 0, ids, MAX_IDS, &n), MB_ERR_ARGUMENT);
    assert_int_equal(mb_tokenize(model, "a", 1, 0, NULL, MAX_IDS, &n), MB_ERR_ARGUMENT);
    assert_int_equal(mb_tokenize(model, "a", 1, 0, ids, MAX_IDS, NULL), MB_ERR_ARGUMENT);
    assert_int_equal(mb_tokenize(model, NULL, 0, 0, NULL, 0, &n), MB_OK);
    assert_int_equal(mb_token_bytes(NULL, 1, &bytes, &n, NULL), MB_ERR_ARGUMENT);
    assert_int_equal(mb_token_bytes(model, 1, NULL, &n, NULL), MB_ERR_ARGUMENT);
    assert_int_equal(mb_token_bytes(model, 1, &bytes, NULL, NULL), MB_ERR_ARGUMENT);
    assert_int_equal(mb_decoder_open(NULL, 0, &decoder), MB_ERR_ARGUMENT);
    assert_null(decoder);
    assert_int_equal(mb_decoder_open(model, 0, NULL), MB_ERR_ARGUMENT);
    assert_int_equal(mb_decoder_push(NULL, 1, &bytes, &n), MB_ERR_ARGUMENT);
    assert_int_equal(mb_decoder_finish(NULL, &bytes, &n), MB_ERR_ARGUMENT);
    assert_int_equal(mb_chat_render(NULL, "[]", NULL, &text), MB_ERR_ARGUMENT);
    assert_int_equal(mb_chat_render(model, NULL, NULL, &text), MB_ERR_ARGUMENT);
    assert_string_equal(mb_last_error(), "mb_chat_render: messages_json is NULL");
    assert_int_equal(mb_chat_render(model, "[]", NULL, NULL), MB_ERR_ARGUMENT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small_buffers_are_left_alone),
        cmocka_unit_test(test_special_tokens),
        cmocka_unit_test(test_streaming_decoder),
        cmocka_unit_test(test_chat_prompt),
        cmocka_unit_test(test_null_arguments_are_refused),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
