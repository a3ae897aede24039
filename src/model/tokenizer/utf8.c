#include "model/tokenizer/utf8.h"

#include <string.h>

int mb_utf8_lead(unsigned char first, mb_utf8_range *second) {
    *second = (mb_utf8_range){0x80, 0xBF};
    if (first < 0x80)
        return 1;
    if (first < 0xC2 || first > 0xF4) /* continuation bytes, overlong forms, beyond U+10FFFF */
        return 0;
    if (first < 0xE0)
        return 2;
    if (first == 0xE0)
        second->low = 0xA0; /* smaller characters have shorter forms */
    else if (first == 0xED)
        second->high = 0x9F; /* surrogates */
    else if (first == 0xF0)
        second->low = 0x90;
    else if (first == 0xF4)
        second->high = 0x8F;
    return first < 0xF0 ? 3 : 4;
}

/* Number of ASCII bytes at the start; eight bytes are tested at a time. */
static size_t ascii_prefix(const char *text, size_t n_bytes) {
    size_t i = 0;
    for (uint64_t eight; n_bytes - i >= sizeof eight; i += sizeof eight) {
        memcpy(&eight, text + i, sizeof eight);
        if (eight & UINT64_C(0x8080808080808080))
            break;
    }
    while (i < n_bytes && (unsigned char)text[i] < 0x80)
        i++;
    return i;
}

int mb_utf8_is_ascii(const char *text, size_t n_bytes) {
    return ascii_prefix(text, n_bytes) == n_bytes;
}

size_t mb_utf8_valid_prefix(const char *text, size_t n_bytes) {
    const unsigned char *bytes = (const unsigned char *)text;
    size_t i = ascii_prefix(text, n_bytes);
    while (i < n_bytes) {
        mb_utf8_range range;
        size_t length = (size_t)mb_utf8_lead(bytes[i], &range);
        if (length == 0 || length > n_bytes - i)
            break;
        size_t k = 1;
        for (; k < length && bytes[i + k] >= range.low && bytes[i + k] <= range.high; k++)
            range = (mb_utf8_range){0x80, 0xBF};
        if (k < length)
            break;
        i += length;
        if (length == 1)
            i += ascii_prefix(text + i, n_bytes - i);
    }
    return i;
}
