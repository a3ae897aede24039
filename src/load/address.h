/* address.h - where a server is: http://host:port/path, resolved. */
#ifndef MB_LOAD_ADDRESS_H
#define MB_LOAD_ADDRESS_H

#include <sys/socket.h>

#include "base/status.h"

typedef struct load_address {
    char host[256]; /* as the Host header names it, with the port */
    char path[256]; /* before /v1, without a slash at the end */
    struct sockaddr_storage socket_address;
    socklen_t socket_bytes;
    const char *key; /* NULL: none is sent */
} load_address;

/* Reads "http://host:port/path" and finds the host. A "/v1" at the end is left out. */
mb_status load_address_find(const char *url, load_address *address);

/* The head of a request; body NULL: GET. mb_malloc, with the body, *n_bytes long. NULL: no memory. */
char *load_address_request(const load_address *address, const char *path, const char *body, size_t *n_bytes);

/* One GET, waited for. *status: of HTTP. *body: mb_malloc, ended by a zero. */
mb_status load_address_get(const load_address *address, const char *path, int *status, char **body);

#endif
