/* text_buffer.h - a block of bytes that grows as bytes are appended. An append that finds no memory is
 * noted in the buffer, so callers append freely and check once at the end. */
#ifndef MB_MODEL_TEXT_BUFFER_H
#define MB_MODEL_TEXT_BUFFER_H

#include <stddef.h>

#include "base/status.h"

typedef struct mb_text_buffer {
    char *bytes; /* NULL as long as nothing was appended; freed with mb_free */
    size_t n_bytes, capacity;
    int out_of_memory;
} mb_text_buffer;

/* Makes room for n_bytes more at the end. The caller writes there and adds the bytes written to
 * buffer->n_bytes. Returns NULL when there is no memory. */
char *mb_text_reserve(mb_text_buffer *buffer, size_t n_bytes);
void mb_text_append(mb_text_buffer *buffer, const char *bytes, size_t n_bytes);
void mb_text_append_string(mb_text_buffer *buffer, const char *text);

/* Zero-terminates and hands the text over to the caller; on failure frees it and sets *text to NULL. `what`
 * is for the error sentence. */
mb_status mb_text_finish(mb_text_buffer *buffer, const char *what, char **text);

#endif
