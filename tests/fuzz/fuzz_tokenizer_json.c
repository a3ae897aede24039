/* Any bytes as tokenizer.json, and behind a byte 0x1E as tokenizer_config.json, behind another as
 * added_tokens.json: opening fails with a sentence or gives a tokenizer that encodes and decodes. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "model/tokenizer/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static const char text[] = "Hello 123 <|im_end|>\n\n e\xCC\x81\xCC\x96 \xEA\xB0\x80\xE1\x86\xA8 'S <x>";
    mb_tokenizer *tokenizer;
    mb_tokenizer_files files = {{"fuzz", NULL, 0}, {"fuzz config", NULL, 0}, {"fuzz added", NULL, 0}};
    mb_tokenizer_file *const parts[] = {&files.tokenizer, &files.config, &files.added_tokens};
    const char *at = (const char *)data, *end = at + n_bytes;
    for (size_t i = 0; i < 3 && at; i++) {
        const char *separator = i < 2 && at < end ? memchr(at, 0x1E, (size_t)(end - at)) : NULL;
        parts[i]->bytes = at;
        parts[i]->n_bytes = (size_t)((separator ? separator : end) - at);
        at = separator ? separator + 1 : NULL;
    }
    if (!data) /* libFuzzer's first input */
        return 0;
    if (mb_tokenizer_open(&files, 100000, &tokenizer) != MB_OK) {
        if (tokenizer || !mb_last_error()[0])
            abort();
        return 0;
    }
    int32_t *ids;
    size_t n_ids;
    if (mb_tokenizer_encode(tokenizer, text, sizeof text - 1, 1, &ids, &n_ids) == MB_OK) {
        for (size_t i = 0; i < n_ids; i++) {
            const char *bytes;
            size_t n_token;
            int is_special;
            if (mb_tokenizer_bytes(tokenizer, ids[i], &bytes, &n_token, &is_special) != MB_OK || n_token == 0)
                abort();
        }
        mb_free(ids);
    }
    mb_tokenizer_close(tokenizer);
    return 0;
}
