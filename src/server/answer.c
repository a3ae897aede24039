#include "server/answer.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "server/engine.h"
#include "server/logprobs.h"

static int no_memory(server_answer *answer) {
    return server_refuse(&answer->run->problem, 503, NULL, "the server ran out of memory for this answer");
}

/* ---- Opening ------------------------------------------------------------------------------------------ */

int server_answer_open(server_run *run, server_answer *answer, int32_t index) {
    const server_generation *generation = &run->generation;
    *answer = (server_answer){
        .run = run, .index = index, .prompt = &generation->prompts[index / generation->n_answers]};
    if (mb_decoder_open(run->engine->model, generation->skip_special, &answer->decoder) != MB_OK ||
        mb_stop_text_open((const char *const *)generation->stops, generation->n_stops, &answer->stop) !=
            MB_OK)
        return no_memory(answer);
    if (generation->parses && mb_answer_open(&generation->parse, &answer->parser) != MB_OK)
        return no_memory(answer);
    return 0;
}

void server_answer_clear_parts(server_answer *answer) {
    for (size_t i = 0; i < answer->n_parts; i++) {
        server_text_free(&answer->parts[i].text);
        mb_free(answer->parts[i].name);
    }
    answer->n_parts = 0;
}

void server_answer_close(server_answer *answer) {
    mb_decoder_close(answer->decoder);
    mb_stop_text_close(answer->stop);
    mb_answer_close(answer->parser);
    server_answer_clear_parts(answer);
    server_rows_free(answer);
    mb_free(answer->parts);
    mb_free(answer->tokens);
}

/* ---- Parts -------------------------------------------------------------------------------------------- */

/* A new part at the end; NULL with a problem. */
static server_part *add_part(server_answer *answer, server_part_kind kind) {
    if (mb_grow((void **)&answer->parts, &answer->parts_capacity, answer->n_parts + 1,
                sizeof *answer->parts) != 0) {
        no_memory(answer);
        return NULL;
    }
    server_part *part = &answer->parts[answer->n_parts++];
    *part = (server_part){.kind = kind, .call = -1};
    return part;
}

static server_part *last_part(server_answer *answer, server_part_kind kind, int32_t call) {
    server_part *last = answer->n_parts > 0 ? &answer->parts[answer->n_parts - 1] : NULL;
    return last != NULL && last->kind == kind && last->call == call ? last : NULL;
}

static int add_text(server_answer *answer, server_part_kind kind, int32_t call, const char *text,
                    size_t n_bytes) {
    server_part *part = last_part(answer, kind, call);
    if (n_bytes == 0)
        return 0;
    if (part == NULL && (part = add_part(answer, kind)) == NULL)
        return -1;
    part->call = call;
    server_text_put(&part->text, text, n_bytes);
    return part->text.failed ? no_memory(answer) : 0;
}

static int begin_call(server_answer *answer, const mb_answer_event *event) {
    server_part *part = add_part(answer, SERVER_CALL);
    if (part == NULL)
        return -1;
    part->call = event->call;
    part->begins = 1;
    snprintf(part->id, sizeof part->id, "%s", event->id);
    part->name = mb_strdup(event->name);
    return part->name != NULL ? 0 : no_memory(answer);
}

static int end_call(server_answer *answer, int32_t call) {
    server_part *part = last_part(answer, SERVER_CALL, call);
    if (part == NULL && (part = add_part(answer, SERVER_CALL)) == NULL)
        return -1;
    part->call = call;
    part->ends = 1;
    answer->n_calls++;
    return 0;
}

/* A call turned out not to be one. What was not sent of it is taken back; a client that
 * has the begin keeps it. */
static void take_back_call(server_answer *answer, int32_t call) {
    for (size_t i = 0; i < answer->n_parts; i++) {
        server_part *part = &answer->parts[i];
        if (part->kind != SERVER_CALL || part->call != call || !part->begins)
            continue;
        for (size_t k = i; k < answer->n_parts; k++) {
            server_text_free(&answer->parts[k].text);
            mb_free(answer->parts[k].name);
        }
        answer->n_parts = i;
    }
}

