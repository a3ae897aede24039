/* utf8_stream.c - bytes in, whole characters out. */
#include <string.h>

#include "model/tokenizer/tokenizer.h"
#include "model/tokenizer/utf8.h"

static size_t put_replacement(char *out) {
    memcpy(out, "\xEF\xBF\xBD", 3);
    return 3;
}

/* Whether `byte` can follow the held bytes, which are the start of a character. */
static int continues(const mb_utf8_stream *stream, unsigned char byte) {
    mb_utf8_range range;
    mb_utf8_lead(stream->held[0], &range);
    if (stream->n_held > 1)
        range = (mb_utf8_range){0x80, 0xBF};
    return byte >= range.low && byte <= range.high;
}

size_t mb_utf8_stream_push(mb_utf8_stream *stream, const char *bytes, size_t n_bytes, char *out) {
    size_t n = 0;
    for (size_t i = 0; i < n_bytes; i++) {
        unsigned char byte = (unsigned char)bytes[i];
        if (stream->n_held > 0 && !continues(stream, byte)) {
            n += put_replacement(out + n);
            stream->n_held = 0;
        }
        mb_utf8_range second;
        if (stream->n_held == 0 && mb_utf8_lead(byte, &second) == 0) {
            n += put_replacement(out + n);
            continue;
        }
        stream->held[stream->n_held++] = byte;
        if (stream->n_held == mb_utf8_lead(stream->held[0], &second)) {
            memcpy(out + n, stream->held, (size_t)stream->n_held);
            n += (size_t)stream->n_held;
            stream->n_held = 0;
        }
    }
    return n;
}

size_t mb_utf8_stream_finish(mb_utf8_stream *stream, char *out) {
    int cut_short = stream->n_held > 0;
    stream->n_held = 0;
    return cut_short ? put_replacement(out) : 0;
}
