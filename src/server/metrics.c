#include "server/metrics.h"

#include <stdio.h>
#include <string.h>

#include "server/engine.h"

/* ---- Histograms --------------------------------------------------------------------------------------- */

static const double first_token_bounds[] = {0.001, 0.005, 0.01, 0.02,  0.04,  0.06,  0.08, 0.1,
                                            0.25,  0.5,   0.75, 1.0,   2.5,   5.0,   7.5,  10.0,
                                            20.0,  40.0,  80.0, 160.0, 640.0, 2560.0};
static const double between_tokens_bounds[] = {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1,
                                               0.15,  0.2,    0.3,   0.4,  0.5,   0.75, 1.0,   2.5,
                                               5.0,   7.5,    10.0,  20.0, 40.0,  80.0};
static const double request_bounds[] = {0.3,  0.5,   0.8,   1.0,   1.5,   2.0,    2.5,
                                        5.0,  10.0,  15.0,  20.0,  30.0,  40.0,   50.0,
                                        60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0};
static const double step_bounds[] = {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384};
static const double answers_bounds[] = {1, 2, 5, 10, 20};

static void set_bounds(server_histogram *histogram, const double *bounds, size_t n) {
    histogram->n_bounds = (int)n;
    memcpy(histogram->bounds, bounds, n * sizeof *bounds);
}

/* 1, 2, 5, 10, 20, 50, ... up to the context, as vLLM. */
static void set_token_bounds(server_histogram *histogram, int64_t context) {
    static const int steps[] = {1, 2, 5};
    int n = 0;
    for (int64_t power = 1; n < SERVER_MAX_BUCKETS; power *= 10)
        for (int i = 0; i < 3 && n < SERVER_MAX_BUCKETS; i++) {
            if (steps[i] * power > context) {
                histogram->n_bounds = n;
                return;
            }
            histogram->bounds[n++] = (double)(steps[i] * power);
        }
    histogram->n_bounds = n;
}

static void observe(server_histogram *histogram, double value) {
    int i = 0;
    while (i < histogram->n_bounds && value > histogram->bounds[i])
        i++;
    histogram->counts[i]++;
    histogram->sum += value;
}

#define BOUNDS(histogram, bounds) set_bounds(&metrics->histogram, bounds, sizeof bounds / sizeof *bounds)

int server_metrics_init(server_metrics *metrics, int64_t context) {
    *metrics = (server_metrics){0};
    BOUNDS(first_token, first_token_bounds);
    BOUNDS(between_tokens, between_tokens_bounds);
    BOUNDS(per_output_token, between_tokens_bounds);
    BOUNDS(end_to_end, request_bounds);
    BOUNDS(queue, request_bounds);
    BOUNDS(prefill, request_bounds);
    BOUNDS(decode, request_bounds);
    BOUNDS(inference, request_bounds);
    BOUNDS(step_tokens, step_bounds);
    BOUNDS(answers, answers_bounds);
    set_token_bounds(&metrics->prompt_tokens, context);
    set_token_bounds(&metrics->generated_tokens, context);
    set_token_bounds(&metrics->max_tokens, context);
    return pthread_mutex_init(&metrics->lock, NULL) == 0 ? 0 : -1;
}

void server_metrics_free(server_metrics *metrics) {
    pthread_mutex_destroy(&metrics->lock);
}

/* ---- What happens ------------------------------------------------------------------------------------- */

void server_metrics_token(server_metrics *metrics, server_answer *answer, double now) {
    pthread_mutex_lock(&metrics->lock);
    if (answer->first_token_time == 0) {
        answer->first_token_time = now;
        observe(&metrics->first_token, now - answer->run->arrived);
    } else {
        observe(&metrics->between_tokens, now - answer->last_token_time);
    }
    pthread_mutex_unlock(&metrics->lock);
    answer->last_token_time = now;
}

static server_finish finish_of(const char *finish) {
    return strcmp(finish, "length") == 0  ? SERVER_LENGTH
           : strcmp(finish, "abort") == 0 ? SERVER_ABORT
                                          : SERVER_STOP;
}