static int take_event(server_answer *answer, const mb_answer_event *event) {
    switch (event->kind) {
    case MB_ANSWER_REASONING:
        return answer->run->generation.drops_reasoning
                   ? 0
                   : add_text(answer, SERVER_REASONING, -1, event->text, event->n_bytes);
    case MB_ANSWER_CONTENT:
        return add_text(answer, SERVER_CONTENT, -1, event->text, event->n_bytes);
    case MB_ANSWER_CALL:
        return begin_call(answer, event);
    case MB_ANSWER_ARGUMENTS:
        return add_text(answer, SERVER_CALL, event->call, event->text, event->n_bytes);
    case MB_ANSWER_CALL_END:
        return end_call(answer, event->call);
    case MB_ANSWER_BROKEN:
        take_back_call(answer, event->call);
        return 0;
    case MB_ANSWER_STOP:
        answer->finish = "stop";
        return 0;
    }
    return 0;
}

static int take_events(server_answer *answer) {
    mb_answer_event event;
    while (mb_answer_next(answer->parser, &event))
        if (take_event(answer, &event) != 0)
            return -1;
    return 0;
}

/* ---- Text --------------------------------------------------------------------------------------------- */

static int add_parsed(server_answer *answer, const char *text, size_t n_bytes) {
    if (answer->parser == NULL)
        return add_text(answer, SERVER_CONTENT, -1, text, n_bytes);
    if (n_bytes > 0 && mb_answer_push(answer->parser, text, n_bytes) != MB_OK)
        return no_memory(answer);
    return take_events(answer);
}

/* The parser gives out what it holds; finish was set before. */
static int finish_parser(server_answer *answer) {
    if (answer->parser == NULL)
        return 0;
    if (mb_answer_finish(answer->parser) != MB_OK)
        return no_memory(answer);
    return take_events(answer);
}

/* Text from the decoder. */
static int take_text(server_answer *answer, const char *text, size_t n_bytes) {
    const server_generation *generation = &answer->run->generation;
    const char *out = text;
    size_t n_out = n_bytes;
    int stops_count = answer->n_generated > generation->min_new_tokens;
    if (stops_count && mb_stop_text_push(answer->stop, text, n_bytes, &out, &n_out) != MB_OK)
        return no_memory(answer);
    if (add_parsed(answer, out, n_out) != 0)
        return -1;
    int found = mb_stop_text_found(answer->stop);
    if (found < 0 || answer->finish != NULL)
        return 0;
    const char *stop = generation->stops[found];
    if (generation->include_stop && add_parsed(answer, stop, strlen(stop)) != 0)
        return -1;
    answer->finish = "stop";
    answer->stop_string = stop;
    return finish_parser(answer);
}

int server_answer_token(server_answer *answer, const mb_token *token) {
    const server_generation *generation = &answer->run->generation;
    const char *text;
    size_t n_bytes;
    answer->n_generated++;
    if (generation->top_logprobs >= 0 || generation->return_token_ids) {
        if (mb_grow((void **)&answer->tokens, &answer->tokens_capacity, answer->n_tokens + 1,
                    sizeof *answer->tokens) != 0)
            return no_memory(answer);
        answer->tokens[answer->n_tokens++] = *token;
    }
    if (mb_decoder_push(answer->decoder, token->id, &text, &n_bytes) != MB_OK)
        return no_memory(answer);
    return take_text(answer, text, n_bytes);
}

int server_answer_end(server_answer *answer, const char *finish) {
    const char *text;
    size_t n_bytes;
    if (answer->finish != NULL)
        return 0;
    if (mb_decoder_finish(answer->decoder, &text, &n_bytes) != MB_OK)
        return no_memory(answer);
    if (take_text(answer, text, n_bytes) != 0)
        return -1;
    if (answer->finish != NULL)
        return 0;
    mb_stop_text_finish(answer->stop, &text, &n_bytes);
    if (add_parsed(answer, text, n_bytes) != 0)
        return -1;
    if (answer->finish != NULL)
        return 0;
    answer->finish = finish;
    return finish_parser(answer);
}
