/* routes.c - which path is answered by what. */
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"

#include "server/exchange.h"
#include "server/json_read.h"
#include "server/messages.h"
#include "server/page.h"
#include "server/tokens.h"
#include "server/writer.h"

__attribute__((format(printf, 3, 4))) static void reply_json(server_reply *reply, int status,
                                                             const char *format, ...) {
    char line[256];
    server_text body = {0};
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    server_text_puts(&body, line);
    server_reply_whole(reply, status, "application/json", &body);
}

/* ---- Generation --------------------------------------------------------------------------------------- */

int server_read_job(server_job *job, server_reader reader, server_generation *generation) {
    mb_server *server = job->server;
    server_problem problem = {0};
    server_generation_init(generation, server->reading.model);
    generation->key = job->key;
    json_t *body = server_json_parse(job->body, job->n_body, &problem);
    mb_free(job->body); /* jansson's tree is a copy */
    job->body = NULL;
    int status = body != NULL ? reader(&server->reading, body, generation, &problem) : -1;
    json_decref(body);
    if (status == 0)
        return 0;
    server_generation_free(generation);
    server_reply_problem(job->reply, &problem);
    return -1;
}

static void generate(server_job *job, server_reader reader, const server_writer *writer) {
    mb_server *server = job->server;
    server_generation generation;
    server_problem problem = {0};
    if (server_read_job(job, reader, &generation) != 0)
        return;
    server_run *run = server_run_open(&server->engine, job->reply, writer, &generation, job->arrived);
    if (run != NULL) {
        job->is_run = 1;
        server_engine_add(&server->engine, run);
        return;
    }
    server_refuse(&problem, 503, NULL, "the server ran out of memory");
    server_reply_problem(job->reply, &problem);
}

static void post_chat(server_job *job) {
    generate(job, server_read_chat, &server_chat_writer);
}

static void post_completion(server_job *job) {
    generate(job, server_read_completion, &server_completion_writer);
}

static void post_messages(server_job *job) {
    generate(job, server_read_messages, &server_messages_writer);
}

static void post_responses(server_job *job) {
    generate(job, server_read_responses, &server_responses_writer);
}

static void post_count_tokens(server_job *job) {
    server_generation generation;
    if (server_read_job(job, server_read_messages, &generation) != 0)
        return;
    reply_json(job->reply, 200, "{\"input_tokens\":%zu}", generation.prompts[0].n_ids);
    server_generation_free(&generation);
}

/* ---- What the server says of itself -------------------------------------------------------------------- */

static void get_models(mb_server *server, server_reply *reply) {
    const server_reading *reading = &server->reading;
    server_text body = {0};
    server_text_puts(&body, "{\"object\":\"list\",\"data\":[");
    for (char **name = server->names; *name != NULL; name++) {
        server_text_puts(&body, name > server->names ? ",{\"id\":" : "{\"id\":");
        server_text_json_string(&body, *name);
        server_text_printf(&body, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"moebius\",\"root\":",
                           (long long)server->created);
        server_text_json_string(&body, server->names[0]);
        server_text_printf(&body, ",\"parent\":null,\"max_model_len\":%lld}", (long long)reading->context);
    }
    server_text_puts(&body, "]}");
    server_reply_whole(reply, 200, "application/json", &body);
}

static void get_health(mb_server *server, server_reply *reply) {
    (void)server;
    reply_json(reply, 200, "{\"status\":\"ok\"}");
}

static void get_ready(mb_server *server, server_reply *reply) {
    const char *trouble =
        atomic_load(&server->is_stopping) ? "shutting down" : server_engine_trouble(&server->engine);
    reply_json(reply, trouble != NULL ? 503 : 200, "{\"status\":\"%s\"}",
               trouble != NULL ? trouble : "ready");
}

static void get_version(mb_server *server, server_reply *reply) {
    (void)server;
    reply_json(reply, 200, "{\"version\":\"%s\"}", mb_version());
}

static void get_load(mb_server *server, server_reply *reply) {
    reply_json(reply, 200, "{\"server_load\":%d}", atomic_load(&server->engine.n_places));
}

static void get_metrics(mb_server *server, server_reply *reply) {
    server_text body = {0};
    server_metrics_write(&server->engine, server->names[0], &body);
    server_reply_whole(reply, 200, "text/plain; version=0.0.4; charset=utf-8", &body);
}

static void get_page(mb_server *server, server_reply *reply) {
    server_text body = {0};
    (void)server;
    server_text_put(&body, (const char *)mb_page, mb_page_bytes);
    server_reply_header(reply, "Content-Security-Policy", mb_page_policy);
    server_reply_whole(reply, 200, "text/html; charset=utf-8", &body);
}

static const server_route routes[] = {
    {.path = "/v1/chat/completions", .allow = "POST", .post = post_chat},
    {.path = "/v1/completions", .allow = "POST", .post = post_completion},
    {.path = "/v1/messages",
     .allow = "POST",
     .post = post_messages,
     .write_problem = server_messages_problem},
    {.path = "/v1/messages/count_tokens",
     .allow = "POST",
     .post = post_count_tokens,
     .write_problem = server_messages_problem},
    {.path = "/v1/responses", .allow = "POST", .post = post_responses},
    {.path = "/tokenize", .allow = "POST", .post = server_post_tokenize},
    {.path = "/detokenize", .allow = "POST", .post = server_post_detokenize},
    {.path = "/v1/models", .allow = "GET, HEAD", .get = get_models},
    {.path = "/health", .allow = "GET, HEAD", .get = get_health, .is_open = 1},
    {.path = "/ping", .allow = "GET, HEAD", .get = get_health},
    {.path = "/ready", .allow = "GET, HEAD", .get = get_ready},
    {.path = "/version", .allow = "GET, HEAD", .get = get_version},
    {.path = "/load", .allow = "GET, HEAD", .get = get_load},
    {.path = "/metrics", .allow = "GET, HEAD", .get = get_metrics},
    /* A browser cannot send a key before it has a page; the page asks for one. It holds nothing of its
     * own. */
    {.path = "/", .allow = "GET, HEAD", .get = get_page, .is_open = 1},
};

const server_route *server_find_route(const char *path) {
    for (size_t i = 0; i < sizeof routes / sizeof *routes; i++)
        if (strcmp(path, routes[i].path) == 0)
            return &routes[i];
    return NULL;
}
