/*
 * conversation.c - messages and tools become a prompt, for every API that has them.
 */
#include "server/conversation.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "server/format.h"
#include "server/json_read.h"

/* The text of a content part; NULL with a problem when the part is something else. */
static const json_t *part_text(const json_t *part, const char *field, server_problem *problem) {
    const json_t *type = json_object_get(part, "type");
    const char *name = json_string_value(type);
    const json_t *text =
        json_object_get(part, name != NULL && strcmp(name, "refusal") == 0 ? "refusal" : "text");
    if (!json_is_object(part) || (type != NULL && name == NULL)) {
        server_refuse(problem, 400, field,
                      "%s must be a string or a list of {\"type\": \"text\", \"text\": ...}", field);
        return NULL;
    }
    if (name != NULL && strcmp(name, "text") != 0 && strcmp(name, "input_text") != 0 &&
        strcmp(name, "output_text") != 0 && strcmp(name, "refusal") != 0) {
        server_refuse(problem, 400, field, "%s has a part of type \"%.40s\"; the model reads only text",
                      field, name);
        return NULL;
    }
    if (!json_is_string(text)) {
        server_refuse(problem, 400, field, "%s has a part without \"text\"", field);
        return NULL;
    }
    return text;
}

/* Makes one string of a content that is a list of text parts, joined by line breaks as in vLLM. */
static int flatten_content(json_t *message, const char *name, size_t i, server_problem *problem) {
    const json_t *content = json_object_get(message, "content");
    char field[64];
    server_text joined = {0};
    int status = 0;
    if (!json_is_array(content))
        return 0;
    snprintf(field, sizeof field, "%s[%zu].content", name, i);
    for (size_t k = 0; k < json_array_size(content) && status == 0; k++) {
        const json_t *text = part_text(json_array_get(content, k), field, problem);
        if (k > 0)
            server_text_put(&joined, "\n", 1);
        if (text == NULL)
            status = -1;
        else
            server_text_put(&joined, json_string_value(text), json_string_length(text));
    }
    if (status == 0 &&
        (joined.failed || json_object_set_new(message, "content",
                                              json_stringn_nocheck(joined.bytes != NULL ? joined.bytes : "",
                                                                   joined.n_bytes)) != 0))
        status = server_refuse(problem, 503, NULL, "no memory for the messages");
    server_text_free(&joined);
    return status;
}

/* The messages as JSON text, for mb_chat_render. */
static char *dump_messages(const server_conversation *conversation, server_problem *problem) {
    const char *field = conversation->field;
    json_t *messages = conversation->messages;
    if (json_array_size(messages) == 0) {
        server_refuse(problem, 400, field, "%s is missing or empty; send at least one message", field);
        return NULL;
    }
    for (size_t i = 0; i < json_array_size(messages); i++) {
        json_t *message = json_array_get(messages, i);
        if (!json_is_object(message)) {
            server_refuse(problem, 400, field, "%s[%zu] is %s; it must be an object", field, i,
                          server_json_kind(message));
            return NULL;
        }
        if (flatten_content(message, field, i, problem) != 0)
            return NULL;
    }
    return server_json_dump(messages, problem);
}

/* How the answer is divided; after the prompt is known. */
static void set_parsing(const server_reading *reading, const server_conversation *conversation,
                        const char *prompt, server_generation *generation) {
    const mb_answer_formats *formats = &reading->formats;
    mb_answer_options_init(formats, &generation->parse);
    generation->parse.in_reasoning = mb_answer_prompt_opens_reasoning(prompt);
    generation->parse.tools_json = generation->tools_json;
    generation->parse.one_call = !conversation->parallel_tool_calls;
    generation->parses = formats->reasoning != MB_REASONING_NONE || generation->tools_json != NULL;
    generation->grammar_start = mb_answer_grammar_start(formats, prompt);
    generation->drops_reasoning = conversation->drops_reasoning;
    if (formats->tags_are_special && generation->parses)
        generation->skip_special = 0;
}