void server_metrics_finish(server_metrics *metrics, const server_answer *answer, double now) {
    const server_run *run = answer->run;
    pthread_mutex_lock(&metrics->lock);
    metrics->n_finished[finish_of(answer->finish)]++;
    observe(&metrics->end_to_end, now - run->arrived);
    observe(&metrics->queue, run->started - run->arrived);
    observe(&metrics->inference, now - run->started);
    if (answer->first_token_time > 0) {
        observe(&metrics->prefill, answer->first_token_time - run->started);
        observe(&metrics->decode, answer->last_token_time - answer->first_token_time);
    }
    if (answer->n_generated > 1)
        observe(&metrics->per_output_token,
                (answer->last_token_time - answer->first_token_time) / (double)(answer->n_generated - 1));
    observe(&metrics->prompt_tokens, (double)answer->prompt->n_ids);
    observe(&metrics->generated_tokens, (double)answer->n_generated);
    observe(&metrics->max_tokens, (double)answer->prompt->max_new_tokens);
    pthread_mutex_unlock(&metrics->lock);
}

void server_metrics_end(server_metrics *metrics, const server_run *run) {
    pthread_mutex_lock(&metrics->lock);
    observe(&metrics->answers, run->generation.n_answers);
    pthread_mutex_unlock(&metrics->lock);
}

static void count_unfinished(server_metrics *metrics, const server_run *run, server_finish finish) {
    pthread_mutex_lock(&metrics->lock);
    for (int32_t i = 0; i < run->n_answers; i++)
        metrics->n_finished[finish] += run->answers[i].finish == NULL;
    pthread_mutex_unlock(&metrics->lock);
}

void server_metrics_failure(server_metrics *metrics, const server_run *run) {
    count_unfinished(metrics, run, SERVER_ERROR);
}

void server_metrics_gone(server_metrics *metrics, const server_run *run) {
    count_unfinished(metrics, run, SERVER_ABORT);
}

void server_metrics_step(server_metrics *metrics, uint64_t n_tokens) {
    pthread_mutex_lock(&metrics->lock);
    observe(&metrics->step_tokens, (double)n_tokens);
    pthread_mutex_unlock(&metrics->lock);
}

/* ---- The page ----------------------------------------------------------------------------------------- */

typedef struct page {
    server_text *text;
    char labels[320]; /* engine="0",model_name="..." */
} page;

static void put_head(page *to, const char *name, const char *type, const char *help) {
    server_text_printf(to->text, "# HELP vllm:%s %s\n# TYPE vllm:%s %s\n", name, help, name, type);
}

static void put_value(page *to, const char *type, const char *name, const char *help, double value) {
    put_head(to, name, type, help);
    server_text_printf(to->text, "vllm:%s{%s} %.17g\n", name, to->labels, value);
}

static void put_histogram(page *to, const char *name, const char *help, const server_histogram *histogram) {
    uint64_t n = 0;
    put_head(to, name, "histogram", help);
    for (int i = 0; i < histogram->n_bounds; i++) {
        n += histogram->counts[i];
        server_text_printf(to->text, "vllm:%s_bucket{%s,le=\"%g\"} %llu\n", name, to->labels,
                           histogram->bounds[i], (unsigned long long)n);
    }
    n += histogram->counts[histogram->n_bounds];
    server_text_printf(to->text, "vllm:%s_bucket{%s,le=\"+Inf\"} %llu\n", name, to->labels,
                       (unsigned long long)n);
    server_text_printf(to->text, "vllm:%s_count{%s} %llu\n", name, to->labels, (unsigned long long)n);
    server_text_printf(to->text, "vllm:%s_sum{%s} %.9g\n", name, to->labels, histogram->sum);
}

/* Prometheus escapes \, " and line breaks in labels. */
static void set_labels(page *to, const char *model_name) {
    size_t n = (size_t)snprintf(to->labels, sizeof to->labels, "engine=\"0\",model_name=\"");
    for (; *model_name != '\0' && n < sizeof to->labels - 4; model_name++) {
        if (strchr("\\\"\n", *model_name) != NULL)
            to->labels[n++] = '\\';
        to->labels[n++] = *model_name == '\n' ? 'n' : *model_name;
    }
    strcpy(to->labels + n, "\"");
}

