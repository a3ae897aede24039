/*
 * Any bytes as a chat template and a conversation: parsed, probed and rendered. Behind a byte 0x1E come
 * messages, behind another one tools, behind a third one chat_template_kwargs. Without messages a small
 * conversation with a call of a tool is rendered.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "model/chat/chat_template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static const char conversation[] =
    "[{\"role\": \"system\", \"content\": \"Be b\\u00e9.\"}, {\"role\": \"user\", \"content\": \" Hi\\n\"}, "
    "{\"role\": \"assistant\", \"content\": \"<think>a</think>b\", \"tool_calls\": [{\"function\": {\"name\": "
    "\"f\", \"arguments\": {\"x\": [1, 2.5, null, true, {\"y\": \"z\"}]}}}]}, {\"role\": \"tool\", "
    "\"content\": \"1\"}]";

/* The part that ends at the next separator, in memory of its own so that a sanitizer sees its end.
 * NULL: there is none. */
static char *take_part(const uint8_t **at, const uint8_t *end) {
    if (!*at)
        return NULL;
    const uint8_t *separator = *at < end ? memchr(*at, 0x1E, (size_t)(end - *at)) : NULL;
    size_t n = (size_t)((separator ? separator : end) - *at);
    char *part = malloc(n + 1);
    memcpy(part, *at, n);
    part[n] = '\0';
    *at = separator ? separator + 1 : NULL;
    return part;
}

static void render(const mb_chat_template *template, const char *messages, char *const *rest) {
    mb_chat_options options = {.add_generation_prompt = 1, .tools_json = rest[0], .kwargs_json = rest[1]};
    char *text;
    if (mb_chat_template_render(template, messages, &options, &text) == MB_OK)
        mb_free(text);
    else if (text || !mb_last_error()[0])
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    const uint8_t *at = data, *end = data + n_bytes;
    char *parts[4];
    for (int i = 0; i < 4; i++)
        parts[i] = take_part(&at, end);
    mb_chat_template *template;
    mb_status status = mb_chat_template_open_text("fuzz", parts[0], strlen(parts[0]), NULL, &template);
    if (status == MB_OK)
        render(template, parts[1] ? parts[1] : conversation, parts + 2);
    else if (template || !mb_last_error()[0])
        abort();
    mb_chat_template_close(template);
    for (int i = 0; i < 4; i++)
        free(parts[i]);
    return 0;
}
