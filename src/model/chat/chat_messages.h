/* chat_messages.h - a conversation made ready for a template. */
#ifndef MB_MODEL_CHAT_MESSAGES_H
#define MB_MODEL_CHAT_MESSAGES_H

#include "model/chat/chat_template.h"

/*
 * Checks the messages and changes them in place, between mb_json_enter and mb_json_leave, which tells whether
 * memory ran out:
 *
 *   - keys whose value is null are taken out, and reasoning given under one of its names
 *     ("reasoning_content", "thinking", "reasoning") is there as "reasoning_content" and
 *     "thinking", as in transformers 5
 *   - content, role and arguments as chat_template.h says
 *
 * MB_ERR_ARGUMENT: messages[i] is no message of text.
 */
mb_status mb_chat_messages_prepare(const mb_chat_variant *variant, json_t *messages);

/* Whether a message of a role that is none of system, user, assistant and tool is missing in the text. */
mb_status mb_chat_messages_check_printed(const json_t *messages, const char *text);

#endif
