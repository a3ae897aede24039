/* answer_formats.c - how a model writes reasoning and calls, found out from its chat template and
 * tokenizer. */
#include <string.h>

#include "base/alloc.h"
#include "base/status.h"
#include "moebius/answer.h"

/* Renders the conversation; *text is NULL when the template refuses it. */
static mb_status render(const mb_model *model, const char *messages, const char *tools, int opens_answer,
                        char **text) {
    mb_chat_options options;
    mb_chat_options_init(&options);
    options.add_generation_prompt = opens_answer;
    options.tools_json = tools;
    mb_status status = mb_chat_render(model, messages, &options, text);
    return status == MB_ERR_MEMORY ? status : MB_OK;
}

static mb_status find_tools(const mb_model *model, mb_answer_formats *formats) {
    char *text;
    MB_TRY(render(model,
                  "[{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"\", "
                  "\"tool_calls\": [{\"id\": \"call_0\", \"type\": \"function\", \"function\": {\"name\": "
                  "\"probe\", \"arguments\": {\"key\": \"value\"}}}]}]",
                  "[{\"type\": \"function\", \"function\": {\"name\": \"probe\", \"description\": \"b\", "
                  "\"parameters\": {\"type\": \"object\", \"properties\": {\"key\": {\"type\": \"string\", "
                  "\"description\": \"c\"}}, \"required\": [\"key\"]}}}]",
                  0, &text));
    if (text && strstr(text, "<function=probe>"))
        formats->tools = MB_TOOLS_XML;
    else if (text && strstr(text, "<tool_call>"))
        formats->tools = MB_TOOLS_JSON;
    mb_free_text(text);
    return MB_OK;
}

static mb_status find_reasoning(const mb_model *model, mb_answer_formats *formats) {
    for (int opens_answer = 0; opens_answer < 2; opens_answer++) {
        char *text;
        MB_TRY(render(model,
                      opens_answer ? "[{\"role\": \"user\", \"content\": \"a\"}]"
                                   : "[{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", "
                                     "\"content\": \"b\", \"reasoning_content\": \"c\"}]",
                      NULL, opens_answer, &text));
        if (text && strstr(text, "<think>"))
            formats->reasoning = MB_REASONING_THINK;
        mb_free_text(text);
    }
    return MB_OK;
}

static int is_special(const mb_model *model, const char *tag) {
    int32_t id;
    const char *bytes;
    size_t n;
    int special = 0;
    return mb_tokenize(model, tag, strlen(tag), 1, &id, 1, &n) == MB_OK && n == 1 &&
           mb_token_bytes(model, id, &bytes, &n, &special) == MB_OK && special;
}

mb_status mb_answer_formats_of(const mb_model *model, mb_answer_formats *formats) {
    MB_TRY(mb_need(formats, "mb_answer_formats_of: formats"));
    *formats = (mb_answer_formats){0};
    MB_TRY(mb_need(model, "mb_answer_formats_of: model"));
    static const char *const tags[] = {"<think>", "</think>", "<tool_call>", "</tool_call>"};
    for (size_t i = 0; i < sizeof tags / sizeof *tags; i++)
        formats->tags_are_special |= is_special(model, tags[i]);
    MB_TRY(find_tools(model, formats));
    return find_reasoning(model, formats);
}

mb_status mb_answer_formats_by_name(const char *reasoning, const char *tools, mb_answer_formats *formats) {
    MB_TRY(mb_need(formats, "mb_answer_formats_by_name: formats"));
    mb_answer_formats named = *formats;
    if (reasoning) {
        if (strcmp(reasoning, "none") == 0)
            named.reasoning = MB_REASONING_NONE;
        else if (strcmp(reasoning, "qwen3") == 0 || strcmp(reasoning, "deepseek_r1") == 0)
            named.reasoning = MB_REASONING_THINK;
        else
            return mb_fail(MB_ERR_NOT_FOUND,
                           "reasoning parser \"%s\" is not known; choose qwen3, deepseek_r1 or none",
                           reasoning);
    }
    if (tools) {
        if (strcmp(tools, "none") == 0)
            named.tools = MB_TOOLS_NONE;
        else if (strcmp(tools, "hermes") == 0)
            named.tools = MB_TOOLS_JSON;
        else if (strcmp(tools, "qwen3_coder") == 0 || strcmp(tools, "qwen3_xml") == 0)
            named.tools = MB_TOOLS_XML;
        else
            return mb_fail(
                MB_ERR_NOT_FOUND,
                "tool-call parser \"%s\" is not known; choose hermes, qwen3_coder, qwen3_xml or none", tools);
    }
    *formats = named;
    return MB_OK;
}
