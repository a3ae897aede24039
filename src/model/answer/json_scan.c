#include "model/answer/json_scan.h"

#include <string.h>

enum {
    VALUE,         /* a value begins */
    FIRST_ITEM,    /* after [ */
    FIRST_KEY,     /* after { */
    KEY,           /* after , in an object */
    COLON,         /* after a key */
    AFTER,         /* after a value within an array or object */
    STRING,        /* in a string */
    ESCAPE,        /* after a backslash */
    HEX,           /* in \uXXXX */
    LITERAL,       /* in true, false, null */
    MINUS,         /* numbers: after - */
    ZERO,          /* after a leading 0 */
    INTEGER,       /* in the digits before the point */
    POINT,         /* after the point */
    FRACTION,      /* in the digits after the point */
    EXPONENT,      /* after e */
    EXPONENT_SIGN, /* after the exponent's sign */
    EXPONENT_DIGITS,
    ENDED,
};

void mb_json_scan_init(mb_json_scan *scan) {
    memset(scan, 0, sizeof *scan);
    scan->max_depth = MB_SCAN_DEPTH;
}

int mb_json_is_space(char byte) {
    return byte == ' ' || byte == '\n' || byte == '\t' || byte == '\r';
}

int mb_json_scan_in_string(const mb_json_scan *scan) {
    return scan->state == STRING;
}

static int is_digit(char byte) {
    return byte >= '0' && byte <= '9';
}

static int in_array(const mb_json_scan *scan) {
    int level = scan->depth - 1;
    return (int)(scan->is_array[level / 64] >> (level % 64) & 1);
}

static mb_scan_result open_level(mb_json_scan *scan, int array) {
    if (scan->depth == scan->max_depth)
        return MB_SCAN_BAD;
    int level = scan->depth++;
    uint64_t bit = (uint64_t)1 << (level % 64);
    if (array)
        scan->is_array[level / 64] |= bit;
    else
        scan->is_array[level / 64] &= ~bit;
    scan->state = array ? FIRST_ITEM : FIRST_KEY;
    return MB_SCAN_MORE;
}

/* A value is complete, and its last byte was consumed. */
static mb_scan_result close_value(mb_json_scan *scan) {
    scan->state = scan->depth > 0 ? AFTER : ENDED;
    return scan->depth > 0 ? MB_SCAN_MORE : MB_SCAN_DONE;
}

static mb_scan_result close_level(mb_json_scan *scan, int array) {
    if (in_array(scan) != array)
        return MB_SCAN_BAD;
    scan->depth--;
    return close_value(scan);
}

static mb_scan_result go(mb_json_scan *scan, int state) {
    scan->state = (uint8_t)state;
    return MB_SCAN_MORE;
}

static mb_scan_result begin_literal(mb_json_scan *scan, const char *rest) {
    scan->rest = rest;
    return go(scan, LITERAL);
}

static mb_scan_result begin_string(mb_json_scan *scan, int is_key) {
    scan->is_key = (uint8_t)is_key;
    return go(scan, STRING);
}

static mb_scan_result begin_value(mb_json_scan *scan, char byte) {
    switch (byte) {
    case '{':
        return open_level(scan, 0);
    case '[':
        return open_level(scan, 1);
    case '"':
        return begin_string(scan, 0);
    case '-':
        return go(scan, MINUS);
    case '0':
        return go(scan, ZERO);
    case 't':
        return begin_literal(scan, "rue");
    case 'f':
        return begin_literal(scan, "alse");
    case 'n':
        return begin_literal(scan, "ull");
    default:
        return is_digit(byte) ? go(scan, INTEGER) : MB_SCAN_BAD;
    }
}

static mb_scan_result string_byte(mb_json_scan *scan, char byte) {
    if (byte == '\\')
        return go(scan, ESCAPE);
    if (byte != '"')
        return (unsigned char)byte < ' ' ? MB_SCAN_BAD : MB_SCAN_MORE;
    return scan->is_key ? go(scan, COLON) : close_value(scan);
}

static mb_scan_result escape_byte(mb_json_scan *scan, char byte) {
    if (byte == 'u') {
        scan->hex_left = 4;
        return go(scan, HEX);
    }
    return byte && strchr("\"\\/bfnrt", byte) ? go(scan, STRING) : MB_SCAN_BAD;
}

static mb_scan_result hex_byte(mb_json_scan *scan, char byte) {
    if (!is_digit(byte) && !(byte >= 'a' && byte <= 'f') && !(byte >= 'A' && byte <= 'F'))
        return MB_SCAN_BAD;
    return --scan->hex_left ? MB_SCAN_MORE : go(scan, STRING);
}

