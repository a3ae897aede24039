#include "grammar/utf8_ranges.h"

int mb_utf8_encode(uint32_t c, uint8_t bytes[4]) {
    if (c < 0x80) {
        bytes[0] = (uint8_t)c;
        return 1;
    }
    int n = c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (int i = n - 1; i > 0; i--, c >>= 6)
        bytes[i] = (uint8_t)(0x80 | (c & 0x3f));
    bytes[0] = (uint8_t)((0xf00 >> n & 0xff) | c);
    return n;
}

uint32_t mb_utf8_decode(const char *text, size_t *at) {
    uint8_t lead = (uint8_t)text[(*at)++];
    if (lead < 0x80)
        return lead;
    int n = lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    uint32_t c = lead & (0xffu >> (n + 1));
    for (int i = 1; i < n; i++)
        c = c << 6 | ((uint8_t)text[(*at)++] & 0x3f);
    return c;
}

/* Cuts at the borders of encoded lengths, then so that below some byte all continuations are possible. */
int mb_utf8_next_range(uint32_t *first, uint32_t last, mb_utf8_range *range) {
    static const uint32_t longest[] = {0x7f, 0x7ff, 0xffff, 0x10ffff};
    if (*first > last)
        return 0;
    uint32_t begin = *first, end = last;
    for (int i = 0; i < 4; i++)
        if (begin <= longest[i]) {
            end = end < longest[i] ? end : longest[i];
            break;
        }
    for (int bits = 18; bits >= 6; bits -= 6) {
        uint32_t low = (1u << bits) - 1;
        if (begin < 0x80 || (begin & ~low) == (end & ~low))
            continue;
        if (begin & low)
            end = begin | low;
        else if ((end & low) != low)
            end = (end & ~low) - 1;
    }
    range->n_bytes = mb_utf8_encode(begin, range->first);
    mb_utf8_encode(end, range->last);
    *first = end + 1;
    return 1;
}

size_t mb_utf8_first_bad(const char *text, size_t n_bytes) {
    const uint8_t *bytes = (const uint8_t *)text;
    for (size_t i = 0; i < n_bytes;) {
        uint8_t lead = bytes[i];
        size_t n = lead < 0x80   ? 1
                   : lead < 0xc2 ? 0
                   : lead < 0xe0 ? 2
                   : lead < 0xf0 ? 3
                   : lead < 0xf5 ? 4
                                 : 0;
        if (n == 0 || n > n_bytes - i)
            return i;
        for (size_t k = 1; k < n; k++)
            if ((bytes[i + k] & 0xc0) != 0x80)
                return i;
        uint8_t second = n > 1 ? bytes[i + 1] : 0;
        if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second > 0x9f) ||
            (lead == 0xf0 && second < 0x90) || (lead == 0xf4 && second > 0x8f))
            return i;
        i += n;
    }
    return n_bytes;
}
