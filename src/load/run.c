#include "load/run.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "load/events.h"
#include "load/response.h"

enum { READ_BYTES = 65536, MAX_EVENTS = 256, MAX_ERROR_BODY = 4096 };

typedef enum state { CLOSED, CONNECTING, SENDING, READING, IDLE } state;

typedef struct connection {
    state state;
    int fd;
    int32_t i_request;
    int was_idle; /* the server may have closed it meanwhile: then the request is sent again */
    char *request;
    size_t n_request, n_sent;
    double last_s; /* of the last part of the answer; 0 before the first */
    int64_t n_parts;
    int is_done, has_usage;
    size_t n_error_body;
    char error_body[MAX_ERROR_BODY];
    load_events events;
    load_response response;
} connection;

typedef struct runner {
    const load_address *address;
    const load_plan_options *plan;
    const load_run_options *options;
    load_measured *measured;
    load_planned *planned;
    connection **connections; /* grows; one that is not in use is kept for the next request */
    size_t n_connections, capacity;
    size_t gaps_capacity;
    int epoll, timer;
    double start_s, now_s; /* now_s: after the start, of the last wake-up */
    int32_t n_begun, n_running, n_done;
    double last_first_s, first_end_s; /* ends of the steady time */
    int32_t n_first;
    int64_t n_parts, n_parts_at_last_first, n_parts_at_first_end;
    int no_memory;
    connection *current; /* whose bytes are read */
    char bytes[READ_BYTES];
} runner;

