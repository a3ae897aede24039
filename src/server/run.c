#include "server/run.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "base/alloc.h"
#include "server/engine.h"
#include "server/logprobs.h"

enum { MOST_UNREAD = 256 * 1024 }; /* a client that reads slower lets its tokens wait in the engine */

/* ---- Opening ------------------------------------------------------------------------------------------ */

static void make_id(server_run *run) {
    unsigned char bytes[16];
    char digits[33];
    if (getrandom(bytes, sizeof bytes, 0) != (ssize_t)sizeof bytes)
        memcpy(bytes, &run->arrived, sizeof run->arrived);
    for (size_t i = 0; i < sizeof bytes; i++)
        snprintf(digits + 2 * i, 3, "%02x", bytes[i]);
    snprintf(run->id, sizeof run->id, "%s%s", run->writer->id_prefix, digits);
}

server_run *server_run_open(server_engine *engine, server_reply *reply, const server_writer *writer,
                            server_generation *generation, double arrived) {
    server_run *run = mb_calloc(1, sizeof *run);
    int32_t n_answers = (int32_t)generation->n_prompts * generation->n_answers;
    if (run != NULL && pthread_mutex_init(&run->lock, NULL) != 0) {
        mb_free(run);
        run = NULL;
    }
    if (run == NULL) {
        server_generation_free(generation);
        return NULL;
    }
    run->engine = engine;
    run->writer = writer;
    run->generation = *generation;
    run->arrived = arrived;
    run->created = (int64_t)time(NULL);
    make_id(run);
    server_reply_hold(reply);
    run->reply = reply;
    run->answers = mb_calloc((size_t)n_answers, sizeof *run->answers);
    int failed = run->answers == NULL;
    for (; run->n_answers < n_answers && !failed; run->n_answers++)
        failed = server_answer_open(run, &run->answers[run->n_answers], run->n_answers) != 0;
    if (failed) {
        server_run_close(run);
        return NULL;
    }
    for (size_t i = 0; i < run->generation.n_prompts; i++)
        run->n_prompt_tokens += (int64_t)run->generation.prompts[i].n_ids;
    return run;
}

static void release(server_answer *answer) {
    if (answer->id != 0)
        mb_release(answer->run->engine->session, answer->id);
    answer->id = 0;
}

void server_run_close(server_run *run) {
    for (int32_t i = 0; i < run->n_answers; i++) {
        server_answer *answer = &run->answers[i];
        release(answer);
        server_answer_close(answer);
    }
    mb_free(run->answers);
    server_generation_free(&run->generation);
    server_text_free(&run->out);
    server_blocks_free(&run->blocks);
    server_reply_drop(run->reply);
    pthread_mutex_destroy(&run->lock);
    mb_free(run);
}

/* ---- Submitting --------------------------------------------------------------------------------------- */

static void refuse_submit(server_run *run, mb_status status) {
    server_problem *problem = &run->problem;
    if (status == MB_ERR_CAPACITY) { /* lengths were checked before: the queue is full */
        server_refuse(problem, 503, NULL, "the queue is full; try again later");
        problem->retry_after_s = SERVER_RETRY_AFTER_S;
    } else {
        server_refuse(problem, status == MB_ERR_ARGUMENT ? 400 : 503, NULL, "%s", mb_last_error());
    }
}

void server_run_submit(server_run *run) {
    const server_generation *generation = &run->generation;
    for (int32_t i = 0; i < run->n_answers; i++) {
        server_answer *answer = &run->answers[i];
        mb_request request = generation->request;
        request.ids = answer->prompt->ids;
        request.n_ids = answer->prompt->n_ids;
        request.max_new_tokens = answer->prompt->max_new_tokens;
        request.sampling.seed += (uint64_t)(i % generation->n_answers);
        request.prompt_logprobs = generation->prompt_logprobs >= 0 && i % generation->n_answers == 0;
        if (generation->top_logprobs > 0 || request.prompt_logprobs) {
            request.on_logprobs = server_take_row;
            request.on_logprobs_user = answer;
        }
        request.min_new_tokens = generation->min_new_tokens;
        request.grammar = generation->grammar;
        request.grammar_after_think = generation->grammar_start == MB_GRAMMAR_AFTER_THINK;
        request.waiter = run->engine->waiter;
        request.waiter_user = answer;
        answer->first_row = request.prompt_logprobs ? 0 : (int64_t)request.n_ids - 1;
        mb_status status = mb_submit(run->engine->session, &request, &answer->id);
        if (status != MB_OK) {
            refuse_submit(run, status);
            return;
        }
        run->n_open++;
    }
}

/* ---- Reading ------------------------------------------------------------------------------------------ */

static int no_memory(server_run *run) {
    return server_refuse(&run->problem, 503, NULL, "the server ran out of memory for this answer");
}

static int take_token(server_answer *answer, const mb_token *token, double now) {
    server_metrics_token(&answer->run->engine->metrics, answer, now);
    return server_answer_token(answer, token);
}

static int end_of_state(server_answer *answer, mb_state state) {
    switch (state) {
    case MB_FINISHED_STOP:
        return server_answer_end(answer, "stop");
    case MB_FINISHED_LENGTH:
        return server_answer_end(answer, "length");
    case MB_CANCELLED:
        return server_answer_end(answer, "abort");
    case MB_FAILED:
        return server_engine_failure(answer->run->engine, answer->id, &answer->run->problem);
    case MB_WAITING:
    case MB_RUNNING:
        break;
    }
    return 0;
}