/* The sentence begins with the name of what is wrong, unless the template itself refuses. */
static int refuse_rendering(const server_conversation *conversation, mb_status rendered,
                            server_problem *problem) {
    static const char *const fields[] = {"chat_template_kwargs", "tools"};
    const char *sentence = mb_last_error(), *field = conversation->field;
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        if (strncmp(sentence, fields[i], strlen(fields[i])) == 0)
            field = fields[i];
    return server_refuse(problem, rendered == MB_ERR_MEMORY ? 503 : 400, field, "%s", sentence);
}

static int render(const server_reading *reading, const server_conversation *conversation,
                  server_generation *generation, server_problem *problem) {
    mb_chat_options options = conversation->options;
    char *text = NULL, *messages = dump_messages(conversation, problem), *kwargs = NULL;
    if (messages == NULL || (conversation->kwargs != NULL &&
                             (kwargs = server_json_dump(conversation->kwargs, problem)) == NULL)) {
        mb_free(messages);
        return -1;
    }
    options.tools_json = generation->tools_json;
    options.kwargs_json = kwargs;
    mb_status rendered = mb_chat_render(reading->model, messages, &options, &text);
    mb_free(messages);
    mb_free(kwargs);
    if (rendered != MB_OK)
        return refuse_rendering(conversation, rendered, problem);
    set_parsing(reading, conversation, text, generation);
    return server_encode_prompt(reading, text, strlen(text), conversation->field, &generation->prompts[0],
                                problem);
}

/* tool_choice. What forbids calls keeps the tools from the template and from the parser; what
 * forces calls is a grammar. */
static int choose_tools(const server_reading *reading, const server_conversation *conversation,
                        server_generation *generation, server_problem *problem) {
    char *choice = NULL, *structure = NULL;
    mb_tool_use use = MB_TOOL_USE_NONE;
    if (conversation->tool_choice != NULL &&
        (choice = server_json_dump(conversation->tool_choice, problem)) == NULL)
        return -1;
    mb_status status = mb_answer_tool_choice(&reading->formats, generation->tools_json, choice,
                                             conversation->parallel_tool_calls, &use, &structure);
    mb_free_text(choice);
    if (status != MB_OK) {
        const char *field = strncmp(mb_last_error(), "tools", 5) == 0 ? "tools" : "tool_choice";
        return server_refuse(problem, status == MB_ERR_MEMORY ? 503 : 400, field, "%s", mb_last_error());
    }
    if (use == MB_TOOL_USE_NONE) {
        mb_free_text(generation->tools_json);
        generation->tools_json = NULL;
    }
    generation->call_was_named = json_object_get(conversation->tool_choice, "function") != NULL;
    int failed = use == MB_TOOL_USE_FORCED && server_set_grammar(reading, MB_GRAMMAR_STRUCTURE, structure,
                                                                 "tool_choice", generation, problem) != 0;
    mb_free_text(structure);
    return failed ? -1 : 0;
}

void server_conversation_init(server_conversation *conversation) {
    *conversation = (server_conversation){.field = "messages", .parallel_tool_calls = 1};
    mb_chat_options_init(&conversation->options);
}

int server_read_conversation(const server_reading *reading, const server_conversation *conversation,
                             server_generation *generation, server_problem *problem) {
    generation->prompts = mb_calloc(1, sizeof *generation->prompts);
    if (generation->prompts == NULL)
        return server_refuse(problem, 503, NULL, "no memory for a prompt");
    generation->n_prompts = 1;
    if (json_array_size(conversation->tools) > 0) {
        generation->tools_json = server_json_dump(conversation->tools, problem);
        if (generation->tools_json == NULL)
            return -1;
    }
    if (choose_tools(reading, conversation, generation, problem) != 0)
        return -1;
    return render(reading, conversation, generation, problem);
}
