/* tokens.h - POST /tokenize and /detokenize, in vLLM's shapes. */
#ifndef MB_SERVER_TOKENS_H
#define MB_SERVER_TOKENS_H

#include "server/exchange.h"

void server_post_tokenize(server_job *job);
void server_post_detokenize(server_job *job);

#endif
