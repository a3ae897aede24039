/* answer.c - the text outside of calls, the tags, and the queue of events. */
#include <string.h>
#include <sys/random.h>

#include "base/alloc.h"
#include "model/answer/parser.h"
#include "model/answer/tools.h"
#include "model/json.h"

enum {
    TEXT,  /* outside of calls */
    BLOCK, /* after <tool_call> */
    JSON,  /* in a JSON object */
    XML,   /* in <function=...> */
    AFTER, /* after a complete call whose block is perhaps open */
};

static void byte_in(mb_answer_parser *parser, char byte);

void mb_answer_fail(mb_answer_parser *parser, mb_status status) {
    if (parser->failed == MB_OK)
        parser->failed = status;
}

/* ---- The queue ---------------------------------------------------------------------------------------- */

static mb_queued_event *add_event(mb_answer_parser *parser, mb_answer_event_kind kind) {
    if (mb_grow((void **)&parser->events, &parser->events_capacity, parser->n_events + 1,
                sizeof *parser->events) != 0) {
        mb_answer_fail(parser, mb_fail(MB_ERR_MEMORY, "no memory for the answer's events"));
        return NULL;
    }
    if (parser->n_events > parser->i_event)
        mb_text_append(&parser->out, "", 1); /* ends the text of the event before */
    mb_queued_event *event = &parser->events[parser->n_events++];
    *event = (mb_queued_event){.kind = kind, .text = parser->out.n_bytes, .call = -1};
    return event;
}

static void emit(mb_answer_parser *parser, mb_answer_event_kind kind, const char *text, size_t n_bytes) {
    mb_queued_event *last = parser->n_events > parser->i_event ? &parser->events[parser->n_events - 1] : NULL;
    int joins = last && last->kind == kind && last->text + last->n_bytes == parser->out.n_bytes;
    mb_queued_event *event = joins ? last : add_event(parser, kind);
    if (!event)
        return;
    mb_text_append(&parser->out, text, n_bytes);
    event->n_bytes += n_bytes;
    if (kind != MB_ANSWER_REASONING && kind != MB_ANSWER_CONTENT && kind != MB_ANSWER_STOP)
        event->call = parser->n_calls - 1;
}

static void emit_gap(mb_answer_parser *parser, mb_answer_event_kind kind) {
    if (parser->gap.n_bytes > 0)
        emit(parser, kind, parser->gap.bytes, parser->gap.n_bytes);
    parser->gap.n_bytes = 0;
}

int mb_answer_next(mb_answer_parser *parser, mb_answer_event *event) {
    if (!parser || !event || parser->i_event == parser->n_events)
        return 0;
    const mb_queued_event *queued = &parser->events[parser->i_event++];
    int is_call = queued->kind == MB_ANSWER_CALL;
    *event = (mb_answer_event){.kind = queued->kind,
                               .text = parser->out.bytes + queued->text,
                               .n_bytes = queued->n_bytes,
                               .call = queued->call,
                               .id = is_call ? parser->out.bytes + queued->id : NULL,
                               .name = is_call ? parser->out.bytes + queued->name : NULL};
    return 1;
}

/* ---- Calls -------------------------------------------------------------------------------------------- */

int mb_answer_name_call(mb_answer_parser *parser, const char *name, size_t n_bytes) {
    char *copy = mb_malloc(n_bytes + 1);
    if (!copy) {
        mb_answer_fail(parser, mb_fail(MB_ERR_MEMORY, "no memory for the name of a tool"));
        return 1;
    }
    memcpy(copy, name, n_bytes);
    copy[n_bytes] = '\0';
    mb_free(parser->name);
    parser->name = copy;
    int must_be_known = parser->in_reasoning || !parser->in_block;
    return !must_be_known || mb_tools_find(parser->tools, copy) != NULL;
}

