/*
 * chat_render.c - conversations rendered as the templates of the Qwen3 family do, and as plain ChatML does.
 *
 * Qwen's three templates share everything but the assistant's turn and the opening of the answer:
 *
 *   qwen3            the turns after the last question keep their thinking; enable_thinking = 0 opens the
 *                    answer with an empty think block
 *   qwen3-thinking   the same turns; the answer always opens with <think>
 *   qwen3-instruct   turns as they are
 *
 * chatml has turns as they are, of any role, and knows no tools.
 */
#include <string.h>

#include "base/alloc.h"
#include "model/chat/chat_template.h"
#include "model/json.h"
#include "model/json_values.h"
#include "model/text_buffer.h"

enum { SHOWN = 64 };

/* A piece of a text that somebody else owns. */
typedef struct span {
    const char *text;
    size_t n;
} span;

static span span_of(const json_t *string) {
    return string ? (span){json_string_value(string), json_string_length(string)} : (span){"", 0};
}

static span literal(const char *text) {
    return (span){text, strlen(text)};
}

static int starts_with(span s, const char *text) {
    size_t n = strlen(text);
    return s.n >= n && memcmp(s.text, text, n) == 0;
}

static int ends_with(span s, const char *text) {
    size_t n = strlen(text);
    return s.n >= n && memcmp(s.text + s.n - n, text, n) == 0;
}

static span strip_newlines_left(span s) {
    while (s.n > 0 && s.text[0] == '\n')
        s = (span){s.text + 1, s.n - 1};
    return s;
}

static span strip_newlines_right(span s) {
    while (s.n > 0 && s.text[s.n - 1] == '\n')
        s.n--;
    return s;
}

/* Where `text` occurs first, or last; -1 when `text` does not occur. */
static ptrdiff_t find_text(span s, const char *text, int last) {
    size_t n = strlen(text);
    ptrdiff_t found = -1;
    for (size_t i = 0; i + n <= s.n; i++) {
        if (s.text[i] != text[0] || memcmp(s.text + i, text, n) != 0)
            continue;
        found = (ptrdiff_t)i;
        if (!last)
            break;
    }
    return found;
}

/* ---- Messages checked --------------------------------------------------------------------------------- */

typedef enum role { SYSTEM, USER, ASSISTANT, TOOL } role;

typedef struct message {
    role role;       /* with Qwen's templates */
    span role_text;  /* with ChatML */
    int has_content; /* 1: a string, perhaps an empty one; 0: null or absent, which renders as nothing */
    span content;
    const json_t *reasoning;  /* a string, or NULL */
    const json_t *tool_calls; /* an array, or NULL */
} message;

typedef struct rendering {
    mb_chat_template which;
    const mb_chat_options *options;
    const json_t *tools; /* an array that is not empty, or NULL */
    message *messages;
    size_t n;
    mb_text_buffer out;
} rendering;

static mb_status read_role(const json_t *item, size_t i, int is_chatml, message *m) {
    static const char *const roles[] = {
        [SYSTEM] = "system", [USER] = "user", [ASSISTANT] = "assistant", [TOOL] = "tool"};
    const json_t *value = json_object_get(item, "role");
    if (is_chatml && json_is_string(value)) {
        m->role_text = span_of(value);
        return MB_OK;
    }
    for (size_t k = 0; k < sizeof roles / sizeof *roles; k++)
        if (json_is_string(value) && strcmp(json_string_value(value), roles[k]) == 0) {
            m->role = (role)k;
            return MB_OK;
        }
    char shown[SHOWN];
    return mb_fail(MB_ERR_ARGUMENT, "messages[%zu].role is %s; it must be %s", i,
                   value ? mb_json_describe(shown, sizeof shown, value) : "missing",
                   is_chatml ? "a string" : "system, user, assistant or tool");
}

