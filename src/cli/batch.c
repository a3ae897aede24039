/*
 * moebius batch: requests from a file, answers into a file.
 *
 * One thread, this one, reads IN, prepares requests and writes OUT; the engine's threads (server/offline.h)
 * run them. Enough requests are in progress to fill every step. An answer is written by one write, as a
 * whole line, when it is complete. So a batch that is killed leaves whole lines and perhaps one torn one,
 * and a further run goes on where it ended. The lines reach the disk (fsync) once a second and at the end.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "cli/batch_lines.h"
#include "cli/commands.h"
#include "cli/engine_settings.h"
#include "cli/interrupt.h"
#include "cli/line_reader.h"
#include "cli/model_settings.h"
#include "cli/output.h"
#include "server/offline.h"

typedef struct settings {
    cli_engine_settings engine;
    cli_model_settings model;
} settings;

static const cli_group groups[] = {
    {"Engine", cli_engine_options, offsetof(settings, engine)},
    {"Answers", cli_answer_options, offsetof(settings, engine)},
    {"Model", cli_model_options, offsetof(settings, model)},
};

/* A request in progress, and then its reply. */
typedef struct job {
    struct batch_state *batch;
    batch_request request;
    size_t number; /* of its line */
    int status;
    char *body;
    size_t n_body;
    struct job *next;
} job;

typedef struct batch_state {
    const settings *given;
    const char *in_path, *out_path;
    int in, out;
    batch_lines lines;
    server_offline *offline;
    size_t most_running, n_running;
    pthread_mutex_t lock; /* guards `done` */
    pthread_cond_t news;
    job *done;        /* replies that are not written yet, the last one first */
    size_t n_refused; /* of this run: answers that are errors */
    size_t n_failed;  /* of this run: requests that the engine failed on; their lines stay open */
    double started, synced, drawn; /* seconds; drawn 0: no progress was shown yet */
    int is_dirty;                  /* written since `synced` */
} batch_state;

/* ---- Files -------------------------------------------------------------------------------------------- */

static int open_files(batch_state *batch) {
    struct stat in, out;
    batch->in = open(batch->in_path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a named pipe must not hang */
    if (batch->in < 0)
        return cli_failure("%s: %s", batch->in_path, strerror(errno));
    if (fstat(batch->in, &in) != 0 || !S_ISREG(in.st_mode))
        return cli_failure("%s is not a regular file; a batch is read twice", batch->in_path);
    batch->out = open(batch->out_path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC | O_NONBLOCK, 0666);
    if (batch->out < 0)
        return cli_failure("%s: %s", batch->out_path, strerror(errno));
    if (fstat(batch->out, &out) != 0 || !S_ISREG(out.st_mode))
        return cli_failure("%s is not a regular file; a batch could not go on there", batch->out_path);
    if (in.st_dev == out.st_dev && in.st_ino == out.st_ino)
        return cli_failure("%s and %s are one file; answers need a file of their own", batch->in_path,
                           batch->out_path);
    if (flock(batch->out, LOCK_EX | LOCK_NB) != 0)
        return cli_failure("%s: another moebius batch writes to it", batch->out_path);
    return CLI_OK;
}

static int sync_out(batch_state *batch, double now) {
    if (!batch->is_dirty)
        return CLI_OK;
    batch->is_dirty = 0;
    batch->synced = now;
    return fsync(batch->out) == 0 ? CLI_OK : cli_failure("%s: %s", batch->out_path, strerror(errno));
}

/* A line that could not be written whole is cut off again. */
static int write_line(batch_state *batch, const char *line, size_t length) {
    size_t n_written = 0;
    while (n_written < length) {
        ssize_t n = write(batch->out, line + n_written, length - n_written);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            int reason = errno;
            struct stat info;
            if (n_written > 0 && fstat(batch->out, &info) == 0)
                (void)!ftruncate(batch->out, info.st_size - (off_t)n_written);
            return cli_failure("%s: %s", batch->out_path, strerror(reason));
        }
        n_written += (size_t)n;
    }
    batch->is_dirty = 1;
    return CLI_OK;
}

static int write_answer(batch_state *batch, const batch_request *request, size_t number, int status,
                        const char *body, size_t n_body) {
    size_t length;
    char *line = batch_answer_line(request, number, status, body, n_body, &length);
    if (line == NULL)
        return cli_failure("no memory for an answer of %zu bytes", n_body);
    int written = write_line(batch, line, length);
    mb_free(line);
    batch->lines.n_answered++;
    batch->n_refused += status != 200;
    return written;
}

