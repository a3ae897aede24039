#include "server/reply.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"

typedef enum phase { NOTHING, WHOLE, STREAM } phase;

enum { MAX_HEADERS = 4 };

struct server_reply {
    pthread_mutex_t lock;
    int n_held;
    server_reply_listener listener;
    server_reply_done done; /* NULL: a connection waits for the reply */
    void *done_user;
    struct MHD_Connection *connection; /* NULL after detach */
    int suspended, gone, ended;
    phase phase;
    int status, retry_after_s;
    const char *content_type;
    server_problem_writer write_problem;
    struct {
        const char *name, *value;
    } headers[MAX_HEADERS];
    int n_headers;
    server_text text; /* a stream: from n_taken on, what is not sent yet */
    size_t n_taken, n_sent;
};

enum { ENOUGH_ROOM = 64 * 1024 }; /* a stream whose unread part shrinks below it is news */

server_reply *server_reply_open(struct MHD_Connection *connection) {
    server_reply *reply = mb_calloc(1, sizeof *reply);
    if (reply == NULL)
        return NULL;
    if (pthread_mutex_init(&reply->lock, NULL) != 0) {
        mb_free(reply);
        return NULL;
    }
    reply->n_held = 1;
    reply->connection = connection;
    reply->write_problem = server_problem_write;
    return reply;
}

server_reply *server_reply_open_offline(server_reply_done done, void *user) {
    server_reply *reply = server_reply_open(NULL);
    if (reply != NULL) {
        reply->done = done;
        reply->done_user = user;
    }
    return reply;
}

void server_reply_hold(server_reply *reply) {
    pthread_mutex_lock(&reply->lock);
    reply->n_held++;
    pthread_mutex_unlock(&reply->lock);
}

void server_reply_drop(server_reply *reply) {
    pthread_mutex_lock(&reply->lock);
    int is_last = --reply->n_held == 0;
    pthread_mutex_unlock(&reply->lock);
    if (!is_last)
        return;
    server_text_free(&reply->text);
    pthread_mutex_destroy(&reply->lock);
    mb_free(reply);
}

/* With the lock: lets the HTTP thread look again. */
static void resume(server_reply *reply) {
    if (!reply->suspended || reply->connection == NULL)
        return;
    reply->suspended = 0;
    MHD_resume_connection(reply->connection);
}

/* With the lock. */
static void suspend(server_reply *reply) {
    reply->suspended = 1;
    MHD_suspend_connection(reply->connection);
}

static void tell(const server_reply_listener *listener) {
    if (listener->news != NULL)
        listener->news(listener->user);
}

/* ---- Who answers -------------------------------------------------------------------------------------- */

void server_reply_listen(server_reply *reply, const server_reply_listener *listener) {
    pthread_mutex_lock(&reply->lock);
    reply->listener = *listener;
    pthread_mutex_unlock(&reply->lock);
}

void server_reply_problem_writer(server_reply *reply, server_problem_writer writer) {
    pthread_mutex_lock(&reply->lock);
    reply->write_problem = writer;
    pthread_mutex_unlock(&reply->lock);
}

void server_reply_header(server_reply *reply, const char *name, const char *value) {
    pthread_mutex_lock(&reply->lock);
    if (reply->n_headers < MAX_HEADERS) {
        reply->headers[reply->n_headers].name = name;
        reply->headers[reply->n_headers++].value = value;
    }
    pthread_mutex_unlock(&reply->lock);
}

static void put_whole(server_reply *reply, int status, int retry_after_s, const char *content_type,
                      server_text *text) {
    server_text taken = {0};
    pthread_mutex_lock(&reply->lock);
    int is_first = reply->phase == NOTHING;
    if (is_first) {
        reply->phase = WHOLE;
        reply->status = text->failed ? 503 : status;
        reply->retry_after_s = retry_after_s;
        reply->content_type = content_type;
        reply->ended = 1;
        if (!text->failed) {
            reply->text = *text;
            *text = (server_text){0};
        }
        if (reply->done != NULL) {
            taken = reply->text;
            reply->text = (server_text){0};
        }
        resume(reply);
    }
    pthread_mutex_unlock(&reply->lock);
    server_text_free(text);
    if (is_first && reply->done != NULL)
        reply->done(reply->done_user, reply->status, taken.bytes, taken.n_bytes);
}

void server_reply_whole(server_reply *reply, int status, const char *content_type, server_text *text) {
    put_whole(reply, status, 0, content_type, text);
}

void server_reply_problem(server_reply *reply, const server_problem *problem) {
    server_text text = {0};
    pthread_mutex_lock(&reply->lock);
    server_problem_writer write = reply->write_problem;
    pthread_mutex_unlock(&reply->lock);
    write(problem, &text);
    put_whole(reply, problem->status, problem->retry_after_s, "application/json", &text);
}

void server_reply_stream(server_reply *reply, const char *content_type) {
    pthread_mutex_lock(&reply->lock);
    if (reply->phase == NOTHING) {
        reply->phase = STREAM;
        reply->status = 200;
        reply->content_type = content_type;
        resume(reply);
    }
    pthread_mutex_unlock(&reply->lock);
}

void server_reply_write(server_reply *reply, const char *bytes, size_t n_bytes) {
    pthread_mutex_lock(&reply->lock);
    if (!reply->gone && !reply->ended && n_bytes > 0) {
        if (reply->n_taken > 0) {
            server_text_drop(&reply->text, reply->n_taken);
            reply->n_taken = 0;
        }
        server_text_put(&reply->text, bytes, n_bytes);
        resume(reply);
    }
    pthread_mutex_unlock(&reply->lock);
}

