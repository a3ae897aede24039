/* line_reader.h - a file's lines, one after the other, of any length up to a limit. */
#ifndef MB_CLI_LINE_READER_H
#define MB_CLI_LINE_READER_H

#include <stddef.h>
#include <stdint.h>

enum { CLI_MAX_LINE_BYTES = 64 << 20 };

typedef struct cli_line_reader {
    const char *path;
    int fd;
    char *bytes; /* what was read and not handed out: [start, end) */
    size_t start, end, capacity;
    int at_end;
    int64_t offset;    /* in the file, of the next line */
    int line_is_whole; /* the line that was handed out ended with a line break */
} cli_line_reader;

/* The file is borrowed and read from where it stands. */
void cli_line_reader_open(cli_line_reader *reader, const char *path, int fd);
void cli_line_reader_close(cli_line_reader *reader);

/* 1: *line [*length], without its line break, valid until the next call; it is NULL when the line is longer
 * than CLI_MAX_LINE_BYTES. 0: the file has ended. -1: a failure that was reported. */
int cli_line_reader_next(cli_line_reader *reader, const char **line, size_t *length);

#endif