static mb_status check_tool_call(const json_t *call, size_t i, size_t k) {
    const json_t *function = json_object_get(call, "function");
    if (json_is_object(function) && json_object_size(function) > 0)
        call = function;
    if (!json_is_object(call) || !json_is_string(json_object_get(call, "name")))
        return mb_fail(MB_ERR_ARGUMENT,
                       "messages[%zu].tool_calls[%zu] has no function with a string \"name\"", i, k);
    if (!json_object_get(call, "arguments"))
        return mb_fail(MB_ERR_ARGUMENT, "messages[%zu].tool_calls[%zu] has no \"arguments\"", i, k);
    return MB_OK;
}

static mb_status read_tool_calls(const json_t *item, size_t i, const json_t **calls) {
    *calls = json_object_get(item, "tool_calls");
    if (json_is_null(*calls))
        *calls = NULL;
    if (*calls && !json_is_array(*calls))
        return mb_fail(MB_ERR_ARGUMENT, "messages[%zu].tool_calls is not an array", i);
    for (size_t k = 0; k < json_array_size(*calls); k++)
        MB_TRY(check_tool_call(json_array_get(*calls, k), i, k));
    return MB_OK;
}

/* The thinking that was given apart from the content, under one of the names that transformers 5 and vLLM
 * know. The first name whose value is not null counts. NULL when there is none, or when the value is no
 * string: the templates take no notice of other values. */
static const json_t *find_reasoning(const json_t *item) {
    static const char *const names[] = {"reasoning_content", "thinking", "reasoning"};
    for (size_t k = 0; k < sizeof names / sizeof *names; k++) {
        const json_t *value = mb_json_present(item, names[k]);
        if (value)
            return json_is_string(value) ? value : NULL;
    }
    return NULL;
}

static mb_status read_message(const json_t *item, size_t i, int is_chatml, message *m) {
    if (!mb_json_is_object(item))
        return mb_fail(MB_ERR_ARGUMENT, "messages[%zu] is not an object", i);
    MB_TRY(read_role(item, i, is_chatml, m));
    const json_t *content = json_object_get(item, "content");
    char shown[SHOWN];
    if (content && !json_is_null(content) && !json_is_string(content))
        return mb_fail(MB_ERR_ARGUMENT,
                       "messages[%zu].content is %s; the template would leave it out, so give one string", i,
                       mb_json_describe(shown, sizeof shown, content));
    m->has_content = json_is_string(content);
    m->content = span_of(m->has_content ? content : NULL);
    if (!m->has_content && (is_chatml || (i == 0 && m->role == SYSTEM)))
        return mb_fail(MB_ERR_ARGUMENT, "messages[%zu].content is missing; %s must have a string", i,
                       is_chatml ? "with this chat template (ChatML) a message" : "a system message");
    m->reasoning = find_reasoning(item);
    MB_TRY(read_tool_calls(item, i, &m->tool_calls));
    if (is_chatml && json_array_size(m->tool_calls) > 0)
        return mb_fail(
            MB_ERR_ARGUMENT,
            "messages[%zu].tool_calls: this chat template (ChatML) would leave them out; write them "
            "into the content",
            i);
    return MB_OK;
}

static mb_status read_messages(rendering *r, const json_t *items) {
    if (!json_is_array(items) || json_array_size(items) == 0)
        return mb_fail(MB_ERR_ARGUMENT, "messages must be a JSON array of at least one message");
    r->n = json_array_size(items);
    r->messages = mb_calloc(r->n, sizeof *r->messages);
    if (!r->messages)
        return mb_fail(MB_ERR_MEMORY, "no memory for %zu messages", r->n);
    for (size_t i = 0; i < r->n; i++)
        MB_TRY(read_message(json_array_get(items, i), i, r->which == MB_CHAT_CHATML, &r->messages[i]));
    return MB_OK;
}