static void put_session(page *to, const mb_session_stats *stats) {
    double total = stats->kv_blocks_total > 0 ? (double)stats->kv_blocks_total : 1;
    double used = 1 - (double)stats->kv_blocks_free / total;
    put_value(to, "gauge", "num_requests_running", "Sequences in the running batch.", stats->n_running);
    put_value(to, "gauge", "num_requests_waiting", "Sequences in the queue.", stats->n_waiting);
    put_value(to, "gauge", "kv_cache_usage_perc", "Part of the KV cache in use; 1 is all.", used);
    put_value(to, "gauge", "gpu_cache_usage_perc", "The former name of kv_cache_usage_perc.", used);
    put_value(to, "counter", "prompt_tokens_total", "Prompt tokens processed.",
              (double)stats->n_prompt_tokens);
    put_value(to, "counter", "generation_tokens_total", "Tokens generated.",
              (double)stats->n_generated_tokens);
    put_value(to, "counter", "num_preemptions_total", "Sequences put back into the queue.",
              (double)stats->n_preemptions);
    put_value(to, "counter", "prefix_cache_queries_total", "Prompt tokens looked up in the prefix cache.",
              (double)stats->n_prefix_queries);
    put_value(to, "counter", "prefix_cache_hits_total", "Prompt tokens found in the prefix cache.",
              (double)stats->n_prefix_hits);
    put_head(to, "cache_config_info", "gauge", "The KV cache's configuration.");
    server_text_printf(to->text, "vllm:cache_config_info{block_size=\"64\",num_gpu_blocks=\"%lld\",%s} 1\n",
                       (long long)stats->kv_blocks_total, to->labels);
}

void server_metrics_write(server_engine *engine, const char *model_name, server_text *text) {
    static const char *const reasons[SERVER_N_FINISH] = {"stop", "length", "abort", "error"};
    server_metrics *metrics = &engine->metrics;
    page to = {.text = text};
    mb_session_stats stats;
    set_labels(&to, model_name);
    mb_session_get_stats(engine->session, &stats);
    put_session(&to, &stats);
    pthread_mutex_lock(&metrics->lock);
    put_head(&to, "request_success_total", "counter", "Answers that ended, by reason.");
    for (int i = 0; i < SERVER_N_FINISH; i++)
        server_text_printf(text, "vllm:request_success_total{%s,finished_reason=\"%s\"} %llu\n", to.labels,
                           reasons[i], (unsigned long long)metrics->n_finished[i]);
    put_histogram(&to, "time_to_first_token_seconds", "From the request to its first token.",
                  &metrics->first_token);
    put_histogram(&to, "inter_token_latency_seconds", "Between two tokens of an answer.",
                  &metrics->between_tokens);
    put_histogram(&to, "time_per_output_token_seconds", "The former name of inter_token_latency_seconds.",
                  &metrics->between_tokens);
    put_histogram(&to, "request_time_per_output_token_seconds", "Mean time between an answer's tokens.",
                  &metrics->per_output_token);
    put_histogram(&to, "e2e_request_latency_seconds", "From the request to its end.", &metrics->end_to_end);
    put_histogram(&to, "request_queue_time_seconds", "From the request to its first step.", &metrics->queue);
    put_histogram(&to, "request_inference_time_seconds", "From the first step to the end.",
                  &metrics->inference);
    put_histogram(&to, "request_prefill_time_seconds", "From the first step to the first token.",
                  &metrics->prefill);
    put_histogram(&to, "request_decode_time_seconds", "From the first token to the last.", &metrics->decode);
    put_histogram(&to, "request_prompt_tokens", "Tokens of prompts.", &metrics->prompt_tokens);
    put_histogram(&to, "request_generation_tokens", "Tokens of answers.", &metrics->generated_tokens);
    put_histogram(&to, "request_params_max_tokens", "Most tokens that answers may have.",
                  &metrics->max_tokens);
    put_histogram(&to, "request_params_n", "Answers that requests ask for.", &metrics->answers);
    put_histogram(&to, "iteration_tokens_total", "Tokens in a step.", &metrics->step_tokens);
    pthread_mutex_unlock(&metrics->lock);
}
