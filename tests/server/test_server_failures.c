/*
 * What clients and routers see when steps fail, when a request leaves no token to draw, and when the server ends
 * streams: on a device that fails when it is told to.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/model.h"
#include "server/exchange.h"
#include "support/slow_device.h"

enum { MIB = 1 << 20, LIMIT_S = 60 };

static mb_model *model;
static mb_device *cpu;
static slow_device *slow;
static mb_server *server;

/* ---- A server and its clients -------------------------------------------------------------------------- */

static int open_server(void **state) {
    static const char *const names[] = {"demo", NULL};
    server_settings settings = {
        .host = "127.0.0.1", .names = names, .max_queue = 8, .receive_timeout_s = LIMIT_S};
    mb_model_options options;
    (void)state;
    mb_model_options_init(&options);
    options.n_threads = 1;
    if (mb_model_open("models/demo", &options, &model) != MB_OK ||
        mb_answer_formats_of(model, &settings.formats) != MB_OK)
        return -1;
    cpu = model->device;
    slow = slow_device_open(512 * MIB);
    model->device = slow_device_of(slow);
    mb_session_options_init(&settings.session);
    settings.session.max_sequences = 4;
    settings.session.kv_tokens = 16384;
    settings.session.max_decode_slowdown = 0; /* prompts take few steps, however long the device was held */
    return server_open(model, &settings, &server) == MB_OK ? 0 : -1;
}

static int close_server(void **state) {
    (void)state;
    slow_device_go(slow); /* a test that failed may have held the device */
    server_close(server);
    model->device = cpu;
    slow_device_close(slow);
    mb_model_close(model);
    return 0;
}

/* Sends a request on a connection of its own. body: NULL for a GET. */
static int ask(const char *path, const char *body) {
    char request[16384];
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)server_port(server))};
    struct timeval limit = {.tv_sec = LIMIT_S};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int client = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    assert_int_equal(connect(client, (struct sockaddr *)&address, sizeof address), 0);
    int length = snprintf(
        request, sizeof request, "%s %s HTTP/1.1\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n%s",
        body != NULL ? "POST" : "GET", path, body != NULL ? strlen(body) : 0, body != NULL ? body : "");
    assert_true(length < (int)sizeof request);
    assert_int_equal(send(client, request, (size_t)length, MSG_NOSIGNAL), length);
    return client;
}

/* Reads until the reply has `text`, or to its end where that is NULL. Long streams keep their end. */
static const char *read_reply(int client, const char *text) {
    static char reply[64 * 1024];
    size_t n_bytes = 0;
    ssize_t n = 1;
    reply[0] = '\0';
    while ((text == NULL || strstr(reply, text) == NULL) && n > 0) {
        if (n_bytes > sizeof reply / 2) {
            memmove(reply, reply + n_bytes - sizeof reply / 4, sizeof reply / 4);
            n_bytes = sizeof reply / 4;
        }
        n = recv(client, reply + n_bytes, sizeof reply - 1 - n_bytes, 0);
        n_bytes += n > 0 ? (size_t)n : 0;
        reply[n_bytes] = '\0';
    }
    assert_true(n >= 0); /* else nothing came in time */
    if (text == NULL)
        close(client);
    else if (n == 0)
        fail_msg("no %s in %s", text, reply);
    return reply;
}

static const char *get_reply(const char *path, const char *body) {
    return read_reply(ask(path, body), NULL);
}

static void assert_has(const char *reply, const char *text) {
    if (strstr(reply, text) == NULL)
        fail_msg("no %s in %s", text, reply);
}

/* ---- Readiness ----------------------------------------------------------------------------------------- */

static const char one_token[] = "{\"prompt\":[1,2,3],\"max_tokens\":1,\"ignore_eos\":true}";

