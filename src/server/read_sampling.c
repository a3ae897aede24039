/* read_sampling.c - the fields that the APIs share. */
#include <inttypes.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/alloc.h"
#include "server/generation.h"
#include "server/json_read.h"

enum {
    MAX_STOP_BYTES = 4096,
    MAX_ALL_STOP_BYTES =
        16 * 1024, /* every answer prepares all of them: n answers take n times their memory */
    MAX_STOP_IDS = 1024,
    MAX_BIASES = 1024,
};

const char server_shared_fields[] =
    "model stream stream_options temperature top_p top_k min_p repetition_penalty presence_penalty "
    "frequency_penalty seed n best_of stop stop_token_ids include_stop_str_in_output ignore_eos min_tokens "
    "max_tokens logit_bias skip_special_tokens spaces_between_special_tokens priority cache_salt prompt_logprobs "
    "return_token_ids kv_transfer_params user metadata store service_tier request_id use_beam_search "
    "truncate_prompt_tokens logprobs";

int server_read_model(const server_reading *reading, const json_t *body, server_generation *generation,
                      server_problem *problem) {
    const char *model = reading->names[0];
    if (server_json_string(body, "model", problem, &model) != 0)
        return -1;
    int is_served = reading->any_name;
    for (const char *const *name = reading->names; *name != NULL && !is_served; name++)
        is_served = strcmp(*name, model) == 0;
    if (!is_served)
        return server_refuse(problem, 404, "model", "The model `%.200s` does not exist.", model);
    if (strlen(model) >= sizeof generation->model)
        return server_refuse(problem, 400, "model", "model has more than %zu bytes",
                             sizeof generation->model - 1);
    strcpy(generation->model, model);
    return 0;
}

static int read_stops(const json_t *body, server_generation *generation, server_problem *problem) {
    const json_t *stop = server_json_get(body, "stop");
    size_t n_bytes = 0, n = json_is_array(stop) ? json_array_size(stop) : stop != NULL;
    if (stop != NULL && !json_is_array(stop) && !json_is_string(stop))
        return server_refuse(problem, 400, "stop", "stop is %s; it must be a string or an array of strings",
                             server_json_kind(stop));
    if (n > SERVER_MAX_STOPS)
        return server_refuse(problem, 400, "stop", "stop has %zu strings; give at most %d", n,
                             SERVER_MAX_STOPS);
    generation->stops = n > 0 ? mb_calloc(n, sizeof *generation->stops) : NULL;
    if (n > 0 && generation->stops == NULL)
        return server_refuse(problem, 503, NULL, "no memory for stop strings");
    for (size_t i = 0; i < n; i++) {
        const json_t *item = json_is_array(stop) ? json_array_get(stop, i) : stop;
        if (!json_is_string(item))
            return server_refuse(problem, 400, "stop", "stop[%zu] is %s; it must be a string", i,
                                 server_json_kind(item));
        size_t length = json_string_length(item);
        if (length == 0 || length > MAX_STOP_BYTES)
            return server_refuse(problem, 400, "stop", "a stop string has %zu bytes; it must have 1 to %d",
                                 length, MAX_STOP_BYTES);
        n_bytes += length;
        if (n_bytes > MAX_ALL_STOP_BYTES)
            return server_refuse(problem, 400, "stop", "the stop strings have more than %d bytes together",
                                 MAX_ALL_STOP_BYTES);
        generation->stops[i] = mb_strdup(json_string_value(item));
        if (generation->stops[i] == NULL)
            return server_refuse(problem, 503, NULL, "no memory for stop strings");
        generation->n_stops++;
    }
    return 0;
}

static int read_stop_ids(const server_reading *reading, const json_t *body, server_generation *generation,
                         server_problem *problem) {
    const json_t *array = NULL;
    size_t n_ids;
    if (server_json_array(body, "stop_token_ids", problem, &array) != 0)
        return -1;
    if (json_array_size(array) > MAX_STOP_IDS)
        return server_refuse(problem, 400, "stop_token_ids", "stop_token_ids has more than %d ids",
                             MAX_STOP_IDS);
    if (server_json_ids(array, "stop_token_ids", reading->info.vocab, problem, &generation->stop_ids,
                        &n_ids) != 0)
        return -1;
    generation->request.stop_ids = generation->stop_ids;
    generation->request.n_stop_ids = (int32_t)n_ids;
    return 0;
}

