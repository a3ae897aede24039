/*
 * parser.h - the inside of mb_answer_parser, shared by its three parts.
 *
 *   answer.c     the text outside of calls: which part of the answer a byte belongs to, and the tags
 *   call_json.c  a call as a JSON object
 *   call_xml.c   a call as <function=...>
 *
 * Everything goes byte by byte, so how the text was divided cannot matter. A part that meets a byte which may
 * begin a tag holds it back until the tag is complete or is none.
 */
#ifndef MB_MODEL_ANSWER_PARSER_H
#define MB_MODEL_ANSWER_PARSER_H

#include <jansson.h>

#include "base/random.h"
#include "model/answer/json_scan.h"
#include "model/text_buffer.h"
#include "moebius/answer.h"

/* When a call ends, its part says in n_back how many bytes at the end of the text belong to what follows. */
typedef enum mb_call_progress {
    MB_CALL_GOES_ON,
    MB_CALL_COMPLETE,
    MB_CALL_BAD,
} mb_call_progress;

typedef struct mb_call_json {
    int state;
    mb_json_scan scan;
    int key; /* which of the object's keys the value belongs to */
    int has_name, has_arguments;
    mb_text_buffer token; /* the string that is read: a key, the name, arguments before the name */
    mb_text_buffer held;  /* arguments that came before the name */
    int n_newline;        /* bytes held back of "\n</tool_call>" within a string */
    int n_close;          /* bytes seen of </tool_call> in place of the last brace */
} mb_call_json;

enum { MB_XML_WINDOW = 96 };

typedef struct mb_call_xml {
    int state;
    int n_parameters;
    const json_t *function; /* the tool, NULL when unknown */
    mb_text_buffer keys;    /* "\nKEY\nKEY\n": parameters so far */
    mb_text_buffer token; /* the name or key that is read, or a value that is not yet known to be a string */
    unsigned types;       /* of the value */
    int is_first;         /* no byte of the value was read */
    int is_string;        /* the value is a string, and its text goes out as it comes */
    char window[MB_XML_WINDOW]; /* what may be the value's end */
    int n_window;
} mb_call_xml;

typedef struct mb_queued_event {
    mb_answer_event_kind kind;
    size_t text, n_bytes; /* offset in `out` */
    size_t id, name;      /* offsets; MB_ANSWER_CALL only */
    int32_t call;
} mb_queued_event;

struct mb_answer_parser {
    mb_answer_options options; /* tools_json is not kept */
    json_t *tools;             /* NULL: none */
    mb_status failed;          /* or MB_OK */
    int is_finished, is_stopped;
    uint64_t id_state;

    /* Events that wait to be read. */
    mb_queued_event *events;
    size_t n_events, i_event, events_capacity;
    mb_text_buffer out;

    /* Outside of calls. */
    int state;          /* of answer.c */
    int in_reasoning;   /* the text, or the text around the call, is reasoning */
    int at_start;       /* only white space so far */
    int is_fresh;       /* no text since the start, </think> or a call, but white space */
    int has_reasoned;   /* reasoning was opened */
    int has_content;    /* content went out */
    int has_reasoning;  /* reasoning went out */
    mb_text_buffer gap; /* white space held back */
    char window[16];    /* what may be a tag */
    int n_window;

    /* The call. */
    int in_block;       /* <tool_call> opened it */
    mb_text_buffer raw; /* the block's text since its tag or since the last complete call in it */
    int has_begun;      /* MB_ANSWER_CALL went out, MB_ANSWER_CALL_END did not */
    int32_t n_calls;    /* begun */
    char *name;         /* of the call; mb_free */
    mb_call_json json;
    mb_call_xml xml;
};

/* ---- answer.c, for the other parts -------------------------------------------------------------------- */

/* The call has a name. A call in reasoning, or without <tool_call>, needs a tool of the request: 0 if there
 * is none. */
int mb_answer_name_call(mb_answer_parser *parser, const char *name, size_t n_bytes);
/* Arguments of the named call; the first ones begin it. */
void mb_answer_arguments(mb_answer_parser *parser, const char *text, size_t n_bytes);
/* Notes that memory ran out; the call in progress of the public API returns it. */
void mb_answer_fail(mb_answer_parser *parser, mb_status status);

/* How text stands with a list of tags, NULL at its end. *which: the tag that is complete. */
typedef enum mb_tag_match { MB_TAG_NONE, MB_TAG_PART, MB_TAG_WHOLE } mb_tag_match;
mb_tag_match mb_tag_find(const char *const *tags, const char *text, int n_bytes, int *which);

/* ---- The two forms ------------------------------------------------------------------------------------ */

void mb_call_json_begin(mb_answer_parser *parser); /* { was read */
mb_call_progress mb_call_json_byte(mb_answer_parser *parser, char byte, int *n_back);
/* Whether an answer that ends here ends with a call: only brackets are missing. */
int mb_call_json_is_complete(const mb_answer_parser *parser);
void mb_call_json_free(mb_call_json *call);

void mb_call_xml_begin(mb_answer_parser *parser); /* <function= was read */
mb_call_progress mb_call_xml_byte(mb_answer_parser *parser, char byte, int *n_back);
void mb_call_xml_free(mb_call_xml *call);

/* One byte of a string as JSON spells it, into room for 8 bytes; returns how many. */
size_t mb_json_escape_byte(char byte, char *to);

#endif