static mb_status read_tools(rendering *r, const json_t *tools) {
    if (!tools || json_is_null(tools))
        return MB_OK;
    if (!json_is_array(tools))
        return mb_fail(MB_ERR_ARGUMENT, "tools must be a JSON array");
    for (size_t i = 0; i < json_array_size(tools); i++)
        if (!mb_json_is_object(json_array_get(tools, i)))
            return mb_fail(MB_ERR_ARGUMENT, "tools[%zu] is not an object", i);
    r->tools = json_array_size(tools) > 0 ? tools : NULL;
    if (r->tools && r->which == MB_CHAT_CHATML)
        return mb_fail(
            MB_ERR_ARGUMENT,
            "tools: this chat template (ChatML) would leave them out; describe them in a system message");
    return MB_OK;
}

/* ---- Rendering ---------------------------------------------------------------------------------------- */

static void put(rendering *r, const char *text) {
    mb_text_append_string(&r->out, text);
}

static void put_span(rendering *r, span s) {
    mb_text_append(&r->out, s.text, s.n);
}

static mb_status put_json(rendering *r, const json_t *value) {
    char *text;
    MB_TRY(mb_json_dump_python(value, &text));
    put(r, text);
    mb_free(text);
    return MB_OK;
}

static mb_status render_opening(rendering *r) {
    const message *first = &r->messages[0];
    if (!r->tools && first->role != SYSTEM)
        return MB_OK;
    put(r, "<|im_start|>system\n");
    if (first->role == SYSTEM)
        put_span(r, first->content);
    if (r->tools) {
        if (first->role == SYSTEM)
            put(r, "\n\n");
        put(r, "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
               "You are provided with function signatures within <tools></tools> XML tags:\n<tools>");
        for (size_t i = 0; i < json_array_size(r->tools); i++) {
            put(r, "\n");
            MB_TRY(put_json(r, json_array_get(r->tools, i)));
        }
        put(r, "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
               "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
               "{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>");
    }
    put(r, "<|im_end|>\n");
    return MB_OK;
}

/* The user's last message that is a question and not the response of a tool in a user's turn. Without such
 * a message, the last message of all. */
static size_t last_question(const rendering *r) {
    for (size_t i = r->n; i-- > 0;) {
        const message *m = &r->messages[i];
        if (m->role == USER && m->has_content &&
            !(starts_with(m->content, "<tool_response>") && ends_with(m->content, "</tool_response>")))
            return i;
    }
    return r->n - 1;
}

/* The thinking of an assistant's message: given apart, or else taken out of *content. */
static span split_thinking(const message *m, span *content) {
    static const char close[] = "</think>", open[] = "<think>";
    if (m->reasoning)
        return span_of(m->reasoning);
    ptrdiff_t first = find_text(*content, close, 0);
    if (first < 0)
        return literal("");
    span thinking = strip_newlines_right((span){content->text, (size_t)first});
    size_t behind = (size_t)find_text(*content, close, 1) + strlen(close);
    *content = strip_newlines_left((span){content->text + behind, content->n - behind});
    ptrdiff_t opening = find_text(thinking, open, 1);
    if (opening >= 0) {
        size_t skipped = (size_t)opening + strlen(open);
        thinking = (span){thinking.text + skipped, thinking.n - skipped};
    }
    return strip_newlines_left(thinking);
}

static mb_status render_tool_calls(rendering *r, const json_t *calls, int after_text) {
    for (size_t i = 0; i < json_array_size(calls); i++) {
        const json_t *call = json_array_get(calls, i), *function = json_object_get(call, "function");
        if (json_is_object(function) && json_object_size(function) > 0)
            call = function;
        const json_t *arguments = json_object_get(call, "arguments");
        if (after_text || i > 0)
            put(r, "\n");
        put(r, "<tool_call>\n{\"name\": \"");
        put_span(r, span_of(json_object_get(call, "name")));
        put(r, "\", \"arguments\": ");
        if (json_is_string(arguments))
            put_span(r, span_of(arguments));
        else
            MB_TRY(put_json(r, arguments));
        put(r, "}\n</tool_call>");
    }
    return MB_OK;
}

