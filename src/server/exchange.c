/*
 * exchange.c - one request over HTTP.
 *
 * The headers are checked first. A request that is refused then still has its body read and dropped, up to a
 * limit, because a client that is cut off while it sends rarely reads the reply. A body that is wanted is
 * collected here and given to a worker; the connection is suspended until the reply has something in it.
 */
#include "server/exchange.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "base/alloc.h"

enum {
    MAX_HEADER_BYTES = 32 * 1024,
    MAX_HEADER_LINES = 100,
    MAX_BODY_BYTES = 64 * 1024 * 1024,
};
static const uint64_t MAX_DROPPED_BYTES = (uint64_t)256 * 1024 * 1024;
static const size_t MAX_ALL_BODIES = (size_t)1024 * 1024 * 1024; /* of all requests together */

typedef struct exchange {
    mb_server *server;
    const server_route *route;
    server_reply *reply;
    server_watched *watched;
    server_problem problem;
    char *body;
    size_t n_body, body_capacity;
    uint64_t n_dropped;
    int is_given; /* to a worker, or answered */
    int closes;   /* the connection, after the reply */
    double arrived;
    int key;        /* number of the API key; 0: none */
    char line[160]; /* method and path, for the access log */
} exchange;

/* ---- Headers ------------------------------------------------------------------------------------------ */

typedef struct header_facts {
    int n_lines, n_lengths, n_encodings, expects;
    uint64_t length;
} header_facts;

static enum MHD_Result count_header(void *user, enum MHD_ValueKind kind, const char *name,
                                    const char *value) {
    header_facts *facts = user;
    (void)kind;
    facts->n_lines++;
    if (strcasecmp(name, "Content-Length") == 0) {
        facts->n_lengths++;
        facts->length = strtoull(value != NULL ? value : "", NULL, 10);
    }
    facts->n_encodings += strcasecmp(name, "Transfer-Encoding") == 0;
    facts->expects |= strcasecmp(name, "Expect") == 0;
    return MHD_YES;
}

static size_t header_bytes(struct MHD_Connection *connection) {
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
    return info != NULL ? info->header_size : 0;
}

/* What makes the rest of the connection unreadable: the reply is its last. */
static int check_framing(exchange *x, struct MHD_Connection *connection, const header_facts *facts) {
    x->closes = 1;
    if (header_bytes(connection) > MAX_HEADER_BYTES)
        return server_refuse(&x->problem, 431, NULL, "the request's headers have more than %d bytes",
                             MAX_HEADER_BYTES);
    if (facts->n_lines > MAX_HEADER_LINES)
        return server_refuse(&x->problem, 431, NULL, "the request has more than %d headers",
                             MAX_HEADER_LINES);
    if (facts->n_lengths > 1 || facts->n_encodings > 1 || facts->n_lengths + facts->n_encodings > 1)
        return server_refuse(&x->problem, 400, NULL,
                             "the request has more than one of Content-Length and Transfer-Encoding");
    if (facts->length > MAX_BODY_BYTES)
        return server_refuse(&x->problem, 413, NULL, "the body has %llu bytes; at most %d are taken",
                             (unsigned long long)facts->length, MAX_BODY_BYTES);
    x->closes = 0;
    return 0;
}

static int is_allowed(const server_route *route, const char *method) {
    return route->post != NULL ? strcmp(method, "POST") == 0
                               : strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0;
}

static void check_request(exchange *x, struct MHD_Connection *connection, const char *url,
                          const char *method) {
    const server_route *route = server_find_route(url);
    server_problem *problem = &x->problem;
    if (route != NULL && route->write_problem != NULL)
        server_reply_problem_writer(x->reply, route->write_problem);
    x->key = server_find_key(x->server, connection);
    if ((route == NULL || !route->is_open) && x->key == 0) {
        server_refuse(problem, 401, NULL, "the API key is missing or wrong; send Authorization: Bearer KEY");
    } else if (route == NULL) {
        server_refuse(problem, 404, NULL, "there is no %.100s here", url);
    } else if (!is_allowed(route, method)) {
        server_refuse(problem, 405, NULL, "%s takes %s, not %.20s", route->path, route->allow, method);
        server_reply_header(x->reply, "Allow", route->allow);
    } else if (route->post != NULL && atomic_load(&x->server->is_stopping)) {
        server_refuse(problem, 503, NULL, "the server is shutting down");
        problem->retry_after_s = SERVER_RETRY_AFTER_S;
        x->closes = 1;
    }
    x->route = route;
}

