/* logprobs.h - what a run keeps of the distributions that the engine reports. */
#ifndef MB_SERVER_LOGPROBS_H
#define MB_SERVER_LOGPROBS_H

#include "server/run.h"

/* An mb_logprobs_fn; user is the server_answer. Keeps the most probable tokens, and for a prompt's position
 * the next token's log-probability and rank. */
void server_take_row(void *user, int64_t position, const float *logprobs, int32_t vocab);
void server_rows_free(server_answer *answer);

#endif
