/*
 * Any bytes on a connection to a server, in one piece or two, and then the client leaves. Nothing crashes
 * or leaks, and the server answers an honest client now and then, with all of its KV cache free.
 */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server/server.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes);

enum { EVERY = 256, PATIENCE_MS = 20, LIMIT_MS = 10000 };

static mb_server *server; /* lives as long as the process */

static void open_server(void) {
    static const char *const names[] = {"demo", NULL};
    mb_model *model;
    server_settings settings = {.host = "127.0.0.1", .names = names, .max_queue = 8, .receive_timeout_s = 1};
    mb_session_options_init(&settings.session);
    settings.session.max_sequences = 4;
    settings.session.kv_tokens = 1024;
    if (mb_model_open("models/demo", NULL, &model) != MB_OK ||
        mb_answer_formats_of(model, &settings.formats) != MB_OK ||
        server_open(model, &settings, &server) != MB_OK)
        abort();
}

static int connect_client(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)server_port(server))};
    int client = socket(AF_INET, SOCK_STREAM, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (client < 0 || connect(client, (struct sockaddr *)&address, sizeof address) != 0)
        abort();
    return client;
}

/* Reads what comes within wait_ms; returns 1 when something did. */
static int read_some(int client, char *buffer, size_t capacity, int wait_ms) {
    struct pollfd ready = {.fd = client, .events = POLLIN};
    if (poll(&ready, 1, wait_ms) <= 0)
        return 0;
    ssize_t n = recv(client, buffer, capacity - 1, 0);
    buffer[n > 0 ? n : 0] = '\0';
    return n > 0;
}

static void check_health(void) {
    static const char request[] = "GET /load HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    char answer[4096];
    for (int waited = 0;; waited += 20) { /* what the clients left behind ends first */
        int client = connect_client();
        send(client, request, sizeof request - 1, MSG_NOSIGNAL);
        int answered = read_some(client, answer, sizeof answer, LIMIT_MS);
        close(client);
        if (!answered || waited > LIMIT_MS)
            abort();
        if (strstr(answer, "\"server_load\":0}") != NULL)
            return;
        usleep(20000);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n_bytes) {
    static unsigned n_runs;
    char answer[4096];
    if (server == NULL)
        open_server();
    if (n_bytes < 1)
        return 0;
    struct linger reset = {.l_onoff = 1};
    size_t first = (n_bytes - 1) * (data[0] & 0x7f) / 0x7f;
    int client = connect_client();
    send(client, data + 1, first, MSG_NOSIGNAL);
    if (first < n_bytes - 1)
        send(client, data + 1 + first, n_bytes - 1 - first, MSG_NOSIGNAL);
    if (read_some(client, answer, sizeof answer, PATIENCE_MS) && strncmp(answer, "HTTP/1.", 7) != 0)
        abort();
    if (data[0] & 0x80)
        setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    close(client);
    if (++n_runs % EVERY == 0)
        check_health();
    return 0;
}
