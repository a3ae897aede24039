#include "load/address.h"

#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include "base/alloc.h"
#include "load/response.h"

enum { GET_TIMEOUT_S = 30, MAX_GET_BYTES = 4 << 20 };

static mb_status split(const char *url, load_address *address, char *name, size_t name_bytes, char *port,
                       size_t port_bytes) {
    if (strncasecmp(url, "https://", 8) == 0)
        return mb_fail(MB_ERR_ARGUMENT,
                       "%.200s: https is not spoken here; give the http address behind the proxy", url);
    if (strncasecmp(url, "http://", 7) == 0)
        url += 7;
    size_t n_host = strcspn(url, "/?#");
    const char *path = url + n_host;
    size_t n_path = strcspn(path, "?#");
    while (n_path > 0 && path[n_path - 1] == '/')
        n_path--;
    if (n_path >= 3 && memcmp(path + n_path - 3, "/v1", 3) == 0)
        n_path -= 3;
    if (n_host == 0 || n_host >= sizeof address->host || n_path >= sizeof address->path ||
        memchr(url, '@', n_host) != NULL)
        return mb_fail(MB_ERR_ARGUMENT, "\"%.200s\" is no address such as http://127.0.0.1:8000", url);
    snprintf(address->host, sizeof address->host, "%.*s", (int)n_host, url);
    snprintf(address->path, sizeof address->path, "%.*s", (int)n_path, path);
    /* [::1]:8000, ::1 in brackets, or name:8000 */
    const char *end = url[0] == '[' ? memchr(url, ']', n_host) : NULL;
    const char *colon =
        memchr(end != NULL ? end : url, ':', n_host - (size_t)((end != NULL ? end : url) - url));
    const char *name_end = end != NULL ? end : colon != NULL ? colon : url + n_host;
    const char *name_begin = end != NULL ? url + 1 : url;
    snprintf(name, name_bytes, "%.*s", (int)(name_end - name_begin), name_begin);
    snprintf(port, port_bytes, "%.*s", colon != NULL ? (int)(url + n_host - colon - 1) : 2,
             colon != NULL ? colon + 1 : "80");
    if (strlen(port) > 5 || strspn(port, "0123456789") != strlen(port) || atoi(port) < 1 ||
        atoi(port) > 65535)
        return mb_fail(MB_ERR_ARGUMENT, "%.200s: the port must be a number from 1 to 65535", url);
    return MB_OK;
}

