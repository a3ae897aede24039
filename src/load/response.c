#include "load/response.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

void load_response_begin(load_response *response) {
    memset(response, 0, offsetof(load_response, line));
}

/* The value of a header when the line is this header, else NULL. */
static const char *header_value(const char *line, const char *name) {
    size_t n = strlen(name);
    if (strncasecmp(line, name, n) != 0 || line[n] != ':')
        return NULL;
    return line + n + 1 + strspn(line + n + 1, " \t");
}

/* A whole number without sign; -1 when the text has other characters, or more than 18 digits. */
static int64_t number_of(const char *text, int base) {
    char *end;
    size_t n = strspn(text, base == 16 ? "0123456789abcdefABCDEF" : "0123456789");
    if (n == 0 || n > (base == 16 ? 15 : 18))
        return -1;
    long long value = strtoll(text, &end, base);
    end += strspn(end, " \t");
    return *end == 0 || (base == 16 && *end == ';') ? value : -1;
}

static void take_status(load_response *response) {
    const char *line = response->line;
    int is_http = strncmp(line, "HTTP/1.", 7) == 0 && line[7] >= '0' && line[7] <= '9' && line[8] == ' ';
    if (!is_http || strspn(line + 9, "0123456789") != 3 || (line[12] != 0 && line[12] != ' ')) {
        response->problem = "the server does not speak HTTP/1.1";
        return;
    }
    response->status = atoi(line + 9);
    response->keeps_alive = line[7] != '0';
    response->state = LOAD_HEADERS;
}

static void take_header(load_response *response) {
    const char *value;
    if (++response->n_headers > LOAD_MAX_HEADERS) {
        response->problem = "the response has too many headers";
    } else if ((value = header_value(response->line, "Content-Length")) != NULL) {
        int64_t length = number_of(value, 10);
        if (length < 0 || (response->has_length && (uint64_t)length != response->n_left))
            response->problem = "the response has no clear Content-Length";
        response->has_length = 1;
        response->n_left = (uint64_t)length;
    } else if ((value = header_value(response->line, "Transfer-Encoding")) != NULL) {
        if (strcasecmp(value, "chunked") != 0)
            response->problem = "the response has an unknown Transfer-Encoding";
        response->is_chunked = 1;
    } else if ((value = header_value(response->line, "Connection")) != NULL) {
        if (strcasecmp(value, "close") == 0)
            response->keeps_alive = 0;
    }
}

/* The empty line after the headers: how the body ends. */
static void end_headers(load_response *response) {
    if (response->status >= 100 &&
        response->status < 200) { /* "100 Continue": the response is still to come */
        load_response_begin(response);
        return;
    }
    if (response->status == 204 || response->status == 304) {
        response->state = LOAD_COMPLETE;
    } else if (response->is_chunked) {
        response->state = LOAD_CHUNK_SIZE;
    } else if (response->has_length) {
        response->state = response->n_left > 0 ? LOAD_BODY_LENGTH : LOAD_COMPLETE;
    } else {
        response->state = LOAD_BODY_CLOSE;
        response->keeps_alive = 0;
    }
}

static void take_chunk_size(load_response *response) {
    int64_t size = number_of(response->line, 16);
    if (size < 0) {
        response->problem = "a chunk of the response has no clear size";
        return;
    }
    response->n_left = (uint64_t)size;
    response->state = size > 0 ? LOAD_CHUNK : LOAD_TRAILERS;
}

/* A whole line, without its end. */
static void take_line(load_response *response) {
    int is_empty = response->line[0] == 0;
    switch (response->state) {
    case LOAD_STATUS_LINE:
        take_status(response);
        break;
    case LOAD_HEADERS:
        if (is_empty)
            end_headers(response);
        else
            take_header(response);
        break;
    case LOAD_CHUNK_SIZE:
        take_chunk_size(response);
        break;
    case LOAD_CHUNK_END:
        if (!is_empty)
            response->problem = "a chunk of the response is longer than it says";
        response->state = LOAD_CHUNK_SIZE;
        break;
    default: /* trailers */
        if (is_empty)
            response->state = LOAD_COMPLETE;
        else if (++response->n_headers > LOAD_MAX_HEADERS)
            response->problem = "the response has too many headers";
    }
}

/* Adds to the line until its end; answers how many bytes were taken. */
static size_t take_line_part(load_response *response, const char *bytes, size_t n_bytes) {
    const char *end = memchr(bytes, '\n', n_bytes);
    size_t n = end != NULL ? (size_t)(end - bytes) : n_bytes;
    if (response->n_line + n >= sizeof response->line) {
        response->problem = "a header of the response is too long";
        return 0;
    }
    memcpy(response->line + response->n_line, bytes, n);
    response->n_line += n;
    if (end == NULL)
        return n;
    if (response->n_line > 0 && response->line[response->n_line - 1] == '\r')
        response->n_line--;
    response->line[response->n_line] = 0;
    response->n_line = 0;
    take_line(response);
    return n + 1;
}

size_t load_response_take(load_response *response, const char *bytes, size_t n_bytes, load_sink sink,
                          void *context) {
    size_t at = 0;
    while (at < n_bytes && response->problem == NULL && response->state != LOAD_COMPLETE) {
        size_t n = n_bytes - at;
        int is_counted = response->state == LOAD_BODY_LENGTH || response->state == LOAD_CHUNK;
        if (!is_counted && response->state != LOAD_BODY_CLOSE) {
            at += take_line_part(response, bytes + at, n);
            continue;
        }
        if (is_counted && n > response->n_left)
            n = (size_t)response->n_left;
        sink(context, bytes + at, n);
        at += n;
        if (is_counted && (response->n_left -= n) == 0)
            response->state = response->state == LOAD_CHUNK ? LOAD_CHUNK_END : LOAD_COMPLETE;
    }
    return at;
}

int load_response_end(load_response *response) {
    if (response->state == LOAD_BODY_CLOSE && response->problem == NULL)
        response->state = LOAD_COMPLETE;
    return response->state == LOAD_COMPLETE;
}