static mb_scan_result literal_byte(mb_json_scan *scan, char byte) {
    if (byte != *scan->rest)
        return MB_SCAN_BAD;
    return *++scan->rest ? MB_SCAN_MORE : close_value(scan);
}

static mb_scan_result after_byte(mb_json_scan *scan, char byte) {
    if (byte == ',')
        return go(scan, in_array(scan) ? VALUE : KEY);
    if (byte == ']' || byte == '}')
        return close_level(scan, byte == ']');
    return mb_json_is_space(byte) ? MB_SCAN_MORE : MB_SCAN_BAD;
}

/* The number cannot go on with this byte, so it ended before. */
static mb_scan_result number_end(mb_json_scan *scan, char byte) {
    if (close_value(scan) == MB_SCAN_DONE)
        return MB_SCAN_PAST;
    return after_byte(scan, byte);
}

static mb_scan_result number_byte(mb_json_scan *scan, char byte) {
    int digit = is_digit(byte), state = scan->state;
    switch (state) {
    case MINUS:
        return digit ? go(scan, byte == '0' ? ZERO : INTEGER) : MB_SCAN_BAD;
    case ZERO:
    case INTEGER:
        if (digit)
            return state == INTEGER ? MB_SCAN_MORE : MB_SCAN_BAD;
        if (byte == '.')
            return go(scan, POINT);
        break;
    case POINT:
        return digit ? go(scan, FRACTION) : MB_SCAN_BAD;
    case FRACTION:
        if (digit)
            return MB_SCAN_MORE;
        break;
    case EXPONENT:
        if (byte == '+' || byte == '-')
            return go(scan, EXPONENT_SIGN);
        return digit ? go(scan, EXPONENT_DIGITS) : MB_SCAN_BAD;
    case EXPONENT_SIGN:
        return digit ? go(scan, EXPONENT_DIGITS) : MB_SCAN_BAD;
    default: /* EXPONENT_DIGITS */
        return digit ? MB_SCAN_MORE : number_end(scan, byte);
    }
    if (byte == 'e' || byte == 'E')
        return go(scan, EXPONENT);
    return number_end(scan, byte);
}

mb_scan_result mb_json_scan_byte(mb_json_scan *scan, char byte) {
    switch (scan->state) {
    case STRING:
        return string_byte(scan, byte);
    case ESCAPE:
        return escape_byte(scan, byte);
    case HEX:
        return hex_byte(scan, byte);
    case LITERAL:
        return literal_byte(scan, byte);
    case AFTER:
        return after_byte(scan, byte);
    case ENDED:
        return MB_SCAN_BAD;
    case VALUE:
    case FIRST_ITEM:
        if (mb_json_is_space(byte))
            return MB_SCAN_MORE;
        return scan->state == FIRST_ITEM && byte == ']' ? close_level(scan, 1) : begin_value(scan, byte);
    case FIRST_KEY:
    case KEY:
        if (mb_json_is_space(byte))
            return MB_SCAN_MORE;
        if (scan->state == FIRST_KEY && byte == '}')
            return close_level(scan, 0);
        return byte == '"' ? begin_string(scan, 1) : MB_SCAN_BAD;
    case COLON:
        if (mb_json_is_space(byte))
            return MB_SCAN_MORE;
        return byte == ':' ? go(scan, VALUE) : MB_SCAN_BAD;
    default:
        return number_byte(scan, byte);
    }
}

int mb_json_scan_whole(const char *text, size_t n_bytes, int max_depth, char *first) {
    mb_json_scan scan;
    mb_json_scan_init(&scan);
    scan.max_depth = (int16_t)max_depth;
    size_t i = 0;
    while (i < n_bytes && mb_json_is_space(text[i]))
        i++;
    *first = i < n_bytes ? text[i] : '\0';
    while (n_bytes > i && mb_json_is_space(text[n_bytes - 1]))
        n_bytes--;
    mb_scan_result result = MB_SCAN_MORE;
    for (; i < n_bytes && result == MB_SCAN_MORE; i++)
        result = mb_json_scan_byte(&scan, text[i]);
    if (i < n_bytes)
        return 0;
    /* The end of the text ends a number. */
    return result == MB_SCAN_DONE ||
           (result == MB_SCAN_MORE && mb_json_scan_byte(&scan, ' ') == MB_SCAN_PAST);
}
