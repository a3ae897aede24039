/* read_chat.c - POST /v1/chat/completions: what a chat wants. */
#include <stdio.h>

#include "server/conversation.h"
#include "server/format.h"
#include "server/json_read.h"

static const char chat_fields[] =
    "messages max_completion_tokens top_logprobs tools tool_choice parallel_tool_calls chat_template_kwargs "
    "response_format structured_outputs guided_json guided_regex guided_choice guided_json_object guided_grammar "
    "add_generation_prompt continue_final_message modalities reasoning_effort verbosity "
    "include_reasoning";

static int read_conversation(const server_reading *reading, const json_t *body, server_generation *generation,
                             server_problem *problem) {
    server_conversation conversation;
    const json_t *messages = NULL;
    int continue_message = 0, include_reasoning = 1;
    server_conversation_init(&conversation);
    mb_chat_options *options = &conversation.options;
    if (server_json_array(body, "messages", problem, &messages) != 0 ||
        server_json_array(body, "tools", problem, &conversation.tools) != 0 ||
        server_json_bool(body, "parallel_tool_calls", problem, &conversation.parallel_tool_calls) != 0 ||
        server_json_bool(body, "include_reasoning", problem, &include_reasoning) != 0 ||
        server_json_object(body, "chat_template_kwargs", problem, &conversation.kwargs) != 0 ||
        server_json_bool(conversation.kwargs, "enable_thinking", problem, &options->enable_thinking) != 0 ||
        server_json_bool(body, "add_generation_prompt", problem, &options->add_generation_prompt) != 0 ||
        server_json_bool(body, "continue_final_message", problem, &continue_message) != 0)
        return -1;
    if (continue_message)
        return server_refuse(problem, 400, "continue_final_message",
                             "continue_final_message is not supported");
    conversation.messages = json_object_get(body, "messages");
    conversation.tool_choice = server_json_get(body, "tool_choice");
    conversation.drops_reasoning = !include_reasoning;
    return server_read_conversation(reading, &conversation, generation, problem);
}

static int read_logprobs(const json_t *body, server_generation *generation, server_problem *problem) {
    int logprobs = 0;
    int32_t top = -1;
    if (server_json_bool(body, "logprobs", problem, &logprobs) != 0 ||
        server_json_int32(body, "top_logprobs", 0, SERVER_MAX_TOP_LOGPROBS, problem, &top) != 0)
        return -1;
    if (top > 0 && !logprobs)
        return server_refuse(problem, 400, "top_logprobs", "top_logprobs goes with \"logprobs\": true only");
    if (logprobs)
        generation->top_logprobs = top > 0 ? top : 0;
    return 0;
}

int server_read_chat(const server_reading *reading, const json_t *body, server_generation *generation,
                     server_problem *problem) {
    char known[sizeof chat_fields + 1024];
    snprintf(known, sizeof known, "%s %s", server_shared_fields, chat_fields);
    server_json_warn_unknown(body, known);
    if (server_read_model(reading, body, generation, problem) != 0 ||
        server_read_sampling(reading, body, generation, problem) != 0 ||
        server_read_stream(body, generation, problem) != 0 || read_logprobs(body, generation, problem) != 0 ||
        server_json_integer(body, "max_tokens", 1, INT32_MAX, problem, &generation->max_new_tokens) != 0 ||
        server_json_integer(body, "max_completion_tokens", 1, INT32_MAX, problem,
                            &generation->max_new_tokens) != 0 ||
        server_read_format(reading, body, generation, problem) != 0 ||
        read_conversation(reading, body, generation, problem) != 0)
        return -1;
    return server_finish_reading(reading, "messages", generation, problem);
}