void server_reply_end(server_reply *reply) {
    pthread_mutex_lock(&reply->lock);
    reply->ended = 1;
    resume(reply);
    pthread_mutex_unlock(&reply->lock);
}

int server_reply_gone(server_reply *reply) {
    pthread_mutex_lock(&reply->lock);
    int gone = reply->gone;
    pthread_mutex_unlock(&reply->lock);
    return gone;
}

size_t server_reply_unread(server_reply *reply) {
    pthread_mutex_lock(&reply->lock);
    size_t unread = reply->text.n_bytes - reply->n_taken;
    pthread_mutex_unlock(&reply->lock);
    return unread;
}

/* ---- The HTTP thread ---------------------------------------------------------------------------------- */

int server_reply_poll(server_reply *reply) {
    pthread_mutex_lock(&reply->lock);
    int found = reply->gone               ? SERVER_REPLY_GONE
                : reply->phase != NOTHING ? SERVER_REPLY_READY
                                          : SERVER_REPLY_WAIT;
    if (found == SERVER_REPLY_WAIT)
        suspend(reply);
    pthread_mutex_unlock(&reply->lock);
    return found;
}

/* MHD asks for up to `room` bytes of a stream. */
static ssize_t read_stream(void *user, uint64_t position, char *buffer, size_t room) {
    server_reply *reply = user;
    server_reply_listener listener = {0};
    ssize_t taken;
    (void)position;
    pthread_mutex_lock(&reply->lock);
    size_t unread = reply->text.n_bytes - reply->n_taken;
    if (reply->gone || reply->text.failed) {
        taken = MHD_CONTENT_READER_END_WITH_ERROR;
    } else if (unread > 0) {
        taken = (ssize_t)(unread < room ? unread : room);
        memcpy(buffer, reply->text.bytes + reply->n_taken, (size_t)taken);
        reply->n_taken += (size_t)taken;
        reply->n_sent += (size_t)taken;
        if (unread >= ENOUGH_ROOM && unread - (size_t)taken < ENOUGH_ROOM)
            listener = reply->listener;
    } else if (reply->ended) {
        taken = MHD_CONTENT_READER_END_OF_STREAM;
    } else {
        suspend(reply);
        taken = 0;
    }
    pthread_mutex_unlock(&reply->lock);
    tell(&listener);
    return taken;
}

static void end_stream(void *user) {
    server_reply_drop(user);
}

static struct MHD_Response *make_response(server_reply *reply) {
    if (reply->phase == STREAM) {
        reply->n_held++;
        struct MHD_Response *response =
            MHD_create_response_from_callback(MHD_SIZE_UNKNOWN, 32 * 1024, read_stream, reply, end_stream);
        if (response == NULL)
            reply->n_held--;
        return response;
    }
    reply->n_sent = reply->text.n_bytes;
    return MHD_create_response_from_buffer(reply->text.n_bytes, reply->text.bytes, MHD_RESPMEM_MUST_COPY);
}

enum MHD_Result server_reply_queue(server_reply *reply, int close_connection) {
    char seconds[16];
    enum MHD_Result result = MHD_NO;
    pthread_mutex_lock(&reply->lock);
    struct MHD_Response *response = make_response(reply);
    int status = reply->status, retry_after_s = reply->retry_after_s, is_stream = reply->phase == STREAM;
    const char *content_type = reply->content_type;
    if (!is_stream)
        server_text_free(&reply->text);
    pthread_mutex_unlock(&reply->lock);
    if (response == NULL)
        return MHD_NO;
    MHD_add_response_header(response, "Content-Type", content_type);
    if (is_stream) {
        MHD_add_response_header(response, "Cache-Control", "no-cache");
        MHD_add_response_header(response, "X-Accel-Buffering", "no"); /* nginx would keep events back */
    }
    if (retry_after_s > 0) {
        snprintf(seconds, sizeof seconds, "%d", retry_after_s);
        MHD_add_response_header(response, "Retry-After", seconds);
    }
    for (int i = 0; i < reply->n_headers; i++)
        MHD_add_response_header(response, reply->headers[i].name, reply->headers[i].value);
    if (status == 401)
        MHD_add_response_header(response, "WWW-Authenticate", "Bearer");
    if (close_connection)
        MHD_add_response_header(response, "Connection", "close");
    result = MHD_queue_response(reply->connection, (unsigned)status, response);
    MHD_destroy_response(response);
    return result;
}

int server_reply_status(server_reply *reply) {
    pthread_mutex_lock(&reply->lock);
    int status = reply->status;
    pthread_mutex_unlock(&reply->lock);
    return status;
}

size_t server_reply_sent(server_reply *reply) {
    pthread_mutex_lock(&reply->lock);
    size_t n_sent = reply->n_sent;
    pthread_mutex_unlock(&reply->lock);
    return n_sent;
}

void server_reply_leave(server_reply *reply) {
    pthread_mutex_lock(&reply->lock);
    server_reply_listener listener = reply->listener;
    reply->gone = 1;
    resume(reply);
    pthread_mutex_unlock(&reply->lock);
    tell(&listener);
}

void server_reply_detach(server_reply *reply) {
    pthread_mutex_lock(&reply->lock);
    server_reply_listener listener = reply->listener;
    int was_gone = reply->gone;
    reply->connection = NULL;
    reply->gone = 1;
    pthread_mutex_unlock(&reply->lock);
    if (!was_gone)
        tell(&listener);
}
