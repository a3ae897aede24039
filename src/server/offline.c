#include "server/offline.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/status.h"
#include "server/engine.h"
#include "server/json_read.h"
#include "server/writer.h"

struct server_offline {
    server_engine engine;
    server_reading reading;
    const char *names[3];
};

mb_status server_offline_open(mb_model *model, const server_offline_settings *settings,
                              server_offline **opened) {
    server_offline *made = mb_calloc(1, sizeof *made);
    mb_session_options session = settings->session;
    mb_model_info info;
    *opened = NULL;
    if (made == NULL)
        return mb_fail(MB_ERR_MEMORY, "no memory for requests");
    session.max_queued = settings->max_requests * SERVER_MAX_ANSWERS;
    mb_model_get_info(model, &info);
    mb_status status = server_engine_open(&made->engine, model, &session, info.max_positions);
    if (status != MB_OK) {
        mb_free(made);
        return status;
    }
    made->names[0] = settings->name;
    made->names[1] = "*"; /* a batch made for another model is answered by this one */
    server_reading_init(&made->reading, model, made->engine.session, made->names, settings->max_model_len);
    made->reading.formats = settings->formats;
    *opened = made;
    return MB_OK;
}

void server_offline_close(server_offline *offline) {
    if (offline == NULL)
        return;
    server_engine_close(&offline->engine);
    mb_free(offline);
}

int server_offline_check(const char *json, size_t n_bytes, char *sentence, size_t capacity) {
    server_problem problem = {0};
    int status = server_json_check_extent(json, n_bytes, &problem);
    if (status != 0)
        snprintf(sentence, capacity, "%s", problem.message);
    return status;
}

void server_offline_get_stats(server_offline *offline, mb_session_stats *stats) {
    mb_session_get_stats(offline->engine.session, stats);
}

/* Reads the request and hands it to the engine, which holds the reply then. */
static int start(server_offline *offline, const char *url, const json_t *body, server_reply *reply,
                 server_problem *problem) {
    int is_chat = strcmp(url, "/v1/chat/completions") == 0;
    server_generation generation;
    if (!is_chat && strcmp(url, "/v1/completions") != 0)
        return server_refuse(problem, 404, "url",
                             "url is \"%.100s\"; a batch has /v1/chat/completions and /v1/completions", url);
    server_generation_init(&generation, offline->reading.model);
    int status = is_chat ? server_read_chat(&offline->reading, body, &generation, problem)
                         : server_read_completion(&offline->reading, body, &generation, problem);
    if (status == 0 && generation.stream)
        status = server_refuse(problem, 400, "stream", "a batch's replies are whole; leave stream out");
    if (status != 0) {
        server_generation_free(&generation);
        return status;
    }
    server_run *run =
        server_run_open(&offline->engine, reply, is_chat ? &server_chat_writer : &server_completion_writer,
                        &generation, server_now());
    if (run == NULL)
        return server_refuse(problem, 503, NULL, "there is no memory for this request");
    atomic_fetch_add(&offline->engine.n_places, 1);
    server_engine_add(&offline->engine, run);
    return 0;
}

void server_offline_answer(server_offline *offline, const char *url, const json_t *body,
                           server_offline_fn done, void *user) {
    server_problem problem = {0};
    server_reply *reply = server_reply_open_offline(done, user);
    if (reply == NULL) {
        done(user, 503, NULL, 0);
        return;
    }
    if (start(offline, url, body, reply, &problem) != 0)
        server_reply_problem(reply, &problem);
    server_reply_drop(reply);
}