/* Until /ready says no: the reply of a failed request may come before the step has returned. */
static void fail_steps(void) {
    const char *ready = "";
    for (int i = 0; i < 1000 && strstr(ready, "steps fail") == NULL; i++) {
        slow_device_fail_next(slow);
        const char *reply = get_reply("/v1/completions", one_token);
        assert_has(reply, "HTTP/1.1 500 ");
        assert_has(reply, "an operator fell over");
        ready = get_reply("/ready", NULL);
    }
    assert_has(ready, "HTTP/1.1 503 ");
    assert_has(ready, "steps fail");
    assert_has(get_reply("/health", NULL), "HTTP/1.1 200 ");
}

static void wait_until_ready(void) {
    const char *ready = "";
    for (int i = 0; i < 10000 && strstr(ready, "\"ready\"") == NULL; i++)
        ready = get_reply("/ready", NULL);
    assert_has(ready, "HTTP/1.1 200 ");
}

static void test_ready_again_when_a_step_succeeds(void **state) {
    (void)state;
    wait_until_ready();
    fail_steps();
    assert_has(get_reply("/v1/completions", one_token), "HTTP/1.1 200 ");
    wait_until_ready();
}

/* Who asks /ready before it sends requests would else never send one. */
static void test_ready_again_some_time_after_a_failure(void **state) {
    (void)state;
    fail_steps();
    pthread_mutex_lock(&server->engine.lock);
    server->engine.step_ended -= 10;
    pthread_mutex_unlock(&server->engine.lock);
    wait_until_ready();
    assert_has(get_reply("/v1/completions", one_token), "HTTP/1.1 200 ");
}

/* ---- No token ------------------------------------------------------------------------------------------ */

/* Each request hears of its own failure, not of an older one. */
static void test_no_token_is_left(void **state) {
    static const char *const bodies[][2] = {
        {"{\"prompt\":[1],\"max_tokens\":3,\"min_tokens\":1,\"stop_token_ids\":[%s]}",
         "all are banned by logit_bias, or as stop tokens before the least length"},
        {"{\"prompt\":[1],\"max_tokens\":3,\"min_tokens\":1,\"stop_token_ids\":[%s],\"guided_regex\":\"a+\"}",
         "those that the format of the answer allows here are banned"},
        {"{\"prompt\":[1],\"max_tokens\":3,\"guided_regex\":\"[^\\\\s\\\\S]\"}",
         "the grammar matches no text"},
    };
    char ids[8192], body[16384];
    mb_model_info info;
    (void)state;
    fail_steps();
    mb_model_get_info(model, &info);
    size_t length = 0;
    for (int32_t id = 0; id < info.vocab; id++)
        length += (size_t)snprintf(ids + length, sizeof ids - length, id > 0 ? ",%d" : "%d", (int)id);
    assert_true(length < sizeof ids);
    for (size_t i = 0; i < sizeof bodies / sizeof *bodies; i++) {
        const char *at = strstr(bodies[i][0], "%s");
        int n_before = at != NULL ? (int)(at - bodies[i][0]) : (int)strlen(bodies[i][0]);
        snprintf(body, sizeof body, "%.*s%s%s", n_before, bodies[i][0], at != NULL ? ids : "",
                 at != NULL ? at + 2 : "");
        const char *reply = get_reply("/v1/completions", body);
        assert_has(reply, "HTTP/1.1 400 ");
        assert_has(reply, bodies[i][1]);
    }
}

/* ---- Ends of streams ----------------------------------------------------------------------------------- */

/* Greedy: tokens drawn at random may have no text for more steps than the device is let go for. */
#define LONG "\"ignore_eos\":true,\"stream\":true,\"temperature\":0"
#define CHAT "\"messages\":[{\"role\":\"user\",\"content\":\"Hi\"}],\"max_tokens\":2000," LONG

/* Long answers of each API: what shows that text has come, and how the stream ends when a step fails and when the
 * server shuts down. */
