/*
 * batch_lines.h - the lines of a batch: which of IN are answered in OUT already, and what a line asks for.
 *
 * A line of IN is known by its custom_id. A line that has none, or one that an earlier line has too, is
 * answered with an error that names the line's number; it is known by that.
 */
#ifndef MB_CLI_BATCH_LINES_H
#define MB_CLI_BATCH_LINES_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

typedef enum batch_line_state {
    BATCH_EMPTY,    /* nothing to be answered */
    BATCH_ANSWERED, /* in OUT */
    BATCH_OPEN,
    BATCH_TWICE, /* open; an earlier line has its custom_id */
} batch_line_state;

typedef struct batch_lines {
    uint8_t *states; /* [n], a batch_line_state for each line of IN */
    size_t n, capacity;
    size_t n_wanted, n_answered; /* lines that are not empty; of these, those in OUT */
} batch_lines;

/* Reads OUT as far as it goes, cuts a torn last line off, and then looks at every line of IN. Both files
 * are open; IN is read from its beginning, OUT stands at its end afterwards. Failures are reported; among
 * them an OUT that holds something else than a batch's answers. */
int batch_lines_survey(batch_lines *lines, const char *in_path, int in, const char *out_path, int out);
void batch_lines_free(batch_lines *lines);

/* What a line of IN asks for. The texts belong to `document`. */
typedef struct batch_request {
    json_t *document;
    const char *custom_id, *url;
    const json_t *body;
    /* What is wrong, as OpenAI's batches name it; code NULL: nothing. */
    const char *code;
    char message[256];
    int has_number; /* the error is known by the line's number */
} batch_request;

/* line NULL: too long. */
void batch_request_read(batch_request *request, const char *line, size_t length, size_t number,
                        batch_line_state state);
void batch_request_free(batch_request *request);

/* The line of OUT that answers a request, with its line break: freed with mb_free, NULL without memory.
 * body: the reply's JSON; with an error of the request (code) it is NULL. */
char *batch_answer_line(const batch_request *request, size_t number, int status, const char *body,
                        size_t n_body, size_t *length);

#endif
