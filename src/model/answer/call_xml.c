/* call_xml.c - a call as Qwen3-Coder writes it: <function=NAME>, <parameter=KEY>, VALUE. */
#include <string.h>
#include <strings.h>

#include "base/alloc.h"
#include "model/answer/parser.h"
#include "model/answer/tools.h"

enum {
    NAME,  /* after <function= */
    BODY,  /* between parameters */
    KEY,   /* after <parameter= */
    VALUE, /* after <parameter=KEY> */
};

enum { PARAMETER_OPEN, FUNCTION_CLOSE, CALL_CLOSE };
static const char *const body_tags[] = {"<parameter=", "</function>", "</tool_call>", NULL};
static const char *const value_tags[] = {"</parameter>", NULL};

enum { MAX_NAME = 256 };

void mb_call_xml_begin(mb_answer_parser *parser) {
    mb_call_xml *call = &parser->xml;
    call->state = NAME;
    call->n_parameters = call->n_window = 0;
    call->token.n_bytes = call->keys.n_bytes = 0;
}

void mb_call_xml_free(mb_call_xml *call) {
    mb_free(call->token.bytes);
    mb_free(call->keys.bytes);
}

/* ---- Values ------------------------------------------------------------------------------------------- */

static void put(mb_answer_parser *parser, const char *text) {
    mb_answer_arguments(parser, text, strlen(text));
}

static void put_escaped(mb_answer_parser *parser, const char *text, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i++) {
        char escape[8];
        mb_answer_arguments(parser, escape, mb_json_escape_byte(text[i], escape));
    }
}

static int begins_like(const char *text, size_t n_bytes, const char *word) {
    return n_bytes <= strlen(word) && strncasecmp(text, word, n_bytes) == 0;
}

/* Whether what came of the value decides that it is a string. */
static int must_be_string(const mb_call_xml *call) {
    const char *text = call->token.bytes;
    size_t n = call->token.n_bytes;
    while (n > 0 && mb_json_is_space(*text))
        text++, n--;
    while (n > 0 && mb_json_is_space(text[n - 1]))
        n--;
    if (call->types == MB_TYPE_STRING || n == 0)
        return call->types == MB_TYPE_STRING;
    if (call->types == 0)
        return *text != '{' && *text != '[';
    if (call->types == (MB_TYPE_STRING | MB_TYPE_NULL))
        return !begins_like(text, n, "null") && !begins_like(text, n, "none");
    return 0;
}

static void begin_string(mb_answer_parser *parser) {
    mb_call_xml *call = &parser->xml;
    call->is_string = 1;
    put(parser, "\"");
    put_escaped(parser, call->token.bytes, call->token.n_bytes);
}

/* true, false and null in JSON's spelling, for a text that spells one of them in whatever case. */
static const char *word_of(const char *text, size_t n_bytes, unsigned types) {
    if (types & MB_TYPE_BOOLEAN && n_bytes == 4 && strncasecmp(text, "true", 4) == 0)
        return "true";
    if (types & MB_TYPE_BOOLEAN && n_bytes == 5 && strncasecmp(text, "false", 5) == 0)
        return "false";
    if (types & MB_TYPE_NULL && n_bytes == 4 &&
        (strncasecmp(text, "null", 4) == 0 || strncasecmp(text, "none", 4) == 0))
        return "null";
    return NULL;
}

static unsigned type_of(char first, const char *text, size_t n_bytes) {
    switch (first) {
    case '{':
        return MB_TYPE_OBJECT;
    case '[':
        return MB_TYPE_ARRAY;
    case '"':
        return MB_TYPE_STRING;
    case 't':
    case 'f':
        return MB_TYPE_BOOLEAN;
    case 'n':
        return MB_TYPE_NULL;
    default: /* 5.0 is an integer, too */
        return memchr(text, '.', n_bytes) || memchr(text, 'e', n_bytes) || memchr(text, 'E', n_bytes)
                   ? MB_TYPE_NUMBER
                   : MB_TYPE_INTEGER;
    }
}

/* The value is complete and was held back: as JSON if the types allow that, else as a string. */
static void put_held(mb_answer_parser *parser) {
    mb_call_xml *call = &parser->xml;
    const char *text = call->token.bytes ? call->token.bytes : "";
    size_t n = call->token.n_bytes;
    while (n > 0 && mb_json_is_space(*text))
        text++, n--;
    while (n > 0 && mb_json_is_space(text[n - 1]))
        n--;
    const char *word = word_of(text, n, call->types);
    if (word) {
        put(parser, word);
        return;
    }
    char first;
    int is_json = mb_json_scan_whole(text, n, MB_SCAN_DEPTH - 1, &first);
    unsigned type = type_of(first, text, n);
    int is_text = call->types == 0
                      ? !(type & (MB_TYPE_OBJECT | MB_TYPE_ARRAY))
                      : call->types & MB_TYPE_STRING && (type == MB_TYPE_STRING || !(type & call->types));
    if (is_json && !is_text) {
        mb_answer_arguments(parser, text, n);
        return;
    }
    begin_string(parser);
    put(parser, "\"");
}

