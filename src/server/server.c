#include "server/server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/log.h"
#include "server/exchange.h"

enum {
    N_HTTP_THREADS = 2,
    MIN_WORKERS = 2,
    MAX_WORKERS = 8,
    MAX_CONNECTIONS = 8192,
    SPARE_FILES = 64,
    CONNECTION_MEMORY = 64 * 1024, /* headers, and a piece of body or reply at a time */
    LISTEN_BACKLOG = 1024,
    SEND_BUFFER = 256 * 1024,
};

/* ---- Connections -------------------------------------------------------------------------------------- */

static void on_connection(void *user, struct MHD_Connection *connection, void **context,
                          enum MHD_ConnectionNotificationCode code) {
    mb_server *server = user;
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    if (code != MHD_CONNECTION_NOTIFY_STARTED) {
        if (*context != NULL)
            server_watch_remove(server->watch, *context);
        return;
    }
    if (info == NULL)
        return;                   /* the first request closes a connection without context */
    int send_bytes = SEND_BUFFER; /* else the system keeps megabytes for a client that does not read */
    setsockopt(info->connect_fd, SOL_SOCKET, SO_SNDBUF, &send_bytes, sizeof send_bytes);
    *context = server_watch_add(server->watch, info->connect_fd, server->settings.receive_timeout_s);
}

__attribute__((format(printf, 2, 0))) static void on_log(void *user, const char *format, va_list arguments) {
    char line[512];
    (void)user;
    vsnprintf(line, sizeof line, format, arguments);
    line[strcspn(line, "\n")] = '\0';
    mb_log(MB_LOG_DEBUG, "http: %s", line);
}

/* Paths are compared as they are sent: no path has a character that needs an escape. */
static size_t keep_escapes(void *user, struct MHD_Connection *connection, char *text) {
    (void)user;
    (void)connection;
    return strlen(text);
}

/* As many as the process may have files for. */
static unsigned connection_limit(void) {
    struct rlimit files;
    if (getrlimit(RLIMIT_NOFILE, &files) != 0)
        return 512;
    files.rlim_cur =
        files.rlim_max < MAX_CONNECTIONS + SPARE_FILES ? files.rlim_max : MAX_CONNECTIONS + SPARE_FILES;
    setrlimit(RLIMIT_NOFILE, &files);
    getrlimit(RLIMIT_NOFILE, &files);
    return files.rlim_cur > 2 * SPARE_FILES ? (unsigned)(files.rlim_cur - SPARE_FILES) : SPARE_FILES;
}

static mb_status resolve(const char *host, int port, struct addrinfo **address) {
    char service[16];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    snprintf(service, sizeof service, "%d", port);
    int error = getaddrinfo(host, service, &hints, address);
    if (error != 0)
        return mb_fail(MB_ERR_ARGUMENT, "the address \"%.200s\" is not known: %s", host, gai_strerror(error));
    return MB_OK;
}

static const char *cannot_listen(int error) {
    switch (error) {
    case EADDRINUSE:
        return "another program uses the port; choose another with --port";
    case EADDRNOTAVAIL:
        return "this machine does not have the address; see --host";
    case EACCES:
        return "this user may not use the port; choose one above 1023 with --port";
    default:
        return error != 0 ? strerror(error) : "the HTTP library refuses";
    }
}

static mb_status listen_on(mb_server *server) {
    struct addrinfo *address;
    const server_settings *settings = &server->settings;
    unsigned limit = connection_limit();
    MB_TRY(resolve(settings->host, settings->port, &address));
    unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG;
    if (address->ai_family == AF_INET6)
        flags |= MHD_USE_DUAL_STACK; /* "::" is every address, those of IPv4 too */
    errno = 0;
    server->daemon =
        MHD_start_daemon(flags, (uint16_t)settings->port, NULL, NULL, server_handle, server, /* */
                         MHD_OPTION_EXTERNAL_LOGGER, on_log, NULL, /* first: it reports the others */
                         MHD_OPTION_SOCK_ADDR, address->ai_addr,   /* */
                         MHD_OPTION_THREAD_POOL_SIZE, (unsigned)N_HTTP_THREADS,                      /* */
                         MHD_OPTION_CONNECTION_LIMIT, limit,                                         /* */
                         MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_MEMORY,              /* */
                         MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)(settings->receive_timeout_s + 1), /* */
                         MHD_OPTION_LISTEN_BACKLOG_SIZE, (unsigned)LISTEN_BACKLOG,                   /* */
                         MHD_OPTION_UNESCAPE_CALLBACK, keep_escapes, NULL,                           /* */
                         MHD_OPTION_NOTIFY_COMPLETED, server_exchange_over, server,                  /* */
                         MHD_OPTION_NOTIFY_CONNECTION, on_connection, server, MHD_OPTION_END);
    int why = errno;
    freeaddrinfo(address);
    if (server->daemon == NULL)
        return mb_fail(MB_ERR_IO, "cannot listen on %.200s port %d: %s", settings->host, settings->port,
                       cannot_listen(why));
    const union MHD_DaemonInfo *info = MHD_get_daemon_info(server->daemon, MHD_DAEMON_INFO_BIND_PORT);
    server->port = info != NULL ? info->port : settings->port;
    return MB_OK;
}