mb_status load_address_find(const char *url, load_address *address) {
    char name[256], port[256];
    const char *key = address->key;
    *address = (load_address){.key = key};
    MB_TRY(split(url, address, name, sizeof name, port, sizeof port));
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *found = NULL;
    int problem = getaddrinfo(name, port, &hints, &found);
    if (problem != 0 || found == NULL)
        return mb_fail(MB_ERR_NOT_FOUND, "%.200s: %s", url, gai_strerror(problem));
    /* localhost may be ::1 first, where a server listens on 127.0.0.1 only: the first that answers counts. */
    for (struct addrinfo *one = found; one != NULL; one = one->ai_next) {
        memcpy(&address->socket_address, one->ai_addr, one->ai_addrlen);
        address->socket_bytes = one->ai_addrlen;
        int fd = socket(one->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
        int is_there = fd >= 0 && connect(fd, one->ai_addr, one->ai_addrlen) == 0;
        if (fd >= 0)
            close(fd);
        if (is_there) {
            freeaddrinfo(found);
            return MB_OK;
        }
        problem = errno;
    }
    freeaddrinfo(found);
    return mb_fail(MB_ERR_IO, "no server answers at %s: %s", address->host, strerror(problem));
}

char *load_address_request(const load_address *address, const char *path, const char *body, size_t *n_bytes) {
    size_t n_body = body != NULL ? strlen(body) : 0;
    size_t n_key = address->key != NULL ? strlen(address->key) : 0;
    size_t capacity = 1024 + strlen(address->path) + strlen(path) + n_key + n_body;
    char *text = mb_malloc(capacity);
    if (text == NULL)
        return NULL;
    int n = snprintf(text, capacity,
                     "%s %s%s HTTP/1.1\r\nHost: %s\r\nUser-Agent: moebius-bench\r\nAccept: */*\r\n",
                     body != NULL ? "POST" : "GET", address->path, path, address->host);
    if (n_key > 0)
        n += snprintf(text + n, capacity - (size_t)n, "Authorization: Bearer %s\r\n", address->key);
    if (body != NULL)
        n += snprintf(text + n, capacity - (size_t)n,
                      "Content-Type: application/json\r\nContent-Length: %zu\r\n", n_body);
    n += snprintf(text + n, capacity - (size_t)n, "\r\n%s", body != NULL ? body : "");
    *n_bytes = (size_t)n;
    return text;
}

typedef struct text {
    char *bytes;
    size_t n_bytes, capacity;
    int failed;
} text;

static void add_text(void *context, const char *bytes, size_t n_bytes) {
    text *body = context;
    if (body->failed || body->n_bytes + n_bytes > MAX_GET_BYTES ||
        mb_grow((void **)&body->bytes, &body->capacity, body->n_bytes + n_bytes + 1, 1) != 0) {
        body->failed = 1;
        return;
    }
    memcpy(body->bytes + body->n_bytes, bytes, n_bytes);
    body->bytes[body->n_bytes += n_bytes] = 0;
}

/* Sends all and reads until the response is whole. */
static mb_status exchange(int fd, const char *request, size_t n_request, load_response *response,
                          text *body) {
    char bytes[16384];
    for (size_t sent = 0; sent < n_request;) {
        ssize_t n = send(fd, request + sent, n_request - sent, MSG_NOSIGNAL);
        if (n <= 0)
            return mb_fail(MB_ERR_IO, "%s", strerror(errno));
        sent += (size_t)n;
    }
    load_response_begin(response);
    while (response->state != LOAD_COMPLETE) {
        ssize_t n = recv(fd, bytes, sizeof bytes, 0);
        if (n < 0)
            return mb_fail(MB_ERR_IO, "%s", errno == EAGAIN ? "no answer in time" : strerror(errno));
        if (n == 0 && !load_response_end(response))
            return mb_fail(MB_ERR_IO, "the connection ended before the answer did");
        load_response_take(response, bytes, (size_t)n, add_text, body);
        if (response->problem != NULL)
            return mb_fail(MB_ERR_FORMAT, "%s", response->problem);
        if (body->failed)
            return mb_fail(MB_ERR_MEMORY, "the answer is larger than %d bytes", MAX_GET_BYTES);
    }
    return MB_OK;
}

mb_status load_address_get(const load_address *address, const char *path, int *status, char **body) {
    size_t n_request;
    text got = {0};
    load_response *response = mb_malloc(sizeof *response);
    char *request = load_address_request(address, path, NULL, &n_request);
    int fd = socket(address->socket_address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval timeout = {.tv_sec = GET_TIMEOUT_S};
    mb_status result = MB_OK;
    add_text(&got, "", 0);
    if (response == NULL || request == NULL || got.failed)
        result = mb_fail(MB_ERR_MEMORY, "a request could not be made");
    else if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout) != 0 ||
             connect(fd, (const struct sockaddr *)&address->socket_address, address->socket_bytes) != 0)
        result = mb_fail(MB_ERR_IO, "%s", strerror(errno));
    else
        result = exchange(fd, request, n_request, response, &got);
    if (result != MB_OK)
        mb_fail_context(result, "GET http://%s%s%s", address->host, address->path, path);
    else
        *status = response->status;
    if (fd >= 0)
        close(fd);
    mb_free(response);
    mb_free(request);
    if (result == MB_OK)
        *body = got.bytes;
    else
        mb_free(got.bytes);
    return result;
}