static void begin_call(mb_answer_parser *parser) {
    static const char letters[] = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ";
    char id[30] = "call_";
    for (int i = 5; i < 29; i++)
        id[i] = letters[mb_random(&parser->id_state) % 62];
    mb_queued_event *event = add_event(parser, MB_ANSWER_CALL);
    if (!event)
        return;
    event->call = parser->n_calls++;
    mb_text_append(&parser->out, "", 1);
    event->id = parser->out.n_bytes;
    mb_text_append(&parser->out, id, sizeof id);
    event->name = parser->out.n_bytes;
    mb_text_append_string(&parser->out, parser->name ? parser->name : "");
    parser->has_begun = 1;
}

void mb_answer_arguments(mb_answer_parser *parser, const char *text, size_t n_bytes) {
    if (!parser->has_begun)
        begin_call(parser);
    emit(parser, MB_ANSWER_ARGUMENTS, text, n_bytes);
}

/* ---- Text --------------------------------------------------------------------------------------------- */

static void reasoning_byte(mb_answer_parser *parser, char byte) {
    if (byte == '\n') { /* before </think> it belongs to the tag, as after <think> */
        if (parser->has_reasoning)
            mb_text_append(&parser->gap, &byte, 1);
        return;
    }
    emit_gap(parser, MB_ANSWER_REASONING);
    emit(parser, MB_ANSWER_REASONING, &byte, 1);
    parser->has_reasoning = 1;
    parser->is_fresh = 0;
}

/* White space at the start, after </think> and after a call shows only with text after it. */
static void end_freshness(mb_answer_parser *parser) {
    mb_text_buffer *gap = &parser->gap;
    size_t n = 0;
    if (!parser->has_content && (parser->has_reasoned || parser->n_calls > 0))
        while (n < gap->n_bytes && gap->bytes[n] == '\n')
            n++;
    if (n > 0)
        memmove(gap->bytes, gap->bytes + n, gap->n_bytes - n);
    gap->n_bytes -= n;
    parser->is_fresh = 0;
    parser->has_content = 1;
}

static void content_byte(mb_answer_parser *parser, char byte) {
    if (parser->is_fresh) {
        if (mb_json_is_space(byte)) {
            mb_text_append(&parser->gap, &byte, 1);
            return;
        }
        end_freshness(parser);
    }
    emit_gap(parser, MB_ANSWER_CONTENT);
    if (byte == '\n' && parser->tools) /* perhaps before <tool_call> */
        mb_text_append(&parser->gap, &byte, 1);
    else
        emit(parser, MB_ANSWER_CONTENT, &byte, 1);
}

/* A byte of text that belongs to no tag. */
static void plain_byte(mb_answer_parser *parser, char byte) {
    parser->at_start &= mb_json_is_space(byte);
    if (parser->in_reasoning)
        reasoning_byte(parser, byte);
    else
        content_byte(parser, byte);
}

/* ---- Tags --------------------------------------------------------------------------------------------- */

mb_tag_match mb_tag_find(const char *const *tags, const char *text, int n_bytes, int *which) {
    for (int i = 0; tags[i]; i++)
        if (strncmp(tags[i], text, (size_t)n_bytes) == 0) {
            *which = i;
            return tags[i][n_bytes] ? MB_TAG_PART : MB_TAG_WHOLE;
        }
    return MB_TAG_NONE;
}

enum { THINK_OPEN, THINK_CLOSE, CALL_OPEN, FUNCTION_OPEN, CALL_CLOSE };
static const char *const names[] = {"<think>", "</think>", "<tool_call>", "<function=", "</tool_call>", NULL};

static int at_line_start(const mb_answer_parser *parser) {
    const mb_text_buffer *gap = &parser->gap;
    if (gap->n_bytes > 0)
        return gap->bytes[gap->n_bytes - 1] == '\n';
    return parser->in_reasoning ? !parser->has_reasoning : parser->is_fresh;
}

static int counts_here(const mb_answer_parser *parser, int tag) {
    int reasons = parser->options.formats.reasoning != MB_REASONING_NONE;
    switch (tag) {
    case THINK_OPEN:
        return reasons && parser->at_start && !parser->has_reasoning;
    case THINK_CLOSE:
        return parser->in_reasoning;
    case CALL_OPEN:
        return parser->tools && (!parser->in_reasoning || at_line_start(parser));
    case FUNCTION_OPEN:
        return parser->tools && !parser->in_reasoning && at_line_start(parser);
    default:
        return 0;
    }
}