/* ---- Requests ----------------------------------------------------------------------------------------- */

static void free_job(job *one) {
    batch_request_free(&one->request);
    mb_free(one->body);
    mb_free(one);
}

/* On any thread. */
static void take_reply(void *user, int status, char *body, size_t n_body) {
    job *one = user;
    batch_state *batch = one->batch;
    one->status = status;
    one->body = body;
    one->n_body = n_body;
    pthread_mutex_lock(&batch->lock);
    one->next = batch->done;
    batch->done = one;
    pthread_cond_signal(&batch->news);
    pthread_mutex_unlock(&batch->lock);
}

static int start(batch_state *batch, const char *line, size_t length, size_t number) {
    job *one = mb_calloc(1, sizeof *one);
    if (one == NULL)
        return cli_failure("no memory for a request");
    *one = (job){.batch = batch, .number = number};
    batch_request_read(&one->request, line, length, number,
                       (batch_line_state)batch->lines.states[number - 1]);
    if (one->request.code != NULL) {
        int status = write_answer(batch, &one->request, number, 400, NULL, 0);
        free_job(one);
        return status;
    }
    batch->n_running++;
    server_offline_answer(batch->offline, one->request.url, one->request.body, take_reply, one);
    return CLI_OK;
}

/* The replies that have come, waiting for one up to a tenth of a second if there is none. */
static job *wait_for_replies(batch_state *batch, int may_wait) {
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += 100 * 1000 * 1000;
    until.tv_sec += until.tv_nsec / 1000000000;
    until.tv_nsec %= 1000000000;
    pthread_mutex_lock(&batch->lock);
    while (batch->done == NULL && may_wait && !cli_interrupted())
        if (pthread_cond_timedwait(&batch->news, &batch->lock, &until) == ETIMEDOUT)
            break;
    job *done = batch->done;
    batch->done = NULL;
    pthread_mutex_unlock(&batch->lock);
    return done;
}

/* The engine failed, not the request: the line stays open. The first one is told. */
static void note_failure(batch_state *batch, const job *one) {
    json_t *reply = one->body != NULL ? json_loadb(one->body, one->n_body, 0, NULL) : NULL;
    const char *message = json_string_value(json_object_get(json_object_get(reply, "error"), "message"));
    if (batch->n_failed++ == 0) {
        if (batch->drawn > 0)
            fprintf(stderr, "\r\033[K");
        cli_failure("%s: line %zu: %s", batch->in_path, one->number,
                    message != NULL ? message : "there is no memory for its answer");
    }
    json_decref(reply);
}

static int write_replies(batch_state *batch, job *done) {
    int status = CLI_OK;
    while (done != NULL) {
        job *one = done;
        done = one->next;
        if (status == CLI_OK && one->status >= 500)
            note_failure(batch, one);
        else if (status == CLI_OK)
            status = write_answer(batch, &one->request, one->number, one->status, one->body, one->n_body);
        batch->n_running--;
        free_job(one);
    }
    return status;
}

/* ---- Progress ----------------------------------------------------------------------------------------- */

static int shows_progress(const batch_state *batch) {
    return !batch->given->model.quiet && cli_messages_are_terminal() && cli_terminal_is_smart();
}

static void write_duration(double seconds, char *text, size_t capacity) {
    if (seconds < 90)
        snprintf(text, capacity, "%.0f s", seconds);
    else if (seconds < 90 * 60)
        snprintf(text, capacity, "%.0f min", seconds / 60);
    else
        snprintf(text, capacity, "%.1f h", seconds / 3600);
}

/* At most ten times a second. n_before: lines that were answered when this run began. */
static void draw_progress(batch_state *batch, size_t n_before, double now) {
    enum { CELLS = 30 };
    char cells[CELLS + 1], left[32] = "";
    mb_session_stats stats;
    if (!shows_progress(batch) || now - batch->drawn < 0.1)
        return;
    batch->drawn = now;
    const batch_lines *lines = &batch->lines;
    double part = lines->n_wanted > 0 ? (double)lines->n_answered / (double)lines->n_wanted : 1;
    for (int i = 0; i < CELLS; i++)
        cells[i] = i < (int)(part * CELLS) ? '#' : '.';
    cells[CELLS] = '\0';
    server_offline_get_stats(batch->offline, &stats);
    double seconds = now - batch->started;
    size_t n_new = lines->n_answered - n_before;
    if (n_new > 0)
        write_duration(seconds / (double)n_new * (double)(lines->n_wanted - lines->n_answered), left,
                       sizeof left);
    fprintf(stderr, "\r[%s] %zu of %zu lines, %.0f output tokens/s%s%s%s\033[K", cells, lines->n_answered,
            lines->n_wanted, seconds > 0 ? (double)stats.n_generated_tokens / seconds : 0.0,
            n_new > 0 ? ", " : "", left, n_new > 0 ? " left" : "");
    fflush(stderr);
}

