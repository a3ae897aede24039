/*
 * reply.h - the mailbox between who answers a request and the HTTP thread that sends the answer.
 *
 * While there is nothing to send, the connection is suspended: it costs no thread and is in no poll set.
 * Whoever answers puts a whole reply in, or begins a stream and writes to it, from any thread; the
 * connection is then resumed. A client that leaves makes the reply "gone": what is put in is dropped, and
 * who answers finds out with server_reply_gone. A reply lives as long as somebody holds it.
 */
#ifndef MB_SERVER_REPLY_H
#define MB_SERVER_REPLY_H

#include <microhttpd.h>
#include <pthread.h>

#include "server/problem.h"
#include "server/text.h"

typedef struct server_reply server_reply;

/* Called when a reply's client has left, or has read so much of a stream that there is room again. Any
 * thread; must not call back into the reply. */
typedef struct server_reply_listener {
    void (*news)(void *user);
    void *user;
} server_reply_listener;

server_reply *server_reply_open(struct MHD_Connection *connection); /* held once; NULL: no memory */
/* A reply that no connection waits for. The whole reply goes to `done`, once, on the thread that
 * puts it in; the bytes (mb_malloc) are the callee's, and NULL when there was no memory for them.
 * It cannot be a stream. */
typedef void (*server_reply_done)(void *user, int status, char *bytes, size_t n_bytes);
server_reply *server_reply_open_offline(server_reply_done done, void *user);
void server_reply_hold(server_reply *reply);
void server_reply_drop(server_reply *reply);

/* ---- Who answers -------------------------------------------------------------------------------------- */

/* Before anything is put in. */
void server_reply_listen(server_reply *reply, const server_reply_listener *listener);

/* How problems are written in place of server_problem_write, before anything is put in. */
typedef void (*server_problem_writer)(const server_problem *problem, server_text *text);
void server_reply_problem_writer(server_reply *reply, server_problem_writer writer);

/* A header of the reply, before anything is put in; both are literals. */
void server_reply_header(server_reply *reply, const char *name, const char *value);

/* The whole reply; the text is taken over. content_type is a literal. */
void server_reply_whole(server_reply *reply, int status, const char *content_type, server_text *text);
void server_reply_problem(server_reply *reply, const server_problem *problem);

void server_reply_stream(server_reply *reply, const char *content_type); /* status 200 */
void server_reply_write(server_reply *reply, const char *bytes, size_t n_bytes);
void server_reply_end(server_reply *reply);

int server_reply_gone(server_reply *reply);
/* What the client has not read yet of a stream. */
size_t server_reply_unread(server_reply *reply);

/* ---- The HTTP thread ---------------------------------------------------------------------------------- */

enum { SERVER_REPLY_WAIT, SERVER_REPLY_READY, SERVER_REPLY_GONE };

/* In the access handler: READY when the response can be queued; WAIT: the connection was suspended; GONE:
 * close the connection. */
int server_reply_poll(server_reply *reply);
/* Queues the response, after READY. */
enum MHD_Result server_reply_queue(server_reply *reply, int close_connection);
int server_reply_status(server_reply *reply);
size_t server_reply_sent(server_reply *reply); /* bytes of body handed to the connection */

/* The client has left: seen by the watch, on any thread. */
void server_reply_leave(server_reply *reply);
/* The request is over for HTTP: the connection must not be touched any more. */
void server_reply_detach(server_reply *reply);

#endif
