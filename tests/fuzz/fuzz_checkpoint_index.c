/* model.safetensors.index.json: shard names that are accepted must be plain file names, sorted and distinct.
 */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/weights/checkpoint.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes) {
    mb_shard_index index;
    if (mb_shard_index_parse("fuzz", (const char *)bytes, n_bytes, &index) != MB_OK)
        return 0;
    for (size_t i = 0; i < index.n_shards; i++) {
        const char *name = index.shards[i];
        if (strchr(name, '/') || strstr(name, "..") || strlen(name) > 255)
            abort();
        if (i > 0 && strcmp(index.shards[i - 1], name) >= 0)
            abort();
    }
    mb_shard_index_free(&index);
    return 0;
}