/* The last line. */
static void print_figures(batch_state *batch, size_t n_before, int status) {
    mb_session_stats stats;
    char time_taken[32];
    const batch_lines *lines = &batch->lines;
    if (batch->drawn > 0)
        fprintf(stderr, "\r\033[K");
    if (batch->given->model.quiet || status == CLI_FAILED)
        return;
    double seconds = cli_now() - batch->started;
    server_offline_get_stats(batch->offline, &stats);
    write_duration(seconds, time_taken, sizeof time_taken);
    fprintf(stderr, "%s%zu of %zu lines are answered", cli_messages_faint(), lines->n_answered,
            lines->n_wanted);
    if (n_before > 0)
        fprintf(stderr, ", %zu of them before this run", n_before);
    if (batch->n_refused > 0)
        fprintf(stderr, ", %zu with an error", batch->n_refused);
    if (batch->n_failed > 0)
        fprintf(stderr, ", %zu failed and are tried again by the same command", batch->n_failed);
    fprintf(stderr, "; %llu prompt tokens, %llu generated tokens, %.1f output tokens/s, %s%s%s\n",
            (unsigned long long)stats.n_prompt_tokens, (unsigned long long)stats.n_generated_tokens,
            seconds > 0 ? (double)stats.n_generated_tokens / seconds : 0.0, time_taken,
            status == CLI_INTERRUPTED ? "; interrupted, the same command goes on" : "",
            cli_messages_normal());
}

/* ---- The batch ---------------------------------------------------------------------------------------- */

/* Starts requests as long as there are lines and room. *number: the line that was read last. Returns 1 when
 * IN has ended, 0, or -1. */
static int start_requests(batch_state *batch, cli_line_reader *reader, size_t *number) {
    enum { AT_ONCE = 64 }; /* then answers are written */
    const char *line;
    size_t length;
    for (int i = 0; i < AT_ONCE && batch->n_running < batch->most_running && !cli_interrupted(); i++) {
        int got = cli_line_reader_next(reader, &line, &length);
        if (got != 1)
            return got == 0 ? 1 : -1;
        if (++*number > batch->lines.n)
            return 1; /* IN has grown since it was counted: a further run takes the new lines */
        int state = batch->lines.states[*number - 1];
        if ((state == BATCH_OPEN || state == BATCH_TWICE) && start(batch, line, length, *number) != CLI_OK)
            return -1;
    }
    return 0;
}

static int run_lines(batch_state *batch, size_t n_before) {
    cli_line_reader reader;
    size_t number = 0;
    int status = CLI_OK, ended = 0;
    if (lseek(batch->in, 0, SEEK_SET) != 0)
        return cli_failure("%s: %s", batch->in_path, strerror(errno));
    cli_line_reader_open(&reader, batch->in_path, batch->in);
    batch->started = batch->synced = cli_now();
    while (status == CLI_OK && !cli_interrupted() && (!ended || batch->n_running > 0)) {
        if (!ended && (ended = start_requests(batch, &reader, &number)) < 0)
            status = CLI_FAILED;
        int is_full = ended != 0 || batch->n_running >= batch->most_running;
        if (status == CLI_OK)
            status = write_replies(batch, wait_for_replies(batch, is_full && batch->n_running > 0));
        double now = cli_now();
        if (status == CLI_OK && now - batch->synced >= 1)
            status = sync_out(batch, now);
        draw_progress(batch, n_before, now);
    }
    cli_line_reader_close(&reader);
    if (status == CLI_OK)
        status = sync_out(batch, cli_now());
    return status == CLI_OK && cli_interrupted() ? CLI_INTERRUPTED : status;
}