static void take_tag(mb_answer_parser *parser, int tag) {
    parser->at_start = 0;
    switch (tag) {
    case THINK_OPEN:
    case THINK_CLOSE:
        parser->gap.n_bytes = 0;
        parser->in_reasoning = tag == THINK_OPEN;
        parser->has_reasoned = 1;
        parser->is_fresh = 1;
        break;
    default:
        parser->raw.n_bytes = 0;
        mb_text_append_string(&parser->raw, names[tag]);
        parser->in_block = tag == CALL_OPEN;
        parser->state = tag == CALL_OPEN ? BLOCK : XML;
        if (tag == FUNCTION_OPEN)
            mb_call_xml_begin(parser);
    }
}

static void text_byte(mb_answer_parser *parser, char byte) {
    if (parser->n_window == 0 && byte != '<') {
        plain_byte(parser, byte);
        return;
    }
    parser->window[parser->n_window++] = byte;
    int tag;
    mb_tag_match match = mb_tag_find(names, parser->window, parser->n_window, &tag);
    if (match == MB_TAG_PART)
        return;
    if (match == MB_TAG_WHOLE && counts_here(parser, tag)) {
        parser->n_window = 0;
        take_tag(parser, tag);
        return;
    }
    /* No tag: text, but for a last byte which may begin a tag. */
    int n = parser->n_window, n_text = n > 1 && byte == '<' ? n - 1 : n;
    parser->n_window = n - n_text;
    for (int i = 0; i < n_text; i++)
        plain_byte(parser, parser->window[i]);
    parser->window[0] = byte;
}

/* ---- Blocks ------------------------------------------------------------------------------------------- */

/* Takes the last n bytes off the block's text and reads them anew, in the state that the parser is in now. */
static void read_again(mb_answer_parser *parser, const char *bytes, int n) {
    for (int i = 0; i < n; i++)
        byte_in(parser, bytes[i]);
}

static int take_back(mb_answer_parser *parser, int n_back, char *bytes) {
    size_t n = (size_t)n_back < parser->raw.n_bytes ? (size_t)n_back : parser->raw.n_bytes;
    parser->raw.n_bytes -= n;
    if (n > 0)
        memcpy(bytes, parser->raw.bytes + parser->raw.n_bytes, n);
    return (int)n;
}

/* The block is no call: its text is text, up to where it broke. */
static void block_is_text(mb_answer_parser *parser, int n_back) {
    char back[MB_XML_WINDOW];
    int n = take_back(parser, n_back, back);
    mb_text_buffer text = parser->raw;
    parser->raw = (mb_text_buffer){0};
    if (parser->has_begun)
        emit(parser, MB_ANSWER_BROKEN, "", 0);
    parser->has_begun = 0;
    parser->n_window = 0;
    parser->state = TEXT;
    for (size_t i = 0; i < text.n_bytes; i++)
        plain_byte(parser, text.bytes[i]);
    parser->raw.out_of_memory |= text.out_of_memory;
    mb_free(text.bytes);
    read_again(parser, back, n);
}

static void end_call(mb_answer_parser *parser, int n_back) {
    char back[MB_XML_WINDOW];
    int n = take_back(parser, n_back, back);
    emit(parser, MB_ANSWER_CALL_END, "", 0);
    parser->has_begun = 0;
    parser->raw.n_bytes = 0;
    parser->n_window = 0;
    parser->state = AFTER;
    parser->is_fresh = 1;
    if (!parser->in_reasoning)
        parser->gap.n_bytes = 0;
    if (parser->options.one_call) {
        emit(parser, MB_ANSWER_STOP, "", 0);
        parser->is_stopped = 1;
        return;
    }
    read_again(parser, back, n);
}

