#include "load/plan.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/random.h"

/* Common words that are one token each, with the space before them, in Qwen3's vocabulary. */
static const char words[][8] = {
    "the",  "of",   "and",   "to",    "in",    "is",   "that",  "it",   "was",  "for",   "on",
    "are",  "as",   "with",  "his",   "they",  "at",   "be",    "this", "have", "from",  "or",
    "one",  "had",  "by",    "word",  "but",   "not",  "what",  "all",  "were", "we",    "when",
    "your", "can",  "said",  "there", "use",   "each", "which", "she",  "do",   "how",   "their",
    "if",   "will", "up",    "other", "about", "out",  "many",  "then", "them", "these", "so",
    "some", "her",  "would", "make",  "like",  "him",  "into",  "time", "has"};
enum { N_WORDS = sizeof words / sizeof *words };

/* In (0, 1). */
static double uniform(uint64_t *state) {
    return ((double)(mb_random(state) >> 12) + 0.5) / 4503599627370496.0;
}

static double normal(uint64_t *state) {
    double radius = sqrt(-2 * log(uniform(state)));
    return radius * cos(6.283185307179586 * uniform(state));
}

static int32_t log_normal(uint64_t *state, double median, double sigma, int32_t longest) {
    double length = median * exp(sigma * normal(state));
    return length < 4 ? 4 : length > longest ? longest : (int32_t)length;
}

void load_plan_make(const load_plan_options *options, load_planned *items) {
    uint64_t state = options->seed;
    double now = 0;
    for (int32_t i = 0; i < options->n_requests; i++) {
        load_planned *item = &items[i];
        *item = (load_planned){.n_prompt = options->n_prompt, .n_output = options->n_output};
        if (options->rate > 0 && i > 0)
            now -= log(uniform(&state)) / options->rate;
        item->at_s = now;
        if (options->prompts == LOAD_SHAREGPT) {
            /* Means of 164 and 339 tokens, as in the figures that the vLLM paper gives for
             * ShareGPT (161 and 338). */
            item->n_prompt = log_normal(&state, 80, 1.2, options->n_longest);
            item->n_output = log_normal(&state, 220, 0.93, options->n_longest);
        }
        if (options->prompts == LOAD_SHARED_PREFIX)
            item->i_prefix = (int32_t)(mb_random(&state) % (uint64_t)options->n_prefixes);
    }
}

const char *load_endpoint_path(load_endpoint endpoint) {
    return endpoint == LOAD_CHAT ? "/v1/chat/completions" : "/v1/completions";
}

/* Adds n tokens of a random stream: ids with commas, or words with spaces. Returns the end. */
static char *put_tokens(char *at, const load_plan_options *options, uint64_t stream, int32_t n,
                        int is_first) {
    uint64_t state = options->content_seed ^ (stream * 0x9e3779b97f4a7c15u);
    for (int32_t i = 0; i < n; i++) {
        uint64_t value = mb_random(&state);
        if (options->endpoint == LOAD_CHAT)
            at += sprintf(at, i == 0 && is_first ? "%s" : " %s", words[value % N_WORDS]);
        else
            at +=
                sprintf(at, i == 0 && is_first ? "%d" : ",%d", (int)(value % (uint64_t)options->vocabulary));
    }
    return at;
}

char *load_plan_body(const load_plan_options *options, const load_planned *item, int32_t i_request) {
    enum { TOKEN_BYTES = 12, FRAME_BYTES = 512 };
    int32_t n_prefix = options->prompts == LOAD_SHARED_PREFIX ? options->n_prefix : 0;
    int is_chat = options->endpoint == LOAD_CHAT;
    size_t n_tokens = (size_t)item->n_prompt + (size_t)n_prefix;
    char *body = mb_malloc(n_tokens * TOKEN_BYTES + FRAME_BYTES + strlen(options->model_json));
    if (body == NULL)
        return NULL;
    char *at = body + sprintf(body,
                              "{\"model\":%s,\"stream\":true,\"stream_options\":{\"include_usage\":true},"
                              "\"max_tokens\":%d,\"temperature\":%.6g,",
                              options->model_json, (int)item->n_output, options->temperature);
    if (!options->stops_at_eos)
        at += sprintf(at, "\"ignore_eos\":true,");
    at += sprintf(at, is_chat ? "\"messages\":[{\"role\":\"user\",\"content\":\"" : "\"prompt\":[");
    at = put_tokens(at, options, (uint64_t)item->i_prefix + 1, n_prefix, 1);
    uint64_t number = (uint64_t)options->first_request + (uint64_t)i_request;
    at = put_tokens(at, options, (number + 1) << 32, item->n_prompt, n_prefix == 0);
    sprintf(at, is_chat ? "\"}]}" : "]}");
    return body;
}
