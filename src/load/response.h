/* response.h - an HTTP/1.1 response as it arrives, in pieces of any size: status, and body
 * without its framing. */
#ifndef MB_LOAD_RESPONSE_H
#define MB_LOAD_RESPONSE_H

#include <stddef.h>
#include <stdint.h>

enum { LOAD_LINE_BYTES = 16384, LOAD_MAX_HEADERS = 200 };

typedef enum load_response_state {
    LOAD_STATUS_LINE,
    LOAD_HEADERS,
    LOAD_BODY_LENGTH, /* n_left bytes */
    LOAD_BODY_CLOSE,  /* to the end of the connection */
    LOAD_CHUNK_SIZE,
    LOAD_CHUNK,     /* n_left bytes */
    LOAD_CHUNK_END, /* the line after a chunk */
    LOAD_TRAILERS,
    LOAD_COMPLETE,
} load_response_state;

typedef struct load_response {
    load_response_state state;
    int status;
    int keeps_alive;
    int n_headers, is_chunked, has_length;
    uint64_t n_left;
    size_t n_line;
    const char *problem; /* a sentence, once the response is malformed */
    char line[LOAD_LINE_BYTES];
} load_response;

/* Gets a piece of the body. */
typedef void (*load_sink)(void *context, const char *bytes, size_t n_bytes);

void load_response_begin(load_response *response);

/* Takes bytes up to the end of the response and gives the body's parts to the sink. Answers how many bytes
 * were taken: fewer than n_bytes only when the response is complete, or malformed (problem). */
size_t load_response_take(load_response *response, const char *bytes, size_t n_bytes, load_sink sink,
                          void *context);

/* The connection has ended. 1 when the response is complete. */
int load_response_end(load_response *response);

#endif
