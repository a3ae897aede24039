/* auth.c - API keys. */
#include <string.h>

#include "server/exchange.h"

/* 1 when equal. The time depends on the length of `given` alone, which its sender knows. */
static int is_equal(const char *given, const char *key) {
    size_t n_given = strlen(given), n_key = strlen(key);
    unsigned char difference = n_given != n_key;
    for (size_t i = 0; i < n_given; i++)
        difference |= (unsigned char)(given[i] ^ key[n_key > 0 ? i % n_key : 0]);
    return difference == 0;
}

static const char *header(struct MHD_Connection *connection, const char *name) {
    return MHD_lookup_connection_value(connection, MHD_HEADER_KIND, name);
}

/* OpenAI's clients send a bearer token, Anthropic's X-Api-Key. */
int server_find_key(const mb_server *server, struct MHD_Connection *connection) {
    static const char bearer[] = "Bearer ";
    const char *given = header(connection, "X-Api-Key");
    const char *authorization = header(connection, "Authorization");
    int found = 0;
    if (server->keys == NULL)
        return 1;
    if (authorization != NULL && strncasecmp(authorization, bearer, sizeof bearer - 1) == 0)
        given = authorization + sizeof bearer - 1;
    if (given == NULL || *given == '\0')
        return 0;
    for (int i = 0; server->keys[i] != NULL; i++) /* all of them: which one fits takes no other time */
        if (is_equal(given, server->keys[i]))
            found = i + 1;
    return found;
}