static void take_progress(mb_answer_parser *parser, mb_call_progress progress, int n_back) {
    if (progress == MB_CALL_COMPLETE)
        end_call(parser, n_back);
    else if (progress == MB_CALL_BAD)
        block_is_text(parser, n_back);
}

static void begin_json(mb_answer_parser *parser) {
    parser->state = JSON;
    mb_call_json_begin(parser);
}

/* Between <tool_call> and the call, and after a call. */
static void between_byte(mb_answer_parser *parser, char byte) {
    int is_after = parser->state == AFTER;
    if (parser->n_window == 0 && byte != '<') {
        if (byte == '{' && parser->in_block)
            begin_json(parser);
        else if (byte == '}' && is_after && parser->in_block)
            parser->raw.n_bytes = 0; /* one brace too many after a call: some models write it */
        else if (!mb_json_is_space(byte))
            block_is_text(parser, 1);
        return;
    }
    parser->window[parser->n_window++] = byte;
    int tag;
    mb_tag_match match = mb_tag_find(names, parser->window, parser->n_window, &tag);
    if (match == MB_TAG_PART)
        return;
    if (match == MB_TAG_NONE || tag < CALL_OPEN || (!is_after && tag != FUNCTION_OPEN)) {
        block_is_text(parser, parser->n_window);
        return;
    }
    parser->n_window = 0;
    if (tag == FUNCTION_OPEN) {
        parser->state = XML;
        mb_call_xml_begin(parser);
    } else if (tag == CALL_OPEN) {
        parser->state = BLOCK; /* the block before was not closed */
        parser->in_block = 1;
    } else {
        parser->state = TEXT;
        parser->raw.n_bytes = 0;
    }
}

static void byte_in(mb_answer_parser *parser, char byte) {
    if (parser->is_stopped)
        return;
    if (parser->state == TEXT) {
        text_byte(parser, byte);
        return;
    }
    int n_back = 0;
    mb_text_append(&parser->raw, &byte, 1);
    if (parser->state == JSON)
        take_progress(parser, mb_call_json_byte(parser, byte, &n_back), n_back);
    else if (parser->state == XML)
        take_progress(parser, mb_call_xml_byte(parser, byte, &n_back), n_back);
    else
        between_byte(parser, byte);
}

/* ---- The interface ------------------------------------------------------------------------------------ */

void mb_answer_options_init(const mb_answer_formats *formats, mb_answer_options *options) {
    *options = (mb_answer_options){0};
    if (formats)
        options->formats = *formats;
}

mb_status mb_answer_open(const mb_answer_options *options, mb_answer_parser **parser) {
    MB_TRY(mb_need(parser, "mb_answer_open: parser"));
    *parser = NULL;
    MB_TRY(mb_need(options, "mb_answer_open: options"));
    mb_answer_parser *opened = mb_calloc(1, sizeof *opened);
    if (!opened)
        return mb_fail(MB_ERR_MEMORY, "no memory for the parser of an answer");
    opened->options = *options;
    opened->options.tools_json = NULL;
    opened->in_reasoning = options->in_reasoning && options->formats.reasoning != MB_REASONING_NONE;
    opened->has_reasoned = opened->in_reasoning;
    opened->at_start = opened->is_fresh = 1;
    opened->id_state = options->id_seed;
    mb_status status = MB_OK;
    if (options->id_seed == 0 &&
        getrandom(&opened->id_state, sizeof opened->id_state, 0) != sizeof opened->id_state)
        status = mb_fail(MB_ERR_IO, "the system has no random numbers for the ids of calls");
    if (status == MB_OK && options->tools_json)
        status = mb_tools_parse(options->tools_json, &opened->tools);
    if (status != MB_OK) {
        mb_answer_close(opened);
        return status;
    }
    if (json_array_size(opened->tools) == 0) {
        mb_json_free(opened->tools);
        opened->tools = NULL;
    }
    *parser = opened;
    return MB_OK;
}

