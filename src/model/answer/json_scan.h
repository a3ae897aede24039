/* json_scan.h - checks JSON byte by byte: is what came so far the beginning of a value, and where does the
 * value end? */
#ifndef MB_MODEL_ANSWER_JSON_SCAN_H
#define MB_MODEL_ANSWER_JSON_SCAN_H

#include <stddef.h>
#include <stdint.h>

enum { MB_SCAN_DEPTH = 100 }; /* as mb_json_parse */

typedef enum mb_scan_result {
    MB_SCAN_MORE, /* the value goes on */
    MB_SCAN_DONE, /* the byte was the value's last */
    MB_SCAN_PAST, /* the value, a number, ended before the byte */
    MB_SCAN_BAD,  /* no JSON value begins like this */
} mb_scan_result;

typedef struct mb_json_scan {
    uint8_t state;        /* of json_scan.c */
    uint8_t hex_left;     /* digits of \u that are missing */
    uint8_t is_key;       /* the string is a key */
    int16_t depth;        /* arrays and objects that are open */
    int16_t max_depth;    /* MB_SCAN_DEPTH; may be set after mb_json_scan_init, to 128 at most */
    const char *rest;     /* of true, false or null */
    uint64_t is_array[2]; /* a bit for each open level */
} mb_json_scan;

void mb_json_scan_init(mb_json_scan *scan);
mb_scan_result mb_json_scan_byte(mb_json_scan *scan, char byte);
/* Within a string, where an unescaped control character is an error of the writer that a reader can mend. */
int mb_json_scan_in_string(const mb_json_scan *scan);
/* The text is one JSON value, nested at most max_depth deep, with white space around it. *first: its first
 * byte, which tells its type. */
int mb_json_scan_whole(const char *text, size_t n_bytes, int max_depth, char *first);

int mb_json_is_space(char byte);

#endif
