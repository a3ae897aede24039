/* chat_render.c - a request's JSON to a prompt: messages prepared, variables set, the template rendered. */
#include <string.h>

#include "base/alloc.h"
#include "model/chat/chat_messages.h"
#include "model/chat/chat_template.h"
#include "model/json.h"
#include "model/json_alloc.h"

/* What a call is given, parsed. */
typedef struct request {
    json_t *messages, *tools, *kwargs; /* tools and kwargs may be NULL */
    json_t *variables;
} request;

static mb_status parse(const char *messages_json, const mb_chat_options *options, request *r) {
    MB_TRY(mb_json_parse("messages", messages_json, strlen(messages_json), &r->messages));
    if (options->tools_json)
        MB_TRY(mb_json_parse("tools", options->tools_json, strlen(options->tools_json), &r->tools));
    if (options->kwargs_json)
        MB_TRY(mb_json_parse("chat_template_kwargs", options->kwargs_json, strlen(options->kwargs_json),
                             &r->kwargs));
    return MB_OK;
}

static mb_status check_tools(const mb_chat_variant *variant, const json_t *tools) {
    if (!tools || json_is_null(tools))
        return MB_OK;
    if (!json_is_array(tools))
        return mb_fail(MB_ERR_ARGUMENT, "tools must be a JSON array");
    for (size_t i = 0; i < json_array_size(tools); i++)
        if (!mb_json_is_object(json_array_get(tools, i)))
            return mb_fail(MB_ERR_ARGUMENT, "tools[%zu] is not an object", i);
    if (json_array_size(tools) > 0 && !mb_jinja_mentions(variant->parsed, "tools"))
        return mb_fail(MB_ERR_ARGUMENT,
                       "tools: the chat template would leave them out; describe them in a system message");
    return MB_OK;
}

static mb_status check_kwargs(const json_t *kwargs) {
    static const char *const reserved[] = {"messages", "tools"};
    if (!kwargs || json_is_null(kwargs))
        return MB_OK;
    if (!mb_json_is_object(kwargs))
        return mb_fail(MB_ERR_ARGUMENT, "chat_template_kwargs must be a JSON object");
    for (size_t i = 0; i < sizeof reserved / sizeof *reserved; i++)
        if (json_object_get(kwargs, reserved[i]))
            return mb_fail(MB_ERR_ARGUMENT, "chat_template_kwargs must not set \"%s\"", reserved[i]);
    return MB_OK;
}

/* The object of variables. jansson's failures are noted by its allocator. */
static void set_variables(const mb_chat_options *options, request *r) {
    r->variables = json_object();
    json_object_set(r->variables, "messages", r->messages);
    json_object_set_new(r->variables, "tools", r->tools ? json_incref(r->tools) : json_null());
    json_object_set_new(r->variables, "documents", json_null());
    json_object_set_new(r->variables, "add_generation_prompt", json_boolean(options->add_generation_prompt));
    if (options->enable_thinking >= 0)
        json_object_set_new(r->variables, "enable_thinking", json_boolean(options->enable_thinking));
}

static mb_status prepare(const mb_chat_variant *variant, const mb_chat_options *options, request *r) {
    MB_TRY(check_tools(variant, r->tools));
    MB_TRY(check_kwargs(r->kwargs));
    mb_json_enter();
    mb_status status = mb_chat_messages_prepare(variant, r->messages);
    if (status == MB_OK)
        set_variables(options, r);
    return mb_json_leave() ? mb_fail(MB_ERR_MEMORY, "no memory for the variables of the chat template")
                           : status;
}

mb_status mb_chat_variant_render(const mb_chat_variant *variant, const json_t *tokens,
                                 const json_t *variables, const json_t *kwargs, char **text) {
    const json_t *const all[] = {tokens, variables, kwargs};
    return mb_jinja_render(variant->parsed, all, kwargs ? 3 : 2, text);
}

static mb_status render(const mb_chat_variant *variant, const json_t *tokens, const mb_chat_options *options,
                        request *r, char **text) {
    MB_TRY(prepare(variant, options, r));
    MB_TRY(mb_chat_variant_render(variant, tokens, r->variables, r->kwargs, text));
    mb_status status = mb_chat_messages_check_printed(r->messages, *text);
    if (status != MB_OK) {
        mb_free(*text);
        *text = NULL;
    }
    return status;
}

mb_status mb_chat_template_render(const mb_chat_template *template, const char *messages_json,
                                  const mb_chat_options *options, char **text) {
    *text = NULL;
    if (!template)
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "the checkpoint has no chat template; choose one with --chat-template: a file, or "
                       "qwen3, qwen3-instruct, qwen3-thinking or chatml");
    request r = {0};
    mb_status status = parse(messages_json, options, &r);
    if (status == MB_OK) {
        int has_tools = r.tools && json_is_array(r.tools) && template->with_tools.parsed;
        status =
            render(has_tools ? &template->with_tools : &template->usual, template->tokens, options, &r, text);
    }
    mb_json_free(r.variables);
    mb_json_free(r.kwargs);
    mb_json_free(r.tools);
    mb_json_free(r.messages);
    return status;
}
