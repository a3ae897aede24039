#include "model/text_buffer.h"

#include <string.h>

#include "base/alloc.h"

char *mb_text_reserve(mb_text_buffer *buffer, size_t n_bytes) {
    if (!buffer->out_of_memory &&
        (n_bytes > (size_t)-1 - buffer->n_bytes ||
         mb_grow((void **)&buffer->bytes, &buffer->capacity, buffer->n_bytes + n_bytes, 1) != 0))
        buffer->out_of_memory = 1;
    return buffer->out_of_memory ? NULL : buffer->bytes + buffer->n_bytes;
}

void mb_text_append(mb_text_buffer *buffer, const char *bytes, size_t n_bytes) {
    if (n_bytes == 0)
        return;
    char *end = mb_text_reserve(buffer, n_bytes);
    if (!end)
        return;
    memcpy(end, bytes, n_bytes);
    buffer->n_bytes += n_bytes;
}

void mb_text_append_string(mb_text_buffer *buffer, const char *text) {
    mb_text_append(buffer, text, strlen(text));
}

mb_status mb_text_finish(mb_text_buffer *buffer, const char *what, char **text) {
    mb_text_append(buffer, "", 1);
    *text = buffer->out_of_memory ? NULL : buffer->bytes;
    if (*text)
        return MB_OK;
    mb_free(buffer->bytes);
    return mb_fail(MB_ERR_MEMORY, "no memory for %s of more than %zu bytes", what, buffer->n_bytes);
}
