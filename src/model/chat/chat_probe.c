/*
 * chat_probe.c - what a template does with the forms that a message can have.
 *
 * Clients send contents as strings or in parts, and arguments of calls as JSON in a string. Each template
 * takes some of these, prints nothing for others, or prints Python's notation of them. The template is the
 * only one who knows, so small conversations are rendered and looked at.
 */
#include <string.h>

#include "base/alloc.h"
#include "model/chat/chat_template.h"
#include "model/json.h"

/* Words that no template has of its own. */
#define NEEDLE "xqzprobe"

/* Whether the conversation renders to a text that has `wanted`, and not `unwanted` (NULL: nothing). */
static mb_status prints(const mb_chat_variant *variant, const json_t *tokens, const char *variables_json,
                        const char *wanted, const char *unwanted, int *is_printed) {
    json_t *variables;
    char *text;
    *is_printed = 0;
    MB_TRY(mb_json_parse("probe", variables_json, strlen(variables_json), &variables));
    mb_status status = mb_chat_variant_render(variant, tokens, variables, NULL, &text);
    mb_json_free(variables);
    if (status != MB_OK)
        return status == MB_ERR_MEMORY ? status : MB_OK;
    *is_printed = strstr(text, wanted) && !(unwanted && strstr(text, unwanted));
    mb_free(text);
    return MB_OK;
}

#define VARIABLES(messages, tools)                                                                          \
    "{\"add_generation_prompt\": true, \"documents\": null, \"tools\": " tools ", \"messages\": [" messages \
    "]}"
#define USER(content) "{\"role\": \"user\", \"content\": " content "}"
#define TOOL                                                                                             \
    "[{\"type\": \"function\", \"function\": {\"name\": \"f\", \"description\": \"d\", \"parameters\": " \
    "{\"type\": \"object\", \"properties\": {\"" NEEDLE "\": {\"type\": \"string\", \"description\": "   \
    "\"e\"}}, \"required\": []}}}]"
#define CALL(arguments)                                                                                 \
    USER("\"a\"")                                                                                       \
    ", {\"role\": \"assistant\", \"content\": \"\", \"tool_calls\": [{\"type\": \"function\", \"id\": " \
    "\"callabcde\", \"function\": {\"name\": \"f\", \"arguments\": " arguments "}}]}"

mb_status mb_chat_variant_probe(mb_chat_variant *variant, const json_t *tokens) {
    static const char string[] = VARIABLES(USER("\"" NEEDLE "\""), "null");
    static const char parts[] = VARIABLES(USER("[{\"type\": \"text\", \"text\": \"" NEEDLE "\"}]"), "null");
    static const char developer[] =
        VARIABLES("{\"role\": \"developer\", \"content\": \"" NEEDLE "\"}, " USER("\"a\""), "null");
    static const char arguments[] = VARIABLES(CALL("\"{\\\"" NEEDLE "\\\": 1}\""), TOOL);
    MB_TRY(prints(variant, tokens, string, NEEDLE, NULL, &variant->prints_strings));
    MB_TRY(prints(variant, tokens, parts, NEEDLE, "'" NEEDLE, &variant->prints_parts));
    MB_TRY(prints(variant, tokens, developer, NEEDLE, NULL, &variant->prints_developers));
    return prints(variant, tokens, arguments, "{\"" NEEDLE "\": 1}", NULL, &variant->prints_json_strings);
}