/* The first call of a request. NULL: no memory, the connection is closed. */
static exchange *begin(mb_server *server, struct MHD_Connection *connection, const char *url,
                       const char *method, header_facts *facts) {
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    exchange *x = mb_calloc(1, sizeof *x);
    if (x == NULL || info == NULL || info->socket_context == NULL) {
        mb_free(x);
        return NULL;
    }
    x->server = server;
    x->watched = info->socket_context;
    x->arrived = server_now();
    x->reply = server_reply_open(connection);
    if (x->reply == NULL) {
        mb_free(x);
        return NULL;
    }
    atomic_fetch_add(&server->n_exchanges, 1);
    snprintf(x->line, sizeof x->line, "%.16s %.120s", method, url);
    server_watch_expect(server->watch, x->watched, server->settings.receive_timeout_s);
    MHD_get_connection_values(connection, MHD_HEADER_KIND, count_header, facts);
    if (check_framing(x, connection, facts) == 0)
        check_request(x, connection, url, method);
    return x;
}

/* ---- Body --------------------------------------------------------------------------------------------- */

static void drop_body(exchange *x) {
    atomic_fetch_sub(&x->server->n_body_bytes, x->body_capacity);
    mb_free(x->body);
    x->body = NULL;
    x->n_body = x->body_capacity = 0;
}

static int keep(exchange *x, const char *bytes, size_t n_bytes) {
    size_t before = x->body_capacity;
    if (x->n_body + n_bytes > MAX_BODY_BYTES) {
        x->closes = 1;
        return server_refuse(&x->problem, 413, NULL, "the body has more than %d bytes", MAX_BODY_BYTES);
    }
    if (mb_grow((void **)&x->body, &x->body_capacity, x->n_body + n_bytes + 1, 1) != 0)
        return server_refuse(&x->problem, 503, NULL, "no memory for the body of the request");
    size_t grown = x->body_capacity - before;
    memcpy(x->body + x->n_body, bytes, n_bytes);
    x->n_body += n_bytes;
    if (atomic_fetch_add(&x->server->n_body_bytes, grown) + grown > MAX_ALL_BODIES) {
        x->problem.retry_after_s = SERVER_RETRY_AFTER_S;
        return server_refuse(&x->problem, 503, NULL, "too many large requests at once; try again later");
    }
    return 0;
}

static enum MHD_Result receive(exchange *x, const char *bytes, size_t *n_bytes) {
    if (x->problem.status == 0 && x->route->post != NULL && keep(x, bytes, *n_bytes) != 0)
        drop_body(x);
    x->n_dropped += *n_bytes;
    *n_bytes = 0;
    return x->n_dropped <= MAX_DROPPED_BYTES ? MHD_YES : MHD_NO;
}

/* ---- Answering ---------------------------------------------------------------------------------------- */

static void run_job(server_work *work) {
    server_job *job = (server_job *)work;
    mb_server *server = job->server;
    if (!server_reply_gone(job->reply))
        job->route->post(job);
    mb_free(job->body);
    atomic_fetch_sub(&server->n_body_bytes, job->n_reserved);
    if (!job->is_run)
        atomic_fetch_sub(&server->engine.n_places, 1);
    server_reply_drop(job->reply);
    mb_free(job);
}

/* 1 when the request finds a place among those that run and those that wait. */
static int take_place(mb_server *server) {
    int limit = server->settings.session.max_sequences + server->settings.max_queue;
    if (atomic_fetch_add(&server->engine.n_places, 1) < limit)
        return 1;
    atomic_fetch_sub(&server->engine.n_places, 1);
    return 0;
}

static void refuse_job(exchange *x, const char *why) {
    server_refuse(&x->problem, 503, NULL, "%s", why);
    x->problem.retry_after_s = SERVER_RETRY_AFTER_S;
    server_reply_problem(x->reply, &x->problem);
}

