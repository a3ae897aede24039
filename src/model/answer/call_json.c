/* call_json.c - a call as a JSON object: {"name": ..., "arguments": {...}}. */
#include <string.h>

#include "base/alloc.h"
#include "model/answer/parser.h"
#include "model/json.h"

enum {
    FIRST_KEY,        /* after the brace */
    KEY,              /* after a comma */
    IN_KEY,           /* in a key */
    COLON,            /* after a key */
    VALUE,            /* after the colon */
    IN_NAME,          /* in the string of "name" */
    IN_ARGUMENTS,     /* in the object of "arguments", which goes out as it comes */
    IN_HELD,          /* in that object, but the name is not known yet */
    IN_ARGUMENT_TEXT, /* in a string that is the value of "arguments" */
    IN_NULL,          /* in null, the value of "arguments" */
    IN_OTHER,         /* in the value of another key */
    AFTER,            /* after a value */
};

enum { NAME, ARGUMENTS, OTHER };

static const char close_tag[] = "\n</tool_call>";

void mb_call_json_begin(mb_answer_parser *parser) {
    mb_call_json *call = &parser->json;
    call->state = FIRST_KEY;
    call->has_name = call->has_arguments = 0;
    call->token.n_bytes = call->held.n_bytes = 0;
    call->n_newline = call->n_close = 0;
}

void mb_call_json_free(mb_call_json *call) {
    mb_free(call->token.bytes);
    mb_free(call->held.bytes);
}

int mb_call_json_is_complete(const mb_answer_parser *parser) {
    return parser->json.state == AFTER && parser->json.has_name && parser->json.has_arguments;
}

size_t mb_json_escape_byte(char byte, char *to) {
    static const char letters[] = {
        ['\b'] = 'b', ['\f'] = 'f', ['\n'] = 'n', ['\r'] = 'r', ['\t'] = 't', ['"'] = '"', ['\\'] = '\\'};
    static const char digits[] = "0123456789abcdef";
    unsigned char code = (unsigned char)byte;
    if (code < sizeof letters && letters[code]) {
        to[0] = '\\';
        to[1] = letters[code];
        return 2;
    }
    if (code < ' ') {
        memcpy(to, "\\u00", 4);
        to[4] = digits[code >> 4];
        to[5] = digits[code & 15];
        return 6;
    }
    to[0] = byte;
    return 1;
}

/* ---- Values ------------------------------------------------------------------------------------------- */

/* Decodes the string in call->token. *value is NULL when it cannot be: a lone surrogate, \u0000. */
static void decode(mb_answer_parser *parser, json_t **value) {
    mb_status status = mb_json_parse("call", parser->json.token.bytes ? parser->json.token.bytes : "",
                                     parser->json.token.n_bytes, value);
    if (status == MB_ERR_MEMORY)
        mb_answer_fail(parser, status);
}

static int take_key(mb_answer_parser *parser) {
    mb_call_json *call = &parser->json;
    json_t *key;
    decode(parser, &key);
    const char *text = key ? json_string_value(key) : "";
    call->key = strcmp(text, "name") == 0 ? NAME : strcmp(text, "arguments") == 0 ? ARGUMENTS : OTHER;
    call->state = COLON;
    mb_json_free(key);
    return (call->key != NAME || !call->has_name) && (call->key != ARGUMENTS || !call->has_arguments);
}

static int take_name(mb_answer_parser *parser) {
    mb_call_json *call = &parser->json;
    json_t *name;
    decode(parser, &name);
    int is_good = json_string_length(name) > 0 &&
                  mb_answer_name_call(parser, json_string_value(name), json_string_length(name));
    mb_json_free(name);
    call->has_name = 1;
    call->state = AFTER;
    if (is_good && call->has_arguments)
        mb_answer_arguments(parser, call->held.bytes, call->held.n_bytes);
    return is_good;
}

/* The arguments are known as a whole, in call->held. */
static void take_held(mb_answer_parser *parser) {
    mb_call_json *call = &parser->json;
    call->has_arguments = 1;
    call->state = AFTER;
    if (call->has_name)
        mb_answer_arguments(parser, call->held.bytes, call->held.n_bytes);
}

/* Arguments in a string, as the API has them: they must be a JSON object. */
static int take_argument_text(mb_answer_parser *parser) {
    json_t *value;
    char first;
    decode(parser, &value);
    int is_object =
        value &&
        mb_json_scan_whole(json_string_value(value), json_string_length(value), MB_SCAN_DEPTH, &first) &&
        first == '{';
    if (is_object) {
        mb_text_append(&parser->json.held, json_string_value(value), json_string_length(value));
        take_held(parser);
    }
    mb_json_free(value);
    return is_object;
}

static int take_value(mb_answer_parser *parser) {
    mb_call_json *call = &parser->json;
    switch (call->state) {
    case IN_KEY:
        return take_key(parser);
    case IN_NAME:
        return take_name(parser);
    case IN_ARGUMENT_TEXT:
        return take_argument_text(parser);
    case IN_HELD:
        take_held(parser);
        return 1;
    case IN_NULL:
        mb_text_append_string(&call->held, "{}");
        take_held(parser);
        return 1;
    case IN_ARGUMENTS:
        call->has_arguments = 1;
    }
    call->state = AFTER;
    return 1;
}