static int answer_lines(batch_state *batch, const char *directory) {
    char name[256];
    mb_model *model = NULL;
    server_offline_settings wanted = {.name = name,
                                      .max_model_len = batch->given->engine.max_model_len.value};
    size_t n_before = batch->lines.n_answered;
    int status = cli_open_for_engine(directory, &batch->given->model, &batch->given->engine, &model);
    if (status == CLI_OK)
        status = cli_apply_engine(&batch->given->engine, model, &wanted.session, &wanted.formats);
    if (status == CLI_OK) {
        wanted.session.max_decode_slowdown = 0; /* nobody reads along: the most tokens in all */
        cli_name_of_path(directory, name, sizeof name);
        wanted.max_requests = 2 * wanted.session.max_sequences; /* the next ones are ready when these end */
        batch->most_running = (size_t)wanted.max_requests;
        if (server_offline_open(model, &wanted, &batch->offline) != MB_OK)
            status = cli_report_failure();
    }
    if (status == CLI_OK) {
        cli_interrupt_catch(1);
        status = run_lines(batch, n_before);
        print_figures(batch, n_before, status);
    }
    server_offline_close(batch->offline); /* what still ran is not written: the next run answers it */
    while (batch->done != NULL) {
        job *one = batch->done;
        batch->done = one->next;
        free_job(one);
    }
    mb_model_close(model);
    return status;
}

static int run(const settings *given, const char *const *operands) {
    batch_state batch = {
        .given = given, .in_path = operands[1], .out_path = operands[2], .in = -1, .out = -1};
    pthread_condattr_t attributes;
    pthread_mutex_init(&batch.lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&batch.news, &attributes);
    pthread_condattr_destroy(&attributes);

    int status = open_files(&batch);
    if (status == CLI_OK)
        status = batch_lines_survey(&batch.lines, batch.in_path, batch.in, batch.out_path, batch.out);
    if (status == CLI_OK && batch.lines.n_answered == batch.lines.n_wanted) {
        if (!given->model.quiet)
            fprintf(stderr, "%sall %zu lines are answered already%s\n", cli_messages_faint(),
                    batch.lines.n_wanted, cli_messages_normal());
    } else if (status == CLI_OK) {
        status = answer_lines(&batch, operands[0]);
    }
    batch_lines_free(&batch.lines);
    if (batch.in >= 0)
        close(batch.in);
    if (batch.out >= 0 && close(batch.out) != 0 && status == CLI_OK)
        status = cli_failure("%s: %s", batch.out_path, strerror(errno));
    pthread_cond_destroy(&batch.news);
    pthread_mutex_destroy(&batch.lock);
    return status == CLI_OK && batch.n_refused + batch.n_failed > 0 ? CLI_FAILED : status;
}

static int batch_main(int argc, char **argv) {
    settings given = {0};
    const char *operands[3];
    int status = cli_parse(&cli_batch_command, argc, argv, &given, operands);
    if (status >= 0)
        return status;
    status = cli_check_engine(&cli_batch_command, &given.engine);
    if (status < 0)
        status = cli_check_name_of_path(operands[0], "rename it, or link to it");
    if (status == CLI_OK)
        status = run(&given, operands);
    cli_settings_free(&cli_batch_command, &given);
    return status;
}

static const char *const files[] = {"IN: the file of requests", "OUT: the file that gets the answers", NULL};

const cli_command cli_batch_command = {
    .name = "batch",
    .summary = "answer a file of requests",
    .synopsis = "moebius batch DIR IN OUT [OPTIONS]",
    .description =
        "Answers every line of the file IN, in OpenAI's batch format, and appends the answers to the file OUT as they "
        "come. A line of IN is {\"custom_id\": ..., \"method\": \"POST\", \"url\": ..., \"body\": ...}, with the url "
        "/v1/chat/completions or /v1/completions and the body of such a request. A line of OUT has the custom_id and "
        "response (status_code and body) or error. A model named in a body is not looked at.\n"
        "\n"
        "The requests run together: their order in OUT is that in which they end. An answer does not depend on the "
        "others. A request that is refused has its answer too, with the status and error object that the server would "
        "send. What is wrong with a line itself is told in error: code and message; with the number of the line, when "
        "it has no custom_id or that of an earlier line.\n"
        "\n"
        "A batch that was interrupted or killed goes on when the same command is given again: lines that OUT answers "
        "already are skipped, and a torn last line of OUT is cut off. Each line is written whole when its answer is "
        "complete, and reaches the disk within a second (fsync); when the machine itself fails, the answers of the "
        "last second are computed again.\n"
        "\n"
        "A request that the engine failed on, for want of memory say, has no answer; the next run tries it again. The "
        "exit status is 1 when there was one in this run, or a line was answered with an error.",
    .examples = "moebius batch models/demo requests.jsonl answers.jsonl\n"
                "moebius batch Qwen/Qwen3-30B-A3B in.jsonl out.jsonl --max-num-seqs 512",
    .files = files,
    .groups = groups,
    .n_groups = CLI_COUNT(groups),
    .main = batch_main,
};
