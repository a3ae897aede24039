#include "cli/line_reader.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "cli/output.h"

void cli_line_reader_open(cli_line_reader *reader, const char *path, int fd) {
    *reader = (cli_line_reader){.path = path, .fd = fd};
}

void cli_line_reader_close(cli_line_reader *reader) {
    mb_free(reader->bytes);
    reader->bytes = NULL;
}

/* Appends more of the file to what is there. */
static int read_more(cli_line_reader *reader) {
    enum { PORTION = 1 << 16 };
    if (reader->start > 0) {
        memmove(reader->bytes, reader->bytes + reader->start, reader->end - reader->start);
        reader->end -= reader->start;
        reader->start = 0;
    }
    if (mb_grow((void **)&reader->bytes, &reader->capacity, reader->end + PORTION, 1) != 0) {
        cli_failure("%s: no memory for a line of more than %zu bytes", reader->path, reader->end);
        return -1;
    }
    ssize_t n;
    do
        n = read(reader->fd, reader->bytes + reader->end, PORTION);
    while (n < 0 && errno == EINTR);
    if (n < 0) {
        cli_failure("%s: %s", reader->path, strerror(errno));
        return -1;
    }
    reader->end += (size_t)n;
    reader->at_end = n == 0;
    return 0;
}

int cli_line_reader_next(cli_line_reader *reader, const char **line, size_t *length) {
    int is_too_long = 0;
    size_t n_seen = 0; /* bytes of the line that have no line break */
    for (;;) {
        size_t n = reader->end - reader->start;
        const char *first = n > 0 ? reader->bytes + reader->start : NULL;
        const char *line_break = n > n_seen ? memchr(first + n_seen, '\n', n - n_seen) : NULL;
        if (line_break != NULL || (reader->at_end && n > 0) || (reader->at_end && is_too_long)) {
            size_t found = line_break != NULL ? (size_t)(line_break - first) : n;
            is_too_long |= found > CLI_MAX_LINE_BYTES;
            *line = is_too_long ? NULL : first;
            *length = is_too_long ? 0 : found;
            reader->line_is_whole = line_break != NULL;
            reader->start += found + (line_break != NULL);
            reader->offset += (int64_t)found + (line_break != NULL);
            return 1;
        }
        if (reader->at_end)
            return 0;
        n_seen = n;
        if (n > CLI_MAX_LINE_BYTES) { /* its beginning is not needed any more */
            is_too_long = 1;
            reader->offset += (int64_t)n;
            reader->start = reader->end = 0;
            n_seen = 0;
        }
        if (read_more(reader) != 0)
            return -1;
    }
}
