/* utf8_ranges.h - a range of characters as ranges of their UTF-8 bytes. */
#ifndef MB_GRAMMAR_UTF8_RANGES_H
#define MB_GRAMMAR_UTF8_RANGES_H

#include <stddef.h>
#include <stdint.h>

typedef struct mb_utf8_range {
    int n_bytes;
    uint8_t first[4], last[4]; /* every combination of bytes in these ranges is a character of the range */
} mb_utf8_range;

/* Takes the next piece off the front of [*first, last], which has no surrogates; 0 when nothing is left. */
int mb_utf8_next_range(uint32_t *first, uint32_t last, mb_utf8_range *range);

int mb_utf8_encode(uint32_t c, uint8_t bytes[4]); /* returns the number of bytes */
/* The character at text[*at], which is well-formed UTF-8; moves *at behind it. */
uint32_t mb_utf8_decode(const char *text, size_t *at);

/* The first byte that is not part of well-formed UTF-8; n_bytes when all are. */
size_t mb_utf8_first_bad(const char *text, size_t n_bytes);

#endif
