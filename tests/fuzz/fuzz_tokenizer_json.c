/* Any bytes as tokenizer.json: opening fails with a sentence or gives a tokenizer that encodes and decodes.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "model/tokenizer/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static const char text[] = "Hello 123 <|im_end|>\n\n e\xCC\x81\xCC\x96 \xEA\xB0\x80\xE1\x86\xA8 'S <x>";
    mb_tokenizer *tokenizer;
    if (mb_tokenizer_open("fuzz", (const char *)data, n_bytes, 100000, &tokenizer) != MB_OK) {
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
