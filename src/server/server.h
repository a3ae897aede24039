/*
 * server.h - a model behind HTTP: the OpenAI API, metrics, and a page.
 *
 * Threads: libmicrohttpd's (a few, each polls many connections and only moves bytes), workers (parse, render,
 * tokenize, submit), one that steps, one that delivers (engine.h), and the watch (watch.h). None of these
 * waits for a client. docs/architecture.md says why.
 */
#ifndef MB_SERVER_SERVER_H
#define MB_SERVER_SERVER_H

#include "moebius/answer.h"
#include "moebius/moebius.h"

typedef struct mb_server mb_server;

typedef struct server_settings {
    const char *host;          /* an IPv4 or IPv6 address, or a name of one */
    int port;                  /* 0: the system chooses one */
    const char *const *names;  /* of the model, at least one; the last is NULL. "*": every name is served */
    const char *const *keys;   /* each opens the server; the last is NULL. NULL: no key is asked for */
    mb_answer_formats formats; /* of reasoning and calls, see mb_answer_formats_of */
    int64_t max_model_len;     /* 0: as the model and the KV cache allow */
    int32_t max_queue;         /* requests beyond those that can run at once */
    double receive_timeout_s;  /* for the headers, and again for the body */
    int access_log;            /* a line on stderr for each request */
    mb_session_options session;
} server_settings;

/* The model must live longer. Names and keys are copied. Signals should be blocked before. */
mb_status server_open(mb_model *model, const server_settings *settings, mb_server **opened);
int server_port(const mb_server *server);
void server_memory(const mb_server *server, mb_session_memory *memory);
/* From now on new requests are refused, and /ready says no. */
void server_begin_shutdown(mb_server *server);
/* 1 when no request is in progress. */
int server_is_idle(mb_server *server);
/* Ends what runs: streams get their last event. */
void server_end_requests(mb_server *server);
void server_close(mb_server *server); /* NULL allowed; cuts what is left */

#endif
