/* utf8.h - checks UTF-8, and reads well-formed text character by character. */
#ifndef MB_MODEL_UTF8_H
#define MB_MODEL_UTF8_H

#include <stddef.h>
#include <stdint.h>

/* Length of the well-formed text at the start; n_bytes when all of the text is well-formed (Unicode 15,
 * table 3-7). */
size_t mb_utf8_valid_prefix(const char *text, size_t n_bytes);

/* Whether every byte is below 0x80. */
int mb_utf8_is_ascii(const char *text, size_t n_bytes);

/* The character at `text`, which must be well-formed; *length gets its 1 to 4 bytes. */
static inline uint32_t mb_utf8_decode(const char *text, size_t *length) {
    const unsigned char *p = (const unsigned char *)text;
    if (p[0] < 0x80) {
        *length = 1;
        return p[0];
    }
    if (p[0] < 0xE0) {
        *length = 2;
        return (p[0] & 0x1Fu) << 6 | (p[1] & 0x3Fu);
    }
    if (p[0] < 0xF0) {
        *length = 3;
        return (p[0] & 0x0Fu) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu);
    }
    *length = 4;
    return (p[0] & 0x07u) << 18 | (p[1] & 0x3Fu) << 12 | (p[2] & 0x3Fu) << 6 | (p[3] & 0x3Fu);
}

/* Length of the character that starts with this byte of well-formed text. */
static inline size_t mb_utf8_length(char first) {
    unsigned char byte = (unsigned char)first;
    return byte < 0x80 ? 1 : byte < 0xE0 ? 2 : byte < 0xF0 ? 3 : 4;
}

/* Writes the character's 1 to 4 bytes. */
static inline void mb_utf8_encode(uint32_t character, char *out) {
    unsigned char *p = (unsigned char *)out;
    if (character < 0x80) {
        p[0] = (unsigned char)character;
    } else if (character < 0x800) {
        p[0] = (unsigned char)(0xC0 | character >> 6);
        p[1] = (unsigned char)(0x80 | (character & 0x3F));
    } else if (character < 0x10000) {
        p[0] = (unsigned char)(0xE0 | character >> 12);
        p[1] = (unsigned char)(0x80 | (character >> 6 & 0x3F));
        p[2] = (unsigned char)(0x80 | (character & 0x3F));
    } else {
        p[0] = (unsigned char)(0xF0 | character >> 18);
        p[1] = (unsigned char)(0x80 | (character >> 12 & 0x3F));
        p[2] = (unsigned char)(0x80 | (character >> 6 & 0x3F));
        p[3] = (unsigned char)(0x80 | (character & 0x3F));
    }
}

/* The bytes that may follow. */
typedef struct mb_utf8_range {
    unsigned char low, high;
} mb_utf8_range;

/* Length of the sequence that starts with this byte, 0 when none does, and what the second byte may be. */
int mb_utf8_lead(unsigned char first, mb_utf8_range *second);

#endif