void mb_answer_close(mb_answer_parser *parser) {
    if (!parser)
        return;
    mb_json_free(parser->tools);
    mb_free(parser->events);
    mb_free(parser->out.bytes);
    mb_free(parser->gap.bytes);
    mb_free(parser->raw.bytes);
    mb_free(parser->name);
    mb_call_json_free(&parser->json);
    mb_call_xml_free(&parser->xml);
    mb_free(parser);
}

static mb_status begin_input(mb_answer_parser *parser, const char *function) {
    MB_TRY(mb_need(parser, function));
    if (parser->failed != MB_OK || parser->is_finished)
        return mb_fail(MB_ERR_STATE, "%s: the parser %s; open another one", function,
                       parser->is_finished ? "has finished its answer" : "failed before");
    if (parser->i_event == parser->n_events)
        parser->i_event = parser->n_events = parser->out.n_bytes = 0;
    return MB_OK;
}

static mb_status end_input(mb_answer_parser *parser) {
    mb_text_append(&parser->out, "", 1); /* ends the last event's text */
    if (parser->out.out_of_memory || parser->gap.out_of_memory || parser->raw.out_of_memory ||
        parser->json.token.out_of_memory || parser->json.held.out_of_memory ||
        parser->xml.token.out_of_memory || parser->xml.keys.out_of_memory)
        mb_answer_fail(parser, mb_fail(MB_ERR_MEMORY, "no memory for the parts of an answer"));
    if (parser->failed != MB_OK)
        parser->i_event = parser->n_events = 0;
    return parser->failed;
}

mb_status mb_answer_push(mb_answer_parser *parser, const char *text, size_t n_bytes) {
    MB_TRY(begin_input(parser, "mb_answer_push: parser"));
    if (n_bytes > 0)
        MB_TRY(mb_need(text, "mb_answer_push: text"));
    for (size_t i = 0; i < n_bytes && parser->failed == MB_OK; i++)
        byte_in(parser, text[i]);
    return end_input(parser);
}

/* An end within </tool_call> after a call loses nothing that was said. */
static int is_part_of_close(const mb_answer_parser *parser) {
    return strncmp(names[CALL_CLOSE], parser->window, (size_t)parser->n_window) == 0;
}

static void finish_text(mb_answer_parser *parser) {
    int n = parser->n_window;
    parser->n_window = 0;
    for (int i = 0; i < n; i++)
        plain_byte(parser, parser->window[i]);
    if (!parser->is_fresh || (!parser->has_content && !parser->has_reasoned && parser->n_calls == 0))
        emit_gap(parser, parser->in_reasoning ? MB_ANSWER_REASONING : MB_ANSWER_CONTENT);
}

mb_status mb_answer_finish(mb_answer_parser *parser) {
    MB_TRY(begin_input(parser, "mb_answer_finish: parser"));
    parser->is_finished = 1;
    if (!parser->is_stopped) {
        if (parser->state == JSON && mb_call_json_is_complete(parser))
            end_call(parser, 0);
        else if (parser->state != TEXT && !(parser->state == AFTER && is_part_of_close(parser)))
            block_is_text(parser, 0);
        if (parser->state == TEXT && !parser->is_stopped)
            finish_text(parser);
    }
    return end_input(parser);
}

static int ends_with(const char *prompt, const char *tag) {
    size_t n = prompt ? strlen(prompt) : 0, n_tag = strlen(tag);
    while (n > 0 && mb_json_is_space(prompt[n - 1]))
        n--;
    return n >= n_tag && memcmp(prompt + n - n_tag, tag, n_tag) == 0;
}

int mb_answer_prompt_opens_reasoning(const char *prompt) {
    return ends_with(prompt, names[THINK_OPEN]);
}

mb_grammar_start mb_answer_grammar_start(const mb_answer_formats *formats, const char *prompt) {
    int reasons = formats && formats->reasoning != MB_REASONING_NONE;
    return reasons && !ends_with(prompt, names[THINK_CLOSE]) ? MB_GRAMMAR_AFTER_THINK : MB_GRAMMAR_AT_ONCE;
}