static int begin_value(mb_answer_parser *parser) {
    mb_call_xml *call = &parser->xml;
    mb_text_buffer *key = &call->token, *keys = &call->keys;
    if (key->n_bytes == 0)
        return 0;
    if (keys->n_bytes == 0)
        mb_text_append(keys, "\n", 1);
    size_t before = keys->n_bytes - 1; /* of the new line before the key */
    mb_text_append(keys, key->bytes, key->n_bytes);
    mb_text_append(keys, "\n", 2); /* zero-terminated */
    if (keys->out_of_memory)
        return 1;
    keys->n_bytes--;
    const char *entry = keys->bytes + before;
    if (strstr(keys->bytes, entry) != entry)
        return 0; /* a second value */
    put(parser, call->n_parameters++ > 0 ? ", \"" : "{\"");
    put_escaped(parser, key->bytes, key->n_bytes);
    put(parser, "\": ");
    mb_text_append(key, "", 1);
    call->types = key->out_of_memory ? 0 : mb_tools_types(call->function, key->bytes);
    key->n_bytes = 0;
    call->state = VALUE;
    call->is_first = 1;
    call->is_string = 0;
    if (must_be_string(call))
        begin_string(parser);
    return 1;
}

/* A byte that is not part of the value's end. */
static void value_byte(mb_answer_parser *parser, char byte) {
    mb_call_xml *call = &parser->xml;
    int is_first = call->is_first;
    call->is_first = 0;
    if (is_first && byte == '\n')
        return;
    if (call->is_string) {
        put_escaped(parser, &byte, 1);
        return;
    }
    mb_text_append(&call->token, &byte, 1);
    if (must_be_string(call))
        begin_string(parser);
}

static void end_value(mb_answer_parser *parser) {
    if (parser->xml.is_string)
        put(parser, "\"");
    else
        put_held(parser);
    parser->xml.token.n_bytes = 0;
}

/* Whether the window is, or can become, the end of a value: a new line perhaps, </parameter>, white space,
 * and the next parameter or the function's end. A value that speaks of </parameter> goes on. */
static mb_tag_match match_end(const char *window, int n, int *next) {
    int i = window[0] == '\n', which;
    if (i == n)
        return MB_TAG_PART;
    int n_tag = n - i < 12 ? n - i : 12; /* strlen("</parameter>") */
    mb_tag_match match = mb_tag_find(value_tags, window + i, n_tag, &which);
    if (match != MB_TAG_WHOLE)
        return match;
    for (i += n_tag; i < n && mb_json_is_space(window[i]); i++)
        ;
    if (i == n)
        return n < MB_XML_WINDOW - 16 ? MB_TAG_PART : MB_TAG_NONE;
    return mb_tag_find(body_tags, window + i, n - i, next);
}

/* ---- Bytes -------------------------------------------------------------------------------------------- */

static mb_call_progress take_body_tag(mb_answer_parser *parser, int tag, int *n_back) {
    mb_call_xml *call = &parser->xml;
    call->n_window = 0;
    if (tag == PARAMETER_OPEN) {
        call->state = KEY;
        call->token.n_bytes = 0;
        return MB_CALL_GOES_ON;
    }
    put(parser, call->n_parameters > 0 ? "}" : "{}");
    *n_back = tag == CALL_CLOSE ? (int)strlen(body_tags[CALL_CLOSE]) : 0;
    return MB_CALL_COMPLETE;
}

static mb_call_progress window_byte(mb_answer_parser *parser, char byte, int *n_back) {
    mb_call_xml *call = &parser->xml;
    int tag;
    call->window[call->n_window++] = byte;
    if (call->state == BODY) {
        mb_tag_match match = mb_tag_find(body_tags, call->window, call->n_window, &tag);
        *n_back = call->n_window;
        if (match == MB_TAG_PART)
            return MB_CALL_GOES_ON;
        return match == MB_TAG_WHOLE ? take_body_tag(parser, tag, n_back) : MB_CALL_BAD;
    }
    while (call->n_window > 0) {
        mb_tag_match match = match_end(call->window, call->n_window, &tag);
        if (match == MB_TAG_PART)
            break;
        if (match == MB_TAG_WHOLE) {
            end_value(parser);
            call->state = BODY;
            return take_body_tag(parser, tag, n_back);
        }
        value_byte(parser, call->window[0]);
        memmove(call->window, call->window + 1, (size_t)--call->n_window);
    }
    return MB_CALL_GOES_ON;
}

/* The name of the function or a parameter, up to >. */
static mb_call_progress word_byte(mb_answer_parser *parser, char byte) {
    mb_call_xml *call = &parser->xml;
    if (byte != '>') {
        mb_text_append(&call->token, &byte, 1);
        return (unsigned char)byte < ' ' || byte == '<' || call->token.n_bytes > MAX_NAME ? MB_CALL_BAD
                                                                                          : MB_CALL_GOES_ON;
    }
    if (call->state == KEY)
        return begin_value(parser) ? MB_CALL_GOES_ON : MB_CALL_BAD;
    if (call->token.n_bytes == 0 || !mb_answer_name_call(parser, call->token.bytes, call->token.n_bytes))
        return MB_CALL_BAD;
    call->function = parser->name ? mb_tools_find(parser->tools, parser->name) : NULL;
    call->state = BODY;
    return MB_CALL_GOES_ON;
}

mb_call_progress mb_call_xml_byte(mb_answer_parser *parser, char byte, int *n_back) {
    mb_call_xml *call = &parser->xml;
    *n_back = 1;
    switch (call->state) {
    case NAME:
    case KEY:
        return word_byte(parser, byte);
    case BODY:
        if (call->n_window == 0 && mb_json_is_space(byte))
            return MB_CALL_GOES_ON;
        return call->n_window > 0 || byte == '<' ? window_byte(parser, byte, n_back) : MB_CALL_BAD;
    default:
        if (call->n_window > 0 || byte == '<' || byte == '\n')
            return window_byte(parser, byte, n_back);
        value_byte(parser, byte);
        return MB_CALL_GOES_ON;
    }
}
