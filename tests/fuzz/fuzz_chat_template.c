/* Any bytes as a conversation, as tools, as a template and as tokenizer_config.json. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "model/chat/chat_template.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

static char *copy_text(const uint8_t *data, size_t n_bytes) {
    char *text = malloc(n_bytes + 1);
    memcpy(text, data, n_bytes);
    text[n_bytes] = '\0';
    return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    if (n_bytes < 1)
        return 0;
    /* The first byte chooses; what follows is messages, and behind a byte 0x1E the tools. */
    const uint8_t *separator = memchr(data + 1, 0x1E, n_bytes - 1);
    size_t n_messages = separator ? (size_t)(separator - data - 1) : n_bytes - 1;
    char *messages = copy_text(data + 1, n_messages);
    char *tools = separator ? copy_text(separator + 1, n_bytes - n_messages - 2) : NULL;
    mb_chat_options options = {
        .add_generation_prompt = data[0] & 1, .enable_thinking = data[0] & 2, .tools_json = tools};
    static const mb_chat_template all[] = {MB_CHAT_QWEN3, MB_CHAT_QWEN3_INSTRUCT, MB_CHAT_QWEN3_THINKING,
                                           MB_CHAT_CHATML};
    mb_chat_template which = all[(data[0] >> 2) % 4];
    char *text;
    if (mb_chat_template_render(which, messages, &options, &text) == MB_OK)
        mb_free(text);
    else if (text || !mb_last_error()[0])
        abort();
    mb_chat_template found;
    mb_chat_template_find("fuzz", messages, n_messages, data[0] & 1, &found);
    free(messages);
    free(tools);
    return 0;
}
