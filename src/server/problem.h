/*
 * problem.h - why a request is refused: the HTTP status, and the fields of OpenAI's error object.
 */
#ifndef MB_SERVER_PROBLEM_H
#define MB_SERVER_PROBLEM_H

#include <stddef.h>

#include "server/text.h"

typedef struct server_problem {
    int status;        /* HTTP; 0: there is no problem */
    int retry_after_s; /* > 0: goes into Retry-After */
    char field[96];    /* the request's field that is wrong; "": none */
    char message[640];
} server_problem;

/* Records a problem. Returns -1, so that readers write: return server_refuse(...). field may be NULL. A
 * second problem does not replace the first. */
__attribute__((format(printf, 4, 5))) int server_refuse(server_problem *problem, int status,
                                                        const char *field, const char *format, ...);

/* {"error":{"message":...,"type":...,"param":...,"code":...}} */
void server_problem_write(const server_problem *problem, server_text *text);

#endif
