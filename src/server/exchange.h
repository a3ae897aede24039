/*
 * exchange.h - one request over HTTP, from its headers to the last byte of the reply, and
 * the routes that answer.
 */
#ifndef MB_SERVER_EXCHANGE_H
#define MB_SERVER_EXCHANGE_H

#include <stdatomic.h>

#include "server/engine.h"
#include "server/server.h"
#include "server/watch.h"
#include "server/workers.h"

struct mb_server {
    server_settings settings;
    server_engine engine;
    server_reading reading;
    server_watch *watch;
    server_workers *workers;
    struct MHD_Daemon *daemon;
    int port, has_engine;
    char **names, **keys; /* copies; the last is NULL */
    double opened_at;
    int64_t created; /* Unix time */
    atomic_int is_stopping;
    atomic_int n_exchanges;     /* in progress */
    atomic_size_t n_body_bytes; /* held by exchanges and jobs */
};

/* A request for a worker. The handler puts something into the reply, or hands a run over that will. */
typedef struct server_job {
    server_work work;
    mb_server *server;
    server_reply *reply; /* held */
    char *body;          /* [n_body], mb_malloc, zero-terminated; a handler may take it and set NULL */
    size_t n_body;
    size_t n_reserved; /* counted in the server's n_body_bytes */
    double arrived;
    int key;    /* number of the API key */
    int is_run; /* a run has taken over the request's place */
    const struct server_route *route;
} server_job;

/* Either `get`, which answers at once on the HTTP thread, or `post`, which runs on a worker. */
typedef struct server_route {
    const char *path;
    const char *allow;                                   /* "GET, HEAD" or "POST" */
    int is_open;                                         /* no key is asked for */
    void (*get)(mb_server *server, server_reply *reply); /* puts a whole reply in */
    void (*post)(server_job *job);
    server_problem_writer write_problem; /* NULL: as OpenAI */
} server_route;

/* NULL: there is no such path. */
const server_route *server_find_route(const char *path);

/* Reads a job's body with an API's reader. Returns 0, and the generation is the caller's; or -1, and the
 * reply has the problem. */
typedef int (*server_reader)(const server_reading *reading, const json_t *body, server_generation *generation,
                             server_problem *problem);
int server_read_job(server_job *job, server_reader reader, server_generation *generation);

/* The calls that libmicrohttpd makes (http.c). */
enum MHD_Result server_handle(void *user, struct MHD_Connection *connection, const char *url,
                              const char *method, const char *version, const char *upload, size_t *n_upload,
                              void **state);
void server_exchange_over(void *user, struct MHD_Connection *connection, void **state,
                          enum MHD_RequestTerminationCode why);

/* The number of the key that the request has, from 1; 0: it has none of the server's.
 * Without keys all have 1. */
int server_find_key(const mb_server *server, struct MHD_Connection *connection);

#endif