/* A byte of a value or key, as JSON wants it. */
static mb_call_progress value_byte(mb_answer_parser *parser, char byte, int *n_back) {
    mb_call_json *call = &parser->json;
    mb_scan_result result = mb_json_scan_byte(&call->scan, byte);
    if (result == MB_SCAN_BAD)
        return MB_CALL_BAD;
    switch (call->state) {
    case IN_KEY:
    case IN_NAME:
    case IN_ARGUMENT_TEXT:
        mb_text_append(&call->token, &byte, 1);
        break;
    case IN_HELD:
        mb_text_append(&call->held, &byte, 1);
        break;
    case IN_ARGUMENTS:
        mb_answer_arguments(parser, &byte, 1);
        break;
    }
    if (result == MB_SCAN_MORE)
        return MB_CALL_GOES_ON;
    if (!take_value(parser))
        return MB_CALL_BAD;
    return result == MB_SCAN_PAST ? mb_call_json_byte(parser, byte, n_back) : MB_CALL_GOES_ON;
}

static mb_call_progress begin_value(mb_answer_parser *parser, int state, char byte, int *n_back) {
    mb_call_json *call = &parser->json;
    call->state = state;
    call->token.n_bytes = 0;
    mb_json_scan_init(&call->scan);
    return value_byte(parser, byte, n_back);
}

static mb_call_progress begin_any_value(mb_answer_parser *parser, char byte, int *n_back) {
    mb_call_json *call = &parser->json;
    if (call->key == OTHER)
        return begin_value(parser, IN_OTHER, byte, n_back);
    if (call->key == NAME)
        return byte == '"' ? begin_value(parser, IN_NAME, byte, n_back) : MB_CALL_BAD;
    switch (byte) {
    case '{':
        return begin_value(parser, call->has_name ? IN_ARGUMENTS : IN_HELD, byte, n_back);
    case '"':
        return begin_value(parser, IN_ARGUMENT_TEXT, byte, n_back);
    case 'n':
        return begin_value(parser, IN_NULL, byte, n_back);
    default:
        return MB_CALL_BAD;
    }
}

/* ---- Bytes -------------------------------------------------------------------------------------------- */

/* Strings may have raw control characters in them, which JSON wants escaped. But a raw new line and then
 * </tool_call> is the end of the block: the string was not closed. */
static mb_call_progress string_byte(mb_answer_parser *parser, char byte, int *n_back) {
    mb_call_json *call = &parser->json;
    if (call->n_newline > 0) {
        if (byte == close_tag[call->n_newline]) {
            *n_back = 0; /* the closing tag belongs to the broken block */
            return ++call->n_newline == sizeof close_tag - 1 ? MB_CALL_BAD : MB_CALL_GOES_ON;
        }
        value_byte(parser, '\\', n_back);
        value_byte(parser, 'n', n_back);
        for (int i = 1; i < call->n_newline; i++)
            value_byte(parser, close_tag[i], n_back);
        call->n_newline = 0;
    }
    if (byte == '\n') {
        call->n_newline = 1;
        return MB_CALL_GOES_ON;
    }
    if ((unsigned char)byte >= ' ')
        return value_byte(parser, byte, n_back);
    char escape[8];
    size_t n = mb_json_escape_byte(byte, escape);
    for (size_t i = 0; i < n; i++)
        value_byte(parser, escape[i], n_back);
    return MB_CALL_GOES_ON;
}

/* After a value: the object goes on or ends, or the block ends and the brace is missing. */
static mb_call_progress after_byte(mb_answer_parser *parser, char byte, int *n_back) {
    mb_call_json *call = &parser->json;
    const char *tag = close_tag + 1;
    if (call->n_close > 0 || (byte == '<' && call->has_name && call->has_arguments)) {
        *n_back = ++call->n_close;
        if (byte != tag[call->n_close - 1])
            return MB_CALL_BAD;
        return tag[call->n_close] ? MB_CALL_GOES_ON : MB_CALL_COMPLETE;
    }
    if (mb_json_is_space(byte))
        return MB_CALL_GOES_ON;
    if (byte == ',') {
        call->state = KEY;
        return MB_CALL_GOES_ON;
    }
    if (byte != '}' || !call->has_name)
        return MB_CALL_BAD;
    if (!call->has_arguments)
        mb_answer_arguments(parser, "{}", 2);
    *n_back = 0;
    return MB_CALL_COMPLETE;
}

mb_call_progress mb_call_json_byte(mb_answer_parser *parser, char byte, int *n_back) {
    mb_call_json *call = &parser->json;
    int is_space = mb_json_is_space(byte);
    *n_back = 1;
    switch (call->state) {
    case FIRST_KEY:
    case KEY:
        if (is_space)
            return MB_CALL_GOES_ON;
        return byte == '"' ? begin_value(parser, IN_KEY, byte, n_back) : MB_CALL_BAD;
    case COLON:
        if (byte == ':')
            call->state = VALUE;
        return is_space || byte == ':' ? MB_CALL_GOES_ON : MB_CALL_BAD;
    case VALUE:
        return is_space ? MB_CALL_GOES_ON : begin_any_value(parser, byte, n_back);
    case AFTER:
        return after_byte(parser, byte, n_back);
    default:
        return mb_json_scan_in_string(&call->scan) ? string_byte(parser, byte, n_back)
                                                   : value_byte(parser, byte, n_back);
    }
}
