/*
 * A server under clients that ask, stream, leave and come back, in one process: short enough for
 * ThreadSanitizer. The Python tests beside check what is answered; here only the threads count.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
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

#include "server/server.h"

enum { N_CLIENTS = 4, N_VISITS = 6 };

static mb_server *server;

static int connect_client(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)server_port(server))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int client = socket(AF_INET, SOCK_STREAM, 0);
    struct timeval limit = {.tv_sec = 60};
    setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    return connect(client, (struct sockaddr *)&address, sizeof address) == 0 ? client : -1;
}

/* Sends a request and reads up to n_bytes of the reply, or all of it. Returns the bytes
 * read, -1 on failure. */
static long visit(const char *path, const char *body, size_t n_bytes) {
    char buffer[4096], head[256];
    long n_read = 0;
    ssize_t n = 1;
    int client = connect_client();
    if (client < 0)
        return -1;
    int length = snprintf(head, sizeof head,
                          "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n",
                          *body != '\0' ? "POST" : "GET", path, strlen(body));
    if (send(client, head, (size_t)length, MSG_NOSIGNAL) < 0 ||
        send(client, body, strlen(body), MSG_NOSIGNAL) < 0)
        n = 0;
    while (n > 0 && (size_t)n_read < n_bytes && (n = recv(client, buffer, sizeof buffer, 0)) > 0)
        n_read += n;
    close(client);
    return n < 0 ? -1 : n_read;
}

static void *be_client(void *number) {
    static const char *const bodies[] = {
        "{\"prompt\":[1,2,3],\"max_tokens\":3,\"ignore_eos\":true}",
        "{\"prompt\":[1,2,3],\"max_tokens\":3,\"ignore_eos\":true,\"stream\":true,\"logprobs\":2}",
        "{\"prompt\":[4,5],\"n\":3,\"max_tokens\":2,\"stream\":true,\"stop\":[\"a\"]}",
        "{\"prompt\":[]}",
    };
    intptr_t failures = 0;
    for (int i = 0; i < N_VISITS; i++) {
        unsigned choice = (unsigned)((intptr_t)number * 5 + i * 3);
        size_t patience = choice % 3 == 0 ? 0 : choice % 3 == 1 ? 200 : (size_t)-1;
        if (i == N_VISITS / 2)
            failures += visit("/metrics", "", (size_t)-1) <= 0;
        long n = visit("/v1/completions", bodies[choice % 4], patience);
        failures += n < 0 || (patience > 0 && n == 0);
    }
    return (void *)failures;
}

static void test_clients(void **state) {
    pthread_t threads[N_CLIENTS];
    (void)state;
    for (intptr_t i = 0; i < N_CLIENTS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, be_client, (void *)i), 0);
    for (int i = 0; i < N_CLIENTS; i++) {
        void *failures;
        pthread_join(threads[i], &failures);
        assert_null(failures);
    }
    for (int i = 0; i < 6000 && !server_is_idle(server); i++)
        nanosleep(&(struct timespec){.tv_nsec = 10 * 1000 * 1000}, NULL);
    assert_true(server_is_idle(server));
}

/* Many requests at once, each head and body in packets of their own: all are answered. No token is computed for
 * them, so only what moves the bytes takes time. */
static void test_two_packets(void **state) {
    static const char head[] = "POST /v1/completions HTTP/1.1\r\nContent-Length: 13\r\n\r\n";
    static const char body[] = "{\"prompt\":[]}", refusal[] = "HTTP/1.1 400 ";
    enum { N_AT_ONCE = 64 };
    int clients[N_AT_ONCE];
    char buffer[256];
    (void)state;
    for (int i = 0; i < N_AT_ONCE; i++) {
        clients[i] = connect_client();
        assert_true(clients[i] >= 0);
        assert_int_equal(send(clients[i], head, sizeof head - 1, MSG_NOSIGNAL), sizeof head - 1);
    }
    for (int i = 0; i < N_AT_ONCE; i++)
        assert_int_equal(send(clients[i], body, sizeof body - 1, MSG_NOSIGNAL), sizeof body - 1);
    for (int i = 0; i < N_AT_ONCE; i++) {
        assert_true(recv(clients[i], buffer, sizeof buffer, 0) > (ssize_t)sizeof refusal);
        assert_memory_equal(buffer, refusal, sizeof refusal - 1);
        close(clients[i]);
    }
}