static void give_to_worker(exchange *x) {
    server_job *job = mb_calloc(1, sizeof *job);
    if (job == NULL || !take_place(x->server)) {
        refuse_job(x, "the queue is full; try again later");
        mb_free(job);
        return;
    }
    if (x->body != NULL)
        x->body[x->n_body] = '\0';
    *job = (server_job){.work.run = run_job,
                        .server = x->server,
                        .reply = x->reply,
                        .body = x->body,
                        .n_body = x->n_body,
                        .n_reserved = x->body_capacity,
                        .arrived = x->arrived,
                        .key = x->key,
                        .route = x->route};
    server_reply_hold(x->reply);
    if (server_workers_give(x->server->workers, &job->work) == 0) {
        x->body = NULL; /* the job's, as is what it takes of n_body_bytes */
        x->n_body = x->body_capacity = 0;
        return;
    }
    /* The body came so late that the server is being closed. */
    x->closes = 1;
    refuse_job(x, "the server is shutting down");
    server_reply_drop(x->reply);
    atomic_fetch_sub(&x->server->engine.n_places, 1);
    mb_free(job);
}

static void answer(exchange *x) {
    x->is_given = 1;
    server_watch_reply(x->server->watch, x->watched, x->reply);
    if (x->problem.status != 0) {
        server_reply_problem(x->reply, &x->problem);
    } else if (x->route->get != NULL) {
        x->route->get(x->server, x->reply);
    } else {
        give_to_worker(x);
    }
}

enum MHD_Result server_handle(void *user, struct MHD_Connection *connection, const char *url,
                              const char *method, const char *version, const char *upload, size_t *n_upload,
                              void **state) {
    exchange *x = *state;
    (void)version;
    if (x == NULL) {
        header_facts facts = {0};
        *state = x = begin(user, connection, url, method, &facts);
        if (x == NULL)
            return MHD_NO;
        /* The client waits for a word before it sends the body, or the body is too large to be dropped. */
        if (x->problem.status == 0 || (!facts.expects && facts.length <= MAX_DROPPED_BYTES))
            return MHD_YES;
        x->closes = 1;
    } else if (*n_upload > 0) {
        return receive(x, upload, n_upload);
    }
    if (!x->is_given)
        answer(x);
    switch (server_reply_poll(x->reply)) {
    case SERVER_REPLY_READY:
        return server_reply_queue(x->reply, x->closes);
    case SERVER_REPLY_WAIT:
        return MHD_YES;
    default:
        return MHD_NO;
    }
}

/* ---- The end ------------------------------------------------------------------------------------------ */

static void log_access(const exchange *x, enum MHD_RequestTerminationCode why) {
    char time_text[32];
    struct tm parts;
    time_t now = time(NULL);
    localtime_r(&now, &parts);
    strftime(time_text, sizeof time_text, "%Y-%m-%dT%H:%M:%S%z", &parts);
    char shown[sizeof x->line];
    size_t n = 0;
    for (const char *at = x->line; *at != '\0'; at++)
        shown[n++] = *at >= ' ' && *at <= '~' && *at != '"' ? *at : '?';
    shown[n] = '\0';
    fprintf(stderr, "%s \"%s\" %d %zu bytes %.3f s%s\n", time_text, shown, server_reply_status(x->reply),
            server_reply_sent(x->reply), server_now() - x->arrived,
            why == MHD_REQUEST_TERMINATED_COMPLETED_OK ? "" : ", the client left");
}

void server_exchange_over(void *user, struct MHD_Connection *connection, void **state,
                          enum MHD_RequestTerminationCode why) {
    exchange *x = *state;
    mb_server *server = user;
    (void)connection;
    if (x == NULL)
        return;
    if (server->settings.access_log)
        log_access(x, why);
    server_watch_forget(server->watch, x->watched, server->settings.receive_timeout_s);
    server_reply_detach(x->reply);
    server_reply_drop(x->reply);
    drop_body(x);
    mb_free(x);
    *state = NULL;
    atomic_fetch_sub(&server->n_exchanges, 1);
}
