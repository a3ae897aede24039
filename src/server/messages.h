/* messages.h - Anthropic's API: /v1/messages and /v1/messages/count_tokens. */
#ifndef MB_SERVER_MESSAGES_H
#define MB_SERVER_MESSAGES_H

#include "server/problem.h"

/* {"type":"error","error":{"type":...,"message":...}} */
void server_messages_problem(const server_problem *problem, server_text *out);

#endif