/* ---- Opening ------------------------------------------------------------------------------------------ */

static char **copy_list(const char *const *list) {
    size_t n = 0;
    while (list[n] != NULL)
        n++;
    char **copy = mb_calloc(n + 1, sizeof *copy);
    for (size_t i = 0; i < n && copy != NULL; i++) {
        copy[i] = mb_strdup(list[i]);
        if (copy[i] == NULL) {
            while (i-- > 0)
                mb_free(copy[i]);
            mb_free(copy);
            return NULL;
        }
    }
    return copy;
}

static void free_list(char **list) {
    for (size_t i = 0; list != NULL && list[i] != NULL; i++)
        mb_free(list[i]);
    mb_free(list);
}

static int n_workers(void) {
    long n_cores = sysconf(_SC_NPROCESSORS_ONLN);
    return n_cores < 2 * MIN_WORKERS   ? MIN_WORKERS
           : n_cores > 2 * MAX_WORKERS ? MAX_WORKERS
                                       : (int)n_cores / 2;
}

static mb_status open_parts(mb_server *server, mb_model *model, const server_settings *settings) {
    mb_model_info info;
    mb_model_get_info(model, &info);
    server->names = copy_list(settings->names);
    server->keys = settings->keys != NULL ? copy_list(settings->keys) : NULL;
    if (server->names == NULL || (settings->keys != NULL && server->keys == NULL))
        return mb_fail(MB_ERR_MEMORY, "no memory for the server");
    MB_TRY(server_engine_open(&server->engine, model, &settings->session, info.max_positions));
    server->has_engine = 1;
    server_reading_init(&server->reading, model, server->engine.session, (const char *const *)server->names,
                        settings->max_model_len);
    server->reading.formats = settings->formats;
    MB_TRY(server_watch_open(&server->watch));
    MB_TRY(server_workers_open(n_workers(), &server->workers));
    return listen_on(server);
}

mb_status server_open(mb_model *model, const server_settings *settings, mb_server **opened) {
    mb_server *made = mb_calloc(1, sizeof *made);
    *opened = NULL;
    if (made == NULL)
        return mb_fail(MB_ERR_MEMORY, "no memory for the server");
    made->settings = *settings;
    mb_session_options *session =
        &made->settings.session; /* the server's queue is full before the session's */
    int32_t most = session->max_sequences + settings->max_queue + SERVER_MAX_ANSWERS;
    if (session->max_queued < most)
        session->max_queued = most;
    made->created = (int64_t)time(NULL);
    mb_status status = open_parts(made, model, &made->settings);
    if (status != MB_OK) {
        server_close(made);
        return status;
    }
    *opened = made;
    return MB_OK;
}

int server_port(const mb_server *server) {
    return server->port;
}

void server_memory(const mb_server *server, mb_session_memory *memory) {
    mb_session_get_memory(server->engine.session, memory);
}

void server_begin_shutdown(mb_server *server) {
    atomic_store(&server->is_stopping, 1);
}

int server_is_idle(mb_server *server) {
    return atomic_load(&server->n_exchanges) == 0 && atomic_load(&server->engine.n_places) == 0;
}

void server_end_requests(mb_server *server) {
    server_engine_abort(&server->engine);
}

/* libmicrohttpd must not be stopped while connections are suspended. So first everything that answers
 * ends, in the order in which a request travels; then every reply has something in it, and its
 * connection is awake. */
void server_close(mb_server *server) {
    if (server == NULL)
        return;
    atomic_store(&server->is_stopping, 1);
    server_workers_stop(server->workers);
    if (server->has_engine)
        server_engine_stop(&server->engine);
    if (server->daemon != NULL)
        MHD_stop_daemon(server->daemon);
    server_workers_close(server->workers); /* until now a body that came late could be given to them */
    server_watch_close(server->watch);
    if (server->has_engine)
        server_engine_close(&server->engine);
    free_list(server->names);
    free_list(server->keys);
    mb_free(server);
}
