#define _GNU_SOURCE /* EPOLLRDHUP */
#include "server/watch.h"

#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/alloc.h"
#include "server/engine.h"

struct server_watched {
    server_watched *next, *previous;
    uint64_t id;
    int socket;
    double deadline;     /* 0: none */
    int has_left;        /* the client's side has ended */
    server_reply *reply; /* held; NULL: no request in progress */
};

struct server_watch {
    pthread_t thread;
    int has_thread;
    int poll, wake;       /* epoll and eventfd */
    pthread_mutex_t lock; /* guards all below; a socket in the list is open */
    server_watched list;  /* the head of a ring */
    uint64_t last_id;
    int is_closing;
};

enum { N_EVENTS = 64, SWEEP_MS = 500 };

/* After the client's side has ended: what it sent before may be a request that
 * libmicrohttpd has yet to read. */
static const double LEFT_S = 1;

/* ---- The thread --------------------------------------------------------------------------------------- */

/* With the lock: when the connection is overdue, if it has `timeout_s` while the client is there. */
static void set_deadline(server_watched *watched, double timeout_s) {
    watched->deadline = server_now() + (watched->has_left && timeout_s > LEFT_S ? LEFT_S : timeout_s);
}

/* The client's side of a connection has ended. Returns the connection's reply, held, or NULL. */
static server_reply *note_end(server_watch *watch, uint64_t id) {
    server_reply *reply = NULL;
    pthread_mutex_lock(&watch->lock);
    server_watched *at = watch->list.next;
    while (at != &watch->list && at->id != id)
        at = at->next;
    if (at != &watch->list) {
        at->has_left = 1;
        if (at->reply != NULL)
            server_reply_hold(reply = at->reply);
        else
            set_deadline(at, LEFT_S);
    }
    pthread_mutex_unlock(&watch->lock);
    return reply;
}

/* Shuts overdue connections down. Returns how long the next sweep can wait, in ms; -1: there are no
 * connections; -2: the watch is closed. */
static int sweep(server_watch *watch) {
    double now = server_now();
    int wait_ms = -1;
    pthread_mutex_lock(&watch->lock);
    for (server_watched *at = watch->list.next; at != &watch->list; at = at->next) {
        wait_ms = SWEEP_MS;
        if (at->deadline != 0 && at->deadline < now) {
            at->deadline = 0;
            shutdown(at->socket, SHUT_RDWR); /* libmicrohttpd then closes it */
        }
    }
    if (watch->is_closing)
        wait_ms = -2;
    pthread_mutex_unlock(&watch->lock);
    return wait_ms;
}

static void *watch_loop(void *user) {
    server_watch *watch = user;
    struct epoll_event events[N_EVENTS];
    int wait_ms;
    while ((wait_ms = sweep(watch)) >= -1) {
        int n = epoll_wait(watch->poll, events, N_EVENTS, wait_ms);
        for (int i = 0; i < n; i++) {
            uint64_t count;
            if (events[i].data.u64 == 0) {
                ssize_t ignored = read(watch->wake, &count, sizeof count);
                (void)ignored;
                continue;
            }
            server_reply *reply = note_end(watch, events[i].data.u64);
            if (reply == NULL)
                continue;
            server_reply_leave(reply);
            server_reply_drop(reply);
        }
    }
    return NULL;
}

static void wake(server_watch *watch) {
    uint64_t one = 1;
    ssize_t ignored = write(watch->wake, &one, sizeof one);
    (void)ignored;
}

/* ---- Opening ------------------------------------------------------------------------------------------ */

mb_status server_watch_open(server_watch **watch) {
    server_watch *opened = mb_calloc(1, sizeof *opened);
    *watch = NULL;
    if (opened == NULL)
        return mb_fail(MB_ERR_MEMORY, "no memory for the server");
    opened->list.next = opened->list.previous = &opened->list;
    pthread_mutex_init(&opened->lock, NULL);
    opened->poll = epoll_create1(EPOLL_CLOEXEC);
    opened->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0};
    int works = opened->poll >= 0 && opened->wake >= 0 &&
                epoll_ctl(opened->poll, EPOLL_CTL_ADD, opened->wake, &event) == 0;
    int error = errno;
    if (works && pthread_create(&opened->thread, NULL, watch_loop, opened) == 0) {
        opened->has_thread = 1;
        *watch = opened;
        return MB_OK;
    }
    server_watch_close(opened);
    return mb_fail(MB_ERR_IO, "the system cannot watch sockets: %s", strerror(error));
}

void server_watch_close(server_watch *watch) {
    if (watch == NULL)
        return;
    if (watch->has_thread) {
        pthread_mutex_lock(&watch->lock);
        watch->is_closing = 1;
        pthread_mutex_unlock(&watch->lock);
        wake(watch);
        pthread_join(watch->thread, NULL);
    }
    if (watch->poll >= 0)
        close(watch->poll);
    if (watch->wake >= 0)
        close(watch->wake);
    pthread_mutex_destroy(&watch->lock);
    mb_free(watch);
}

/* ---- Connections -------------------------------------------------------------------------------------- */

/* One event when the client's side ends, or at once when it has ended. */
static void poll_for_end(server_watch *watch, const server_watched *watched, int how) {
    struct epoll_event event = {.events = EPOLLRDHUP | EPOLLONESHOT, .data.u64 = watched->id};
    epoll_ctl(watch->poll, how, watched->socket, &event);
}

server_watched *server_watch_add(server_watch *watch, int socket, double timeout_s) {
    server_watched *watched = mb_calloc(1, sizeof *watched);
    if (watched == NULL)
        return NULL;
    watched->socket = socket;
    pthread_mutex_lock(&watch->lock);
    set_deadline(watched, timeout_s);
    watched->id = ++watch->last_id;
    watched->next = watch->list.next;
    watched->previous = &watch->list;
    watched->next->previous = watched->previous->next = watched;
    int is_first = watched->next == &watch->list;
    pthread_mutex_unlock(&watch->lock);
    poll_for_end(watch, watched, EPOLL_CTL_ADD);
    if (is_first)
        wake(watch); /* it sleeps without a limit */
    return watched;
}

void server_watch_remove(server_watch *watch, server_watched *watched) {
    epoll_ctl(watch->poll, EPOLL_CTL_DEL, watched->socket, NULL);
    pthread_mutex_lock(&watch->lock);
    watched->next->previous = watched->previous;
    watched->previous->next = watched->next;
    pthread_mutex_unlock(&watch->lock);
    mb_free(watched);
}

void server_watch_expect(server_watch *watch, server_watched *watched, double timeout_s) {
    pthread_mutex_lock(&watch->lock);
    set_deadline(watched, timeout_s);
    pthread_mutex_unlock(&watch->lock);
}

void server_watch_reply(server_watch *watch, server_watched *watched, server_reply *reply) {
    server_reply_hold(reply);
    pthread_mutex_lock(&watch->lock);
    watched->deadline = 0;
    watched->reply = reply;
    pthread_mutex_unlock(&watch->lock);
    poll_for_end(watch, watched, EPOLL_CTL_MOD); /* the end may have been seen before there was a reply */
}

void server_watch_forget(server_watch *watch, server_watched *watched, double timeout_s) {
    pthread_mutex_lock(&watch->lock);
    server_reply *reply = watched->reply;
    watched->reply = NULL;
    set_deadline(watched, timeout_s);
    pthread_mutex_unlock(&watch->lock);
    if (reply != NULL)
        server_reply_drop(reply);
}