enum { N_CLOSING = 64, N_IN_TIME = 7 };
static const char long_body[] = "{\"prompt\":[1,2,3],\"max_tokens\":900,\"ignore_eos\":true,\"stream\":true}";

/* Bodies that come while the server is being closed: after its workers have ended, too. */
static void *send_late_bodies(void *clients) {
    for (int i = N_IN_TIME; i < N_CLOSING - 1; i++) {
        nanosleep(&(struct timespec){.tv_nsec = 200 * 1000}, NULL);
        send(((const int *)clients)[i], long_body, sizeof long_body - 1, MSG_NOSIGNAL); /* may fail by then */
    }
    return NULL;
}

/* The first of the clients that has something to read. Two HTTP threads accept and read, so the requests come to
 * the engine in any order: who connected first may have to wait for four long answers of others. */
static int await_any(const int *clients, nfds_t n_clients) {
    struct pollfd polled[N_CLOSING];
    for (nfds_t i = 0; i < n_clients; i++)
        polled[i] = (struct pollfd){.fd = clients[i], .events = POLLIN};
    assert_true(poll(polled, n_clients, 60 * 1000) > 0);
    nfds_t first = 0;
    while (polled[first].revents == 0)
        first++;
    return clients[first];
}

/* Requests are in every state when the server is closed. */
static void test_closing(void **state) {
    char head[128], buffer[256];
    int clients[N_CLOSING];
    pthread_t late;
    (void)state;
    int length = snprintf(head, sizeof head, "POST /v1/completions HTTP/1.1\r\nContent-Length: %zu\r\n\r\n",
                          sizeof long_body - 1);
    for (int i = 0; i < N_CLOSING; i++) {
        clients[i] = connect_client();
        assert_true(clients[i] >= 0);
        assert_int_equal(send(clients[i], head, (size_t)length, MSG_NOSIGNAL), length);
        if (i < N_IN_TIME) /* the last one never sends its body */
            assert_int_equal(send(clients[i], long_body, sizeof long_body - 1, MSG_NOSIGNAL),
                             sizeof long_body - 1);
    }
    assert_true(recv(await_any(clients, N_IN_TIME), buffer, sizeof buffer, 0) > 0);
    server_begin_shutdown(server);
    assert_int_equal(pthread_create(&late, NULL, send_late_bodies, clients), 0);
    server_end_requests(server);
    server_close(server);
    server = NULL;
    pthread_join(late, NULL);
    for (int i = 0; i < N_CLOSING; i++)
        close(clients[i]);
}

int main(void) {
    static const char *const names[] = {"demo", NULL};
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_clients), cmocka_unit_test(test_two_packets),
                                       cmocka_unit_test(test_closing)};
    mb_model *model;
    mb_model_options options;
    server_settings settings = {
        .host = "127.0.0.1", .names = names, .max_queue = 64, .receive_timeout_s = 60};
    mb_session_options_init(&settings.session);
    settings.session.max_sequences = 4;
    settings.session.kv_tokens = 4096;
    mb_model_options_init(&options);
    options.n_threads = 1;
    if (mb_model_open("models/demo", &options, &model) != MB_OK ||
        mb_answer_formats_of(model, &settings.formats) != MB_OK ||
        server_open(model, &settings, &server) != MB_OK) {
        fprintf(stderr, "%s\n", mb_last_error());
        return 1;
    }
    int status = cmocka_run_group_tests(tests, NULL, NULL);
    server_close(server);
    mb_model_close(model);
    return status;
}
