/* format.h - what an answer must look like: response_format, vLLM's structured_outputs and guided_ fields,
 * and the calls that tool_choice forces. */
#ifndef MB_SERVER_FORMAT_H
#define MB_SERVER_FORMAT_H

#include "server/generation.h"

/* The fields of `body` that ask for a form. With none of these nothing changes. */
int server_read_format(const server_reading *reading, const json_t *body, server_generation *generation,
                       server_problem *problem);

/* The grammar of a kind and a text; `field` is what asked for it. */
int server_set_grammar(const server_reading *reading, mb_grammar_kind kind, const char *text,
                       const char *field, server_generation *generation, server_problem *problem);

#endif