static double seconds_of(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static load_result *result_of(runner *run, const connection *one) {
    return &run->measured->results[one->i_request];
}

/* ---- The end of a request */

static void close_connection(runner *run, connection *one) {
    if (one->fd >= 0) {
        epoll_ctl(run->epoll, EPOLL_CTL_DEL, one->fd, NULL);
        close(one->fd);
    }
    one->fd = -1;
    one->state = CLOSED;
}

static void end_request(runner *run, connection *one, const char *problem) {
    load_result *result = result_of(run, one);
    mb_free(one->request);
    one->request = NULL;
    result->whole_s = run->now_s - run->planned[one->i_request].at_s;
    if (!one->has_usage)
        result->n_output = one->n_parts;
    if (one->n_parts == 0)
        result->first_s = result->whole_s; /* an answer of special tokens alone has no text */
    result->failed = problem != NULL;
    snprintf(result->message, sizeof result->message, "%s", problem != NULL ? problem : "");
    if (run->first_end_s == 0) {
        run->first_end_s = run->now_s;
        run->n_parts_at_first_end = run->n_parts;
    }
    run->n_running--;
    run->n_done++;
    if (problem == NULL && one->response.keeps_alive && one->response.state == LOAD_COMPLETE)
        one->state = IDLE;
    else
        close_connection(run, one);
}

/* ---- The answer */

static void take_part(runner *run, connection *one) {
    load_result *result = result_of(run, one);
    if (one->n_parts++ == 0) {
        result->first_s = run->now_s - run->planned[one->i_request].at_s;
        if (run->first_end_s == 0) {
            run->last_first_s = run->now_s;
            run->n_first++;
            run->n_parts_at_last_first = run->n_parts + 1;
        }
    } else if (mb_grow((void **)&run->measured->gaps_s, &run->gaps_capacity, run->measured->n_gaps + 1,
                       sizeof(double)) == 0) {
        run->measured->gaps_s[run->measured->n_gaps++] = run->now_s - one->last_s;
    } else {
        run->no_memory = 1;
    }
    one->last_s = run->now_s;
    run->n_parts++;
}

static void take_event(void *context, const char *data, size_t n_bytes) {
    runner *run = context;
    connection *one = run->current;
    load_result *result = result_of(run, one);
    load_chunk chunk;
    load_chunk_read(data, n_bytes, &chunk);
    if (chunk.has_text)
        take_part(run, one);
    if (chunk.has_usage) {
        one->has_usage = 1;
        result->n_prompt = chunk.n_prompt;
        result->n_cached = chunk.n_cached;
        result->n_output = chunk.n_output;
    }
    one->is_done |= chunk.is_done;
    if (chunk.is_error)
        snprintf(result->message, sizeof result->message, "%s", chunk.message);
}

static void take_body(void *context, const char *bytes, size_t n_bytes) {
    runner *run = context;
    connection *one = run->current;
    if (one->response.status == 200) {
        load_events_take(&one->events, bytes, n_bytes, take_event, run);
        return;
    }
    size_t room = sizeof one->error_body - one->n_error_body;
    size_t n = n_bytes < room ? n_bytes : room;
    memcpy(one->error_body + one->n_error_body, bytes, n);
    one->n_error_body += n;
}

/* The response is whole: what is wrong with it, or NULL. */
static const char *problem_of(runner *run, connection *one, char *text, size_t capacity) {
    char message[200];
    load_result *result = result_of(run, one);
    if (one->response.status != 200) {
        load_error_message(one->error_body, one->n_error_body, message, sizeof message);
        snprintf(text, capacity, "status %d%s%s", one->response.status, message[0] != 0 ? ": " : "", message);
        return text;
    }
    if (result->message[0] != 0) {
        snprintf(text, capacity, "%s", result->message);
        return text;
    }
    if (one->events.failed)
        return "an event is too long";
    return one->is_done ? NULL : "the stream ended without [DONE]";
}

/* ---- Connections */

static void watch(runner *run, connection *one, uint32_t events, int operation) {
    struct epoll_event event = {.events = events, .data.ptr = one};
    epoll_ctl(run->epoll, operation, one->fd, &event);
}

static int open_connection(runner *run, connection *one) {
    int yes = 1;
    one->fd = socket(run->address->socket_address.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (one->fd < 0)
        return -1;
    setsockopt(one->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (connect(one->fd, (const struct sockaddr *)&run->address->socket_address,
                run->address->socket_bytes) != 0 &&
        errno != EINPROGRESS)
        return -1;
    one->state = CONNECTING;
    one->was_idle = 0;
    watch(run, one, EPOLLOUT, EPOLL_CTL_ADD);
    return 0;
}

/* Reads until nothing is left for now. */
static void read_some(runner *run, connection *one) {
    char text[300];
    ssize_t n = recv(one->fd, run->bytes, sizeof run->bytes, 0);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (one->state != READING) { /* idle: the server closes it, or breaks the protocol */
        close_connection(run, one);
        return;
    }
    if (n <= 0 && one->was_idle && one->response.state == LOAD_STATUS_LINE && one->response.n_line == 0) {
        one->n_sent = 0;
        close_connection(run, one);
        if (open_connection(run, one) != 0)
            end_request(run, one, strerror(errno));
        return;
    }
    run->current = one;
    if (n > 0)
        load_response_take(&one->response, run->bytes, (size_t)n, take_body, run);
    if (one->response.problem != NULL)
        end_request(run, one, one->response.problem);
    else if (one->response.state == LOAD_COMPLETE || (n == 0 && load_response_end(&one->response)))
        end_request(run, one, problem_of(run, one, text, sizeof text));
    else if (n <= 0)
        end_request(run, one, n == 0 ? "the connection ended before the answer did" : strerror(errno));
}

static void send_some(runner *run, connection *one) {
    if (one->state == CONNECTING) {
        int problem = 0;
        socklen_t n = sizeof problem;
        getsockopt(one->fd, SOL_SOCKET, SO_ERROR, &problem, &n);
        if (problem != 0) {
            end_request(run, one, strerror(problem));
            return;
        }
    }
    one->state = SENDING;
    while (one->n_sent < one->n_request) {
        ssize_t n = send(one->fd, one->request + one->n_sent, one->n_request - one->n_sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) {
            watch(run, one, EPOLLOUT, EPOLL_CTL_MOD);
            return;
        }
        if (n < 0)
            break; /* the server may have answered and closed: what it said is read */
        one->n_sent += (size_t)n;
    }
    one->state = READING;
    watch(run, one, EPOLLIN, EPOLL_CTL_MOD);
}

/* A connection that is idle, or a new one. NULL: no memory. */
static connection *free_connection(runner *run) {
    connection *closed = NULL;
    for (size_t i = 0; i < run->n_connections; i++) {
        if (run->connections[i]->state == IDLE)
            return run->connections[i];
        if (run->connections[i]->state == CLOSED)
            closed = run->connections[i];
    }
    if (closed != NULL)
        return closed;
    if (mb_grow((void **)&run->connections, &run->capacity, run->n_connections + 1,
                sizeof *run->connections) != 0)
        return NULL;
    connection *one = mb_calloc(1, sizeof *one);
    if (one == NULL)
        return NULL;
    one->fd = -1;
    run->connections[run->n_connections++] = one;
    return one;
}

static void begin_request(runner *run) {
    int32_t i = run->n_begun;
    connection *one = free_connection(run);
    char *body = one != NULL ? load_plan_body(run->plan, &run->planned[i], i) : NULL;
    if (body != NULL)
        one->request = load_address_request(run->address, load_endpoint_path(run->plan->endpoint), body,
                                            &one->n_request);
    mb_free(body);
    if (one == NULL || one->request == NULL) {
        run->no_memory = 1;
        return;
    }
    if (run->plan->rate <= 0) /* as many at a time as may: a request arrives when it is its turn */
        run->planned[i].at_s = run->now_s;
    run->n_begun++;
    run->n_running++;
    run->measured->n_results++;
    run->measured->results[i] =
        (load_result){.begun_s = run->planned[i].at_s, .n_prompt = run->planned[i].n_prompt};
    one->i_request = i;
    one->n_sent = 0;
    one->n_parts = 0;
    one->n_error_body = 0;
    one->is_done = one->has_usage = 0;
    one->events.n_bytes = 0;
    one->events.failed = 0;
    load_response_begin(&one->response);
    if (one->state == IDLE) {
        one->was_idle = 1;
        send_some(run, one);
    } else if (open_connection(run, one) != 0) {
        end_request(run, one, strerror(errno));
    }
}

/* ---- The loop */

static int may_begin(const runner *run) {
    return run->n_begun < run->plan->n_requests && !run->no_memory &&
           (run->options->concurrency == 0 || run->n_running < run->options->concurrency);
}

/* Lets the timer wake the loop at the next arrival, and ten times a second for the limits. */
static void set_timer(runner *run) {
    double after = 0.1;
    if (may_begin(run) && run->planned[run->n_begun].at_s - run->now_s < after)
        after = run->planned[run->n_begun].at_s - run->now_s;
    if (after < 1e-6)
        after = 1e-6;
    struct itimerspec when = {.it_value = {.tv_nsec = (long)(after * 1e9)}};
    timerfd_settime(run->timer, 0, &when, NULL);
}

static void end_late_requests(runner *run) {
    for (size_t i = 0; i < run->n_connections; i++) {
        connection *one = run->connections[i];
        if (one->state != CLOSED && one->state != IDLE &&
            run->now_s - run->planned[one->i_request].at_s > run->options->timeout_s)
            end_request(run, one, "no whole answer in time");
    }
}

static void handle(runner *run, const struct epoll_event *event) {
    connection *one = event->data.ptr;
    if (one == NULL) {
        uint64_t n;
        if (read(run->timer, &n, sizeof n) < 0)
            return;
    } else if (one->state == CONNECTING || one->state == SENDING) {
        send_some(run, one);
    } else if (one->state == READING || one->state == IDLE) {
        read_some(run, one);
    }
}

static void loop(runner *run) {
    struct epoll_event events[MAX_EVENTS];
    double reported_s = 0;
    while ((run->n_begun < run->plan->n_requests && !run->no_memory) || run->n_running > 0) {
        run->now_s = seconds_of(CLOCK_MONOTONIC) - run->start_s;
        if (run->options->is_stopped()) {
            run->measured->was_stopped = 1;
            return;
        }
        while (may_begin(run) && run->planned[run->n_begun].at_s <= run->now_s)
            begin_request(run);
        if (run->now_s - reported_s > 0.2) {
            reported_s = run->now_s;
            run->options->report(run->n_done, run->plan->n_requests);
            end_late_requests(run);
        }
        set_timer(run);
        int n = epoll_wait(run->epoll, events, MAX_EVENTS, -1);
        run->now_s = seconds_of(CLOCK_MONOTONIC) - run->start_s;
        for (int i = 0; i < n; i++)
            handle(run, &events[i]);
    }
}

static double cpu_seconds(void) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    return (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) +
           1e-6 * (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
}

static void finish(runner *run) {
    load_measured *measured = run->measured;
    measured->duration_s = run->now_s;
    int32_t n_at_once = run->options->concurrency > 0 ? run->options->concurrency : run->plan->n_requests;
    double steady_s = run->first_end_s - run->last_first_s;
    if (run->n_first >= n_at_once && steady_s > 0)
        measured->steady_tok_s = (double)(run->n_parts_at_first_end - run->n_parts_at_last_first) / steady_s;
    for (size_t i = 0; i < run->n_connections; i++) {
        connection *one = run->connections[i];
        mb_free(one->request);
        load_events_free(&one->events);
        if (one->fd >= 0)
            close(one->fd);
        if (measured->was_stopped && one->state != IDLE && one->state != CLOSED)
            measured->results[one->i_request].failed = 1;
        mb_free(one);
    }
    mb_free(run->connections);
    if (run->epoll >= 0)
        close(run->epoll);
    if (run->timer >= 0)
        close(run->timer);
}

mb_status load_run(const load_address *address, const load_plan_options *plan,
                   const load_run_options *options, load_measured *measured) {
    *measured = (load_measured){0};
    runner *run = mb_calloc(1, sizeof *run);
    if (run == NULL)
        return mb_fail(MB_ERR_MEMORY, "the load generator could not allocate its state");
    run->address = address;
    run->plan = plan;
    run->options = options;
    run->measured = measured;
    run->planned = mb_malloc_array((size_t)plan->n_requests, sizeof *run->planned);
    measured->results = mb_calloc((size_t)plan->n_requests, sizeof *measured->results);
    run->epoll = epoll_create1(EPOLL_CLOEXEC);
    run->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    mb_status status = MB_OK;
    struct epoll_event tick = {.events = EPOLLIN};
    if (run->planned == NULL || measured->results == NULL) {
        status = mb_fail(MB_ERR_MEMORY, "%d requests do not fit in memory", (int)plan->n_requests);
    } else if (run->epoll < 0 || run->timer < 0 ||
               epoll_ctl(run->epoll, EPOLL_CTL_ADD, run->timer, &tick) != 0) {
        status = mb_fail(MB_ERR_IO, "the load generator cannot wait for its streams: %s", strerror(errno));
    } else {
        load_plan_make(plan, run->planned);
        double cpu_before = cpu_seconds();
        run->start_s = seconds_of(CLOCK_MONOTONIC);
        loop(run);
        measured->cpu_s = cpu_seconds() - cpu_before;
        if (run->no_memory)
            status = mb_fail(MB_ERR_MEMORY, "the load generator ran out of memory");
    }
    finish(run);
    mb_free(run->planned);
    mb_free(run);
    return status;
}

void load_measured_free(load_measured *measured) {
    mb_free(measured->results);
    mb_free(measured->gaps_s);
    *measured = (load_measured){0};
}
