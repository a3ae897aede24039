/* text.h - text that grows as it is written: replies, events and JSON. A write that finds no memory is
 * noted, so callers write freely and look once at the end. */
#ifndef MB_SERVER_TEXT_H
#define MB_SERVER_TEXT_H

#include <stddef.h>
#include <stdint.h>

typedef struct server_text {
    char *bytes; /* NULL as long as nothing was written */
    size_t n_bytes, capacity;
    int failed; /* memory ran out; the text is not whole */
} server_text;

void server_text_free(server_text *text);
void server_text_clear(server_text *text); /* empty, keeps its memory */

void server_text_put(server_text *text, const char *bytes, size_t n_bytes);
void server_text_puts(server_text *text, const char *string);
/* At most 512 bytes. */
__attribute__((format(printf, 2, 3))) void server_text_printf(server_text *text, const char *format, ...);

/* A JSON string with its quotes. The bytes must be UTF-8; what is not becomes U+FFFD, so that a reply is
 * valid JSON whatever a model wrote. */
void server_text_json(server_text *text, const char *bytes, size_t n_bytes);
void server_text_json_string(server_text *text, const char *string);
/* A finite number; what is no number becomes -9999, as in vLLM: JSON has neither NaN nor infinity. */
void server_text_json_number(server_text *text, double value);

/* Removes the first n_bytes. */
void server_text_drop(server_text *text, size_t n_bytes);

#endif