static mb_status render_assistant(rendering *r, size_t i, size_t question) {
    const message *m = &r->messages[i];
    span content = m->content;
    put(r, "<|im_start|>assistant\n");
    if (r->which != MB_CHAT_QWEN3_INSTRUCT) {
        span thinking = split_thinking(m, &content);
        if (i > question && (i + 1 == r->n || thinking.n > 0)) {
            put(r, "<think>\n");
            put_span(r, strip_newlines_left(strip_newlines_right(thinking)));
            put(r, "\n</think>\n\n");
            put_span(r, strip_newlines_left(content));
        } else {
            put_span(r, content);
        }
    } else {
        put_span(r, content);
    }
    MB_TRY(render_tool_calls(r, m->tool_calls, content.n > 0));
    put(r, "<|im_end|>\n");
    return MB_OK;
}

/* Responses of tools that follow one another share one turn of the user. */
static void render_tool_response(rendering *r, size_t i) {
    if (i == 0 || r->messages[i - 1].role != TOOL)
        put(r, "<|im_start|>user");
    put(r, "\n<tool_response>\n");
    put_span(r, r->messages[i].content);
    put(r, "\n</tool_response>");
    if (i + 1 == r->n || r->messages[i + 1].role != TOOL)
        put(r, "<|im_end|>\n");
}

static void render_turn(rendering *r, span role_text, span content) {
    put(r, "<|im_start|>");
    put_span(r, role_text);
    put(r, "\n");
    put_span(r, content);
    put(r, "<|im_end|>\n");
}

static mb_status render_qwen(rendering *r) {
    MB_TRY(render_opening(r));
    size_t question = last_question(r);
    for (size_t i = 0; i < r->n; i++) {
        const message *m = &r->messages[i];
        if (m->role == ASSISTANT)
            MB_TRY(render_assistant(r, i, question));
        else if (m->role == TOOL)
            render_tool_response(r, i);
        else if (m->role == USER || i > 0)
            render_turn(r, literal(m->role == USER ? "user" : "system"), m->content);
    }
    return MB_OK;
}

static mb_status render(rendering *r) {
    if (r->which == MB_CHAT_CHATML)
        for (size_t i = 0; i < r->n; i++)
            render_turn(r, r->messages[i].role_text, r->messages[i].content);
    else
        MB_TRY(render_qwen(r));
    if (!r->options->add_generation_prompt)
        return MB_OK;
    put(r, "<|im_start|>assistant\n");
    if (r->which == MB_CHAT_QWEN3_THINKING)
        put(r, "<think>\n");
    else if (r->which == MB_CHAT_QWEN3 && !r->options->enable_thinking)
        put(r, "<think>\n\n</think>\n\n");
    return MB_OK;
}

static mb_status render_parsed(rendering *r, const json_t *messages, const json_t *tools, char **text) {
    MB_TRY(read_messages(r, messages));
    MB_TRY(read_tools(r, tools));
    mb_status status = render(r);
    if (status != MB_OK) {
        mb_free(r->out.bytes);
        return status;
    }
    return mb_text_finish(&r->out, "the rendered conversation", text);
}

mb_status mb_chat_template_render(mb_chat_template which, const char *messages_json,
                                  const mb_chat_options *options, char **text) {
    *text = NULL;
    if (which == MB_CHAT_NONE || which == MB_CHAT_UNKNOWN)
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "the checkpoint %s; choose one with --chat-template NAME: qwen3, qwen3-instruct, "
                       "qwen3-thinking or chatml",
                       which == MB_CHAT_NONE ? "has no chat template"
                                             : "has a chat template that is not known");
    json_t *messages = NULL, *tools = NULL;
    rendering r = {.which = which, .options = options};
    mb_status status = mb_json_parse("messages", messages_json, strlen(messages_json), &messages);
    if (status == MB_OK && options->tools_json)
        status = mb_json_parse("tools", options->tools_json, strlen(options->tools_json), &tools);
    if (status == MB_OK)
        status = render_parsed(&r, messages, tools, text);
    mb_free(r.messages);
    mb_json_free(tools);
    mb_json_free(messages);
    return status;
}
