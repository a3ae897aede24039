/* writer.h - the APIs' replies, and what several of them share. */
#ifndef MB_SERVER_WRITER_H
#define MB_SERVER_WRITER_H

#include "server/run.h"

extern const server_writer server_chat_writer, server_completion_writer, server_messages_writer,
    server_responses_writer;

/* "usage":{...} without a comma. */
void server_write_usage(const server_run *run, server_text *out);
/* The last events of OpenAI's streams: a problem as an error object, and [DONE]. */
void server_write_failed_stream(server_run *run, server_text *out);
void server_write_done(server_text *out);

/* All text of one kind among the answer's parts, as a JSON string. */
void server_write_parts(const server_answer *answer, server_part_kind kind, server_text *out);
/* A token's text as a JSON string. Returns its length in characters. */
size_t server_write_token(const server_run *run, int32_t id, server_text *out);
/* {"content":[...]} of the answer's tokens, as the chat API has log-probabilities. */
void server_write_chat_logprobs(const server_answer *answer, server_text *out);
/* [null,{"17":{"logprob":...,"rank":...,"decoded_token":...}},...] of the prompt, as vLLM. */
void server_write_prompt_logprobs(const server_answer *answer, server_text *out);
/* [17,42] */
void server_write_ids(const int32_t *ids, size_t n, server_text *out);
void server_write_token_ids(const server_answer *answer, server_text *out);
/* ,"finish_reason":"..." and ,"stop_reason":"..." */
void server_write_finish(const char *finish, server_text *out);
void server_write_stop_reason(const server_answer *answer, server_text *out);

#endif
