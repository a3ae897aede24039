/* A safetensors file: the first 8 bytes are the header's length, the header follows, and the data's size is
 * what is left plus a size that two more bytes of input choose (data itself is never looked at). */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "model/weights/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes);

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes) {
    if (n_bytes < 2 + MB_SAFETENSORS_PREFIX)
        return 0;
    uint64_t extra = (uint64_t)bytes[0] << 8 | bytes[1];
    uint64_t file_size = n_bytes - 2 + extra;
    const unsigned char *file = bytes + 2;
    size_t header_bytes;
    if (mb_safetensors_header_bytes("fuzz", file, file_size, &header_bytes) != MB_OK)
        header_bytes = n_bytes - 2 - MB_SAFETENSORS_PREFIX; /* look at the header all the same */
    if (header_bytes > n_bytes - 2 - MB_SAFETENSORS_PREFIX)
        return 0;
    mb_safetensors parsed;
    if (mb_safetensors_parse("fuzz", (const char *)file + MB_SAFETENSORS_PREFIX, header_bytes, file_size,
                             &parsed) != MB_OK)
        return 0;
    uint64_t end = MB_SAFETENSORS_PREFIX + header_bytes;
    for (size_t i = 0; i < parsed.n_tensors; i++) {
        char shape[64];
        const mb_tensor *tensor = &parsed.tensors[i];
        if (tensor->offset != end || strlen(mb_tensor_shape(shape, sizeof shape, tensor)) >= sizeof shape)
            abort(); /* accepted, but the tensors do not follow one another */
        end += tensor->n_bytes;
    }
    if (end != file_size)
        abort();
    mb_safetensors_free(&parsed);
    return 0;
}
