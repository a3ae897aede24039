/*
 * watch.h - a thread that sees clients leave and slow clients overstay.
 *
 * A suspended connection is in no poll set of libmicrohttpd, which therefore learns of a client that
 * left only at the next write. It also misses the end of a client that sent a part of a request and
 * closed before that part was read: its edge-triggered poll tells of both at once, and the read finds
 * the part alone. So the watch polls all sockets for the end of the client's side (EPOLLRDHUP), tells
 * the replies of requests in progress, and shuts the other connections down. A client that closes only
 * its sending side counts as gone, as with most servers of Python. Connections that take too long to
 * send a request are shut down, too.
 */
#ifndef MB_SERVER_WATCH_H
#define MB_SERVER_WATCH_H

#include "base/status.h"
#include "server/reply.h"

typedef struct server_watch server_watch;
typedef struct server_watched server_watched; /* one connection */

mb_status server_watch_open(server_watch **watch);
void server_watch_close(server_watch *watch); /* when no connection is left */

/* A connection begins, and is about to be closed. NULL: no memory. */
server_watched *server_watch_add(server_watch *watch, int socket, double timeout_s);
void server_watch_remove(server_watch *watch, server_watched *watched);

/* The connection is shut down when nothing else was said within timeout_s. */
void server_watch_expect(server_watch *watch, server_watched *watched, double timeout_s);
/* The request has arrived whole: no time limit, and the reply hears when the client leaves. */
void server_watch_reply(server_watch *watch, server_watched *watched, server_reply *reply);
/* The request is over; the next one may take timeout_s to arrive. */
void server_watch_forget(server_watch *watch, server_watched *watched, double timeout_s);

#endif