/* Of the first answer to each prompt: the others find the prompt in the cache because of it. */
static void count_cached(server_answer *answer) {
    mb_usage usage;
    if (answer->index % answer->run->generation.n_answers == 0 &&
        mb_get_usage(answer->run->engine->session, answer->id, &usage) == MB_OK)
        answer->run->n_cached_tokens += usage.n_cached_tokens;
}

/* Reads what is there. Returns 0, or -1 with a problem. */
static int read_answer(server_answer *answer, double now) {
    mb_session *session = answer->run->engine->session;
    mb_token tokens[64];
    size_t n_tokens = 0;
    mb_state state = MB_RUNNING;
    do {
        if (mb_read(session, answer->id, tokens, 64, &n_tokens, &state) != MB_OK)
            return server_refuse(&answer->run->problem, 500, NULL, "%s", mb_last_error());
        if (state != MB_WAITING && answer->run->started == 0)
            answer->run->started = now;
        for (size_t i = 0; i < n_tokens && answer->finish == NULL; i++)
            if (take_token(answer, &tokens[i], now) != 0)
                return -1;
    } while (n_tokens == 64 && answer->finish == NULL);
    if (answer->finish == NULL && end_of_state(answer, state) != 0)
        return -1;
    if (answer->finish != NULL) {
        count_cached(answer);
        release(answer);
        answer->run->n_open--;
        server_metrics_finish(&answer->run->engine->metrics, answer, now);
    }
    return 0;
}

/* ---- Replying ----------------------------------------------------------------------------------------- */

static void flush(server_run *run) {
    if (run->out.failed)
        no_memory(run);
    else
        server_reply_write(run->reply, run->out.bytes, run->out.n_bytes);
    server_text_clear(&run->out);
}

/* What was written is forgotten. With log-probabilities a token waits for the text that it is part of. */
static void write_news(server_run *run, server_answer *answer) {
    if (answer->finish_is_sent || (answer->n_parts == 0 && answer->finish == NULL))
        return;
    if (!run->is_streaming) {
        run->is_streaming = 1;
        server_reply_stream(run->reply, "text/event-stream");
        run->writer->open(run, &run->out);
    }
    run->writer->news(run, answer, &run->out);
    answer->finish_is_sent = answer->finish != NULL;
    server_answer_clear_parts(answer);
    answer->first_token += (int64_t)answer->n_tokens;
    answer->n_tokens = 0;
}

static void reply_problem(server_run *run) {
    if (run->is_streaming) {
        run->writer->fail(run, &run->out);
        flush(run);
        server_reply_end(run->reply);
    } else {
        server_reply_problem(run->reply, &run->problem);
    }
    server_metrics_failure(&run->engine->metrics, run);
}

static void reply_end(server_run *run) {
    server_text text = {0};
    if (run->generation.stream) {
        run->writer->close(run, &run->out);
        flush(run);
        server_reply_end(run->reply);
    } else {
        run->writer->whole(run, &text);
        server_reply_whole(run->reply, 200, "application/json", &text);
    }
    server_metrics_end(&run->engine->metrics, run);
}

/* An echo with log-probabilities shows those of the prompt, which the first answer to the prompt
 * reports. Its first token, or its end, tells that all of them are there. Until then the other
 * answers to the prompt wait. */
static int awaits_prompt_rows(const server_answer *answer) {
    const server_generation *generation = &answer->run->generation;
    const server_answer *first = answer - answer->index % generation->n_answers;
    return generation->echo && generation->prompt_logprobs >= 0 && first != answer &&
           first->n_generated == 0 && first->finish == NULL;
}

int server_run_advance(server_run *run) {
    int is_streamed = run->generation.stream;
    double now = server_now();
    if (server_reply_gone(run->reply)) {
        server_metrics_gone(&run->engine->metrics, run);
        return 1;
    }
    if (is_streamed && server_reply_unread(run->reply) > MOST_UNREAD)
        return 0;
    for (int32_t i = 0; i < run->n_answers && run->problem.status == 0; i++) {
        server_answer *answer = &run->answers[i];
        if (answer->finish != NULL || awaits_prompt_rows(answer) || !atomic_exchange(&answer->news, 0))
            continue;
        read_answer(answer, now);
        if (is_streamed) /* before a problem, too: what was generated until then */
            write_news(run, answer);
    }
    if (run->out.n_bytes > 0 || run->out.failed)
        flush(run);
    if (run->problem.status != 0) {
        reply_problem(run);
        return 1;
    }
    if (run->n_open > 0)
        return 0;
    reply_end(run);
    return 1;
}

void server_run_abort(server_run *run) {
    for (int32_t i = 0; i < run->n_answers && run->is_streaming; i++) {
        server_answer *answer = &run->answers[i];
        if (answer->finish == NULL && server_answer_end(answer, "abort") == 0)
            write_news(run, answer);
    }
    if (run->is_streaming && run->problem.status == 0) {
        reply_end(run);
        return;
    }
    server_refuse(&run->problem, 503, NULL, "the server is shutting down");
    reply_problem(run);
}