/* A decimal token id, or -1. */
static int64_t id_of_key(const char *key) {
    int64_t id = 0;
    if (*key == '\0' || strlen(key) > 10 || strspn(key, "0123456789") != strlen(key))
        return -1;
    for (; *key != '\0'; key++)
        id = 10 * id + (*key - '0');
    return id;
}

static int read_biases(const server_reading *reading, const json_t *body, server_generation *generation,
                       server_problem *problem) {
    const json_t *object = NULL;
    const char *key;
    json_t *value;
    int32_t n = 0;
    if (server_json_object(body, "logit_bias", problem, &object) != 0)
        return -1;
    size_t n_biases = json_object_size(object);
    if (n_biases == 0)
        return 0;
    if (n_biases > MAX_BIASES)
        return server_refuse(problem, 400, "logit_bias", "logit_bias has %zu tokens; give at most %d",
                             n_biases, MAX_BIASES);
    generation->biases = mb_malloc_array(n_biases, sizeof *generation->biases);
    if (generation->biases == NULL)
        return server_refuse(problem, 503, NULL, "no memory for logit_bias");
    json_object_foreach((json_t *)object, key, value) {
        int64_t id = id_of_key(key);
        double bias = json_is_number(value) ? json_number_value(value) : 1000;
        if (id < 0 || id >= reading->info.vocab)
            return server_refuse(problem, 400, "logit_bias",
                                 "logit_bias has the key \"%.40s\"; keys are token ids from 0 to %" PRId32,
                                 key, reading->info.vocab - 1);
        if (!(bias >= -100 && bias <= 100))
            return server_refuse(problem, 400, "logit_bias",
                                 "logit_bias of token %" PRId64 " must be a number in [-100, 100]", id);
        generation->biases[n++] = (mb_logit_bias){.id = (int32_t)id, .bias = (float)bias};
    }
    generation->request.sampling.logit_bias = generation->biases;
    generation->request.sampling.n_logit_bias = n;
    return 0;
}

static uint64_t fresh_seed(void) {
    uint64_t seed;
    if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) != (ssize_t)sizeof seed)
        seed = (uint64_t)time(NULL);
    return seed;
}

static uint64_t the_seed;
static pthread_once_t seed_once = PTHREAD_ONCE_INIT;

static void draw_seed(void) {
    the_seed = fresh_seed();
}

static uint64_t hash_seed(void) {
    pthread_once(&seed_once, draw_seed);
    return the_seed;
}

static int read_numbers(const json_t *body, mb_sampling *sampling, server_problem *problem) {
    int64_t seed = 0;
    if (server_json_float(body, "temperature", 0, 100, problem, &sampling->temperature) != 0 ||
        server_json_float(body, "top_p", 0, 1, problem, &sampling->top_p) != 0 ||
        server_json_float(body, "min_p", 0, 1, problem, &sampling->min_p) != 0 ||
        server_json_int32(body, "top_k", -1, INT32_MAX, problem, &sampling->top_k) != 0 ||
        server_json_float(body, "repetition_penalty", 1e-6, 100, problem, &sampling->repetition_penalty) !=
            0 ||
        server_json_float(body, "presence_penalty", -2, 2, problem, &sampling->presence_penalty) != 0 ||
        server_json_float(body, "frequency_penalty", -2, 2, problem, &sampling->frequency_penalty) != 0 ||
        server_json_integer(body, "seed", INT64_MIN, INT64_MAX, problem, &seed) != 0)
        return -1;
    if (server_json_get(body, "top_k") != NULL && sampling->top_k < 0)
        sampling->top_k = 0;
    sampling->seed = server_json_get(body, "seed") != NULL ? (uint64_t)seed : fresh_seed();
    return 0;
}

