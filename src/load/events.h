/* events.h - server-sent events of an OpenAI stream: the data lines of a body that comes in pieces, and
 * what a client that measures has to know of a chunk. */
#ifndef MB_LOAD_EVENTS_H
#define MB_LOAD_EVENTS_H

#include <stddef.h>
#include <stdint.h>

#include "load/response.h"

/* The part of a line that has come so far. A body is data lines, so one buffer serves
 * events and plain JSON. */
typedef struct load_events {
    char *bytes; /* mb_malloc */
    size_t n_bytes, capacity;
    int failed; /* memory ran out, or a line is longer than LOAD_MAX_EVENT */
} load_events;

enum { LOAD_MAX_EVENT = 16 << 20 };

void load_events_free(load_events *events);

/* Gives the data of each whole "data:" line to the sink. OpenAI's servers write every chunk on one line. */
void load_events_take(load_events *events, const char *bytes, size_t n_bytes, load_sink sink, void *context);

typedef struct load_chunk {
    int has_text; /* a part of the answer: text, thinking or a tool call */
    int is_done;  /* [DONE] */
    int is_error;
    int has_usage;
    int64_t n_prompt, n_cached, n_output;
    char message[256]; /* of an error */
} load_chunk;

/* Reads a chunk. Most are only scanned, as a load generator must not cost what a server costs; those with
 * usage or an error are parsed. */
void load_chunk_read(const char *data, size_t n_bytes, load_chunk *chunk);

/* OpenAI's sentence of an error reply, or the beginning of another body. */
void load_error_message(const char *body, size_t n_bytes, char *message, size_t capacity);

#endif
