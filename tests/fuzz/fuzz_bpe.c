/* Any bytes as text: refused as not UTF-8, or tokens that spell the text again (when it is normalised
 * already), the same when they are streamed one by one. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/file.h"
#include "model/tokenizer/normalize.h"
#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/utf8.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static mb_tokenizer *open_fixture(void) {
    static const char path[] = "tests/golden/tokenizer/tokenizer.json";
    char *json;
    size_t n_bytes;
    mb_tokenizer *tokenizer;
    if (mb_file_read(path, 1 << 24, &json, &n_bytes) != MB_OK ||
        mb_tokenizer_open(&(mb_tokenizer_files){.tokenizer = {path, json, n_bytes}}, 4000, &tokenizer) !=
            MB_OK)
        abort();
    mb_free(json);
    return tokenizer;
}

static void check_stream(const char *bytes, size_t n_bytes) {
    mb_utf8_stream stream = {.n_held = 0};
    char *out = malloc(3 * (n_bytes + 4));
    size_t n = mb_utf8_stream_push(&stream, bytes, n_bytes, out);
    if (mb_utf8_valid_prefix(out, n) != n)
        abort();
    mb_utf8_stream_finish(&stream, out);
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static mb_tokenizer *tokenizer;
    if (!tokenizer)
        tokenizer = open_fixture();
    const char *text = (const char *)data;
    check_stream(text, n_bytes);

    int32_t *ids;
    size_t n_ids;
    int is_valid = mb_utf8_valid_prefix(text, n_bytes) == n_bytes;
    mb_status status = mb_tokenizer_encode(tokenizer, text, n_bytes, n_bytes % 2 == 0, &ids, &n_ids);
    if ((status == MB_OK) != is_valid)
        abort();
    if (!is_valid)
        return 0;

    mb_text_buffer spelled = {0}, again = {0};
    mb_utf8_stream stream = {.n_held = 0};
    for (size_t i = 0; i < n_ids; i++) {
        const char *bytes;
        size_t n_token;
        int is_special;
        if (mb_tokenizer_bytes(tokenizer, ids[i], &bytes, &n_token, &is_special) != MB_OK)
            abort();
        char *end = mb_text_reserve(&spelled, 3 * (n_token + 4));
        spelled.n_bytes += mb_utf8_stream_push(&stream, bytes, n_token, end);
    }
    /* Normalising what came out and normalising what went in give the same. */
    mb_text_buffer wanted = {0};
    if (stream.n_held != 0 || mb_normalize_nfc(text, n_bytes, &wanted) != MB_OK ||
        mb_normalize_nfc(spelled.bytes, spelled.n_bytes, &again) != MB_OK)
        abort();
    if (again.n_bytes != wanted.n_bytes ||
        (again.n_bytes && memcmp(again.bytes, wanted.bytes, again.n_bytes) != 0))
        abort();
    mb_free(spelled.bytes);
    mb_free(again.bytes);
    mb_free(wanted.bytes);
    mb_free(ids);
    return 0;
}