static const struct {
    const char *path, *body, *begun, *failed, *shut_down, *end;
} streams[] = {
    {"/v1/completions", "{\"prompt\":[1,2,3],\"max_tokens\":2000," LONG "}", "\"text\":",
     "data: {\"error\":{\"message\":\"the model failed on this request: slow device: an operator fell over\"",
     "\"finish_reason\":\"abort\"", "data: [DONE]\n\n\r\n0\r\n\r\n"},
    {"/v1/chat/completions", "{" CHAT "}", "\"delta\":",
     "data: {\"error\":{\"message\":\"the model failed on this request: slow device: an operator fell over\"",
     "\"finish_reason\":\"abort\"", "data: [DONE]\n\n\r\n0\r\n\r\n"},
    {"/v1/messages", "{" CHAT "}", "content_block_delta",
     "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"the model failed on "
     "this request: slow device: an operator fell over\"}}\n\n\r\n0\r\n\r\n",
     "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"overloaded_error\",\"message\":\"the server is "
     "shutting down\"}}\n\n\r\n0\r\n\r\n",
     "}\n\n\r\n0\r\n\r\n"},
    {"/v1/responses", "{\"input\":\"Hi\",\"max_output_tokens\":2000," LONG "}", ".delta",
     "\"error\":{\"code\":\"server_error\",\"message\":\"the model failed on this request: slow device: an operator "
     "fell over\"}",
     "\"error\":{\"code\":\"server_error\",\"message\":\"the server is shutting down\"}",
     "}\n\n\r\n0\r\n\r\n"},
};
enum { N_STREAMS = sizeof streams / sizeof *streams };

/* Begins a stream beside n others; the device is held then, so that none of them ends before its time. */
static int begin_stream(size_t i, int n_others) {
    enum { N_STEPS = 40 }; /* until there is text */
    mb_session_stats stats = {0};
    slow_device_hold(slow);
    int client = ask(streams[i].path, streams[i].body);
    for (int j = 0; j < 60 * 1000 && stats.n_waiting + stats.n_running <= n_others; j++) {
        nanosleep(&(struct timespec){.tv_nsec = 1000 * 1000}, NULL);
        mb_session_get_stats(server->engine.session, &stats);
    }
    slow_device_hold_after(slow, slow_device_n_records(slow) + N_STEPS);
    assert_has(read_reply(client, streams[i].begun), "HTTP/1.1 200 ");
    return client;
}

/* What the stream ends with, to its last byte; a response's end is its event of that name. */
static void assert_ends(size_t i, int client, const char *text) {
    const char *reply = read_reply(client, NULL);
    size_t n_bytes = strlen(reply), n_end = strlen(streams[i].end);
    assert_has(reply, text);
    assert_true(n_bytes > n_end);
    assert_string_equal(reply + n_bytes - n_end, streams[i].end);
    if (strcmp(streams[i].path, "/v1/responses") == 0)
        assert_has(reply, "event: response.failed\ndata: {\"type\":\"response.failed\",");
}

static void test_streams_that_a_failed_step_ends(void **state) {
    (void)state;
    for (size_t i = 0; i < N_STREAMS; i++) {
        int client = begin_stream(i, 0);
        slow_device_fail_next(slow);
        slow_device_go(slow);
        assert_ends(i, client, streams[i].failed);
    }
}

/* The last test: nothing is answered afterwards. */
static void test_streams_that_the_shutdown_ends(void **state) {
    int clients[N_STREAMS];
    (void)state;
    for (size_t i = 0; i < N_STREAMS; i++)
        clients[i] = begin_stream(i, (int)i);
    server_begin_shutdown(server);
    server_end_requests(server);
    for (size_t i = 0; i < N_STREAMS; i++)
        assert_ends(i, clients[i], streams[i].shut_down);
    slow_device_go(slow);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ready_again_when_a_step_succeeds),
        cmocka_unit_test(test_ready_again_some_time_after_a_failure),
        cmocka_unit_test(test_no_token_is_left),
        cmocka_unit_test(test_streams_that_a_failed_step_ends),
        cmocka_unit_test(test_streams_that_the_shutdown_ends),
    };
    return cmocka_run_group_tests(tests, open_server, close_server);
}