/* Fields that some servers have and this one does not: refused when they ask for something. */
static int refuse_unsupported(const json_t *body, const server_generation *generation,
                              server_problem *problem) {
    int beam_search = 0;
    int64_t best_of = generation->n_answers;
    if (server_json_bool(body, "use_beam_search", problem, &beam_search) != 0 ||
        server_json_integer(body, "best_of", 0, INT64_MAX, problem, &best_of) != 0)
        return -1;
    if (beam_search)
        return server_refuse(problem, 400, "use_beam_search", "beam search is not supported");
    if (best_of > 1 && best_of != generation->n_answers)
        return server_refuse(problem, 400, "best_of", "best_of other than n is not supported");
    if (server_json_get(body, "truncate_prompt_tokens") != NULL)
        return server_refuse(problem, 400, "truncate_prompt_tokens",
                             "truncate_prompt_tokens is not supported");
    return 0;
}

static int read_kv_transfer(const json_t *body, server_generation *generation, server_problem *problem) {
    const json_t *params = NULL;
    if (server_json_object(body, "kv_transfer_params", problem, &params) != 0)
        return -1;
    if (json_object_size(params) > 0)
        return server_refuse(problem, 400, "kv_transfer_params",
                             "kv_transfer_params must be empty: this server does not transfer KV caches");
    generation->has_kv_transfer = params != NULL;
    return 0;
}

/* Prefixes are shared by requests of one API key and one cache_salt. The salts of a process are its own,
 * because a hash whose seed is known can be met on purpose. */
static int read_salt(const json_t *body, server_generation *generation, server_problem *problem) {
    const char *text = "";
    char salted[32];
    if (server_json_string(body, "cache_salt", problem, &text) != 0)
        return -1;
    snprintf(salted, sizeof salted, "%d", generation->key);
    XXH64_hash_t of_key = XXH3_64bits_withSeed(salted, strlen(salted), hash_seed());
    generation->request.cache_salt = XXH3_64bits_withSeed(text, strlen(text), of_key);
    return 0;
}

int server_read_sampling(const server_reading *reading, const json_t *body, server_generation *generation,
                         server_problem *problem) {
    mb_request *request = &generation->request;
    const char *text = NULL;
    if (server_json_string(body, "user", problem, &text) != 0 ||
        read_numbers(body, &request->sampling, problem) != 0 ||
        server_json_int32(body, "n", 1, SERVER_MAX_ANSWERS, problem, &generation->n_answers) != 0 ||
        server_json_integer(body, "min_tokens", 0, INT32_MAX, problem, &generation->min_new_tokens) != 0 ||
        server_json_int32(body, "priority", INT32_MIN, INT32_MAX, problem, &request->priority) != 0 ||
        server_json_bool(body, "ignore_eos", problem, &request->ignore_eos) != 0 ||
        server_json_bool(body, "include_stop_str_in_output", problem, &generation->include_stop) != 0 ||
        server_json_bool(body, "skip_special_tokens", problem, &generation->skip_special) != 0 ||
        server_json_bool(body, "return_token_ids", problem, &generation->return_token_ids) != 0 ||
        server_json_int32(body, "prompt_logprobs", 0, SERVER_MAX_TOP_LOGPROBS, problem,
                          &generation->prompt_logprobs) != 0 ||
        read_stops(body, generation, problem) != 0 ||
        read_stop_ids(reading, body, generation, problem) != 0 ||
        read_biases(reading, body, generation, problem) != 0)
        return -1;
    if (read_salt(body, generation, problem) != 0 || read_kv_transfer(body, generation, problem) != 0)
        return -1;
    return refuse_unsupported(body, generation, problem);
}

int server_read_stream(const json_t *body, server_generation *generation, server_problem *problem) {
    const json_t *options = NULL;
    if (server_json_bool(body, "stream", problem, &generation->stream) != 0 ||
        server_json_object(body, "stream_options", problem, &options) != 0)
        return -1;
    if (generation->prompt_logprobs >= 0 && generation->stream)
        return server_refuse(problem, 400, "prompt_logprobs",
                             "prompt_logprobs goes without \"stream\": true");
    if (options == NULL)
        return 0;
    if (!generation->stream)
        return server_refuse(problem, 400, "stream_options",
                             "stream_options goes with \"stream\": true only");
    if (server_json_bool(options, "include_usage", problem, &generation->include_usage) != 0 ||
        server_json_bool(options, "continuous_usage_stats", problem, &generation->usage_always) != 0)
        return -1;
    generation->usage_always = generation->usage_always && generation->include_usage;
    return 0;
}
