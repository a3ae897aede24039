/* moebius bench serve: load on a server, and how it feels to the clients. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/file.h"
#include "cli/bench.h"
#include "cli/bench_rows.h"
#include "cli/interrupt.h"
#include "cli/output.h"
#include "load/summary.h"

typedef struct settings {
    const char *url, *model, *endpoint, *prompts, *key_file, *card, *dtype, *output;
    cli_integer n_prompt, n_output, n_prefix, n_prefixes, n_longest, vocabulary, n_requests, n_warmup,
        concurrency, seed;
    cli_number rate, temperature, timeout, slo_ttft, slo_tpot;
    int stops_at_eos, json;
} settings;

#define INTEGER(field, option_name, least, most, default_text, help_text)                                 \
    {                                                                                                     \
        .name = option_name, .value_name = "N", .kind = CLI_INTEGER, .offset = offsetof(settings, field), \
        .minimum = least, .maximum = most, .fallback = default_text, .help = help_text                    \
    }
#define TEXT(field, option_name, shown, default_text, help_text)                                         \
    {                                                                                                    \
        .name = option_name, .value_name = shown, .kind = CLI_TEXT, .offset = offsetof(settings, field), \
        .fallback = default_text, .help = help_text                                                      \
    }
#define NUMBER(field, option_name, shown, least, most, open, default_text, help_text)                      \
    {                                                                                                      \
        .name = option_name, .value_name = shown, .kind = CLI_NUMBER, .offset = offsetof(settings, field), \
        .minimum = least, .maximum = most, .ends = open, .fallback = default_text, .help = help_text       \
    }

static const cli_option server_options[] = {
    TEXT(url, "url", "URL", "http://127.0.0.1:8000",
         "Any server with OpenAI's API. A /v1 at the end changes nothing; https is not spoken."),
    TEXT(model, "model", "NAME", NULL, "Model to ask for. Without it: the first that the server names."),
    TEXT(
        key_file, "api-key-file", "FILE", NULL,
        "File with the server's API key. Without it the environment variable OPENAI_API_KEY counts, if it is set."),
    {.name = "endpoint",
     .value_name = "NAME",
     .kind = CLI_CHOICE,
     .offset = offsetof(settings, endpoint),
     .choices = "completions|chat",
     .fallback = "completions",
     .help =
         "completions sends prompts as token ids, so their lengths are exact. chat sends common words; the server's "
         "template comes on top."},
    {0},
};

static const cli_option load_options[] = {
    NUMBER(
        rate, "rate", "R", 0, 1e6, CLI_OPEN_BELOW, NULL,
        "Requests that arrive in a second, at random times (Poisson), whether or not earlier ones have been answered. "
        "Without it the next request begins when an earlier one has ended (--concurrency)."),
    INTEGER(
        concurrency, "concurrency", 1, 10000, NULL,
        "Most requests at the same time. With --rate: the others wait, and their waiting counts. Without both: 8."),
    INTEGER(n_requests, "requests", 1, 1000000, "100", "Requests in all."),
    INTEGER(
        n_warmup, "warmup", 0, 10000, "1",
        "Requests before, which are not measured. With shared-prefix they have the same prefixes, so those are in "
        "the server's cache then."),
    NUMBER(timeout, "timeout", "SECONDS", 0, 86400, CLI_OPEN_BELOW, "600",
           "A request that takes longer has failed."),
    INTEGER(
        seed, "seed", 0, 9007199254740991, "1",
        "Seed of lengths and arrival times. The prompts' tokens are others in every run, so that no run finds the "
        "prefix cache filled by the one before."),
    {0},
};

static const cli_option prompt_options[] = {
    {.name = "prompts",
     .value_name = "KIND",
     .kind = CLI_CHOICE,
     .offset = offsetof(settings, prompts),
     .choices = "fixed|sharegpt|shared-prefix",
     .fallback = "fixed",
     .help =
         "fixed: all of one length. sharegpt: log-normal lengths with the means of the ShareGPT conversations, 164 "
         "tokens in and 339 out. shared-prefix: as fixed, each after one of a few long prefixes."},
    INTEGER(n_prompt, "prompt-tokens", 1, 1048576, "512",
            "Tokens of a prompt; with shared-prefix, of the part of its own."),
    INTEGER(n_output, "output-tokens", 1, 1048576, "128", "Tokens of an answer."),
    INTEGER(n_prefix, "prefix-tokens", 1, 1048576, "2048", "With shared-prefix: tokens of a prefix."),
    INTEGER(n_prefixes, "prefixes", 1, 100000, "4",
            "With shared-prefix: how many different prefixes there are."),
    INTEGER(n_longest, "longest-tokens", 4, 1048576, "1024",
            "With sharegpt: most tokens of a prompt, and of an answer."),
    INTEGER(
        vocabulary, "vocabulary", 2, 1048576, "512",
        "With completions: prompts are random token ids below this number. 151643 covers Qwen3's vocabulary."),
    NUMBER(temperature, "temperature", "T", 0, 2, CLI_CLOSED, "0", "0 is greedy."),
    {.name = "stop-at-eos",
     .kind = CLI_FLAG,
     .offset = offsetof(settings, stops_at_eos),
     .help = "Let answers end by themselves. Without it ignore_eos is sent, so every answer has its length."},
    {0},
};

static const cli_option result_options[] = {
    NUMBER(slo_ttft, "slo-ttft-ms", "MS", 0, 1e9, CLI_OPEN_BELOW, NULL,
           "Limit for the time to the first token: goodput counts requests within all limits."),
    NUMBER(slo_tpot, "slo-tpot-ms", "MS", 0, 1e9, CLI_OPEN_BELOW, NULL,
           "Limit for the time of each further token, as the mean over an answer."),
    TEXT(card, "card", "NAME", NULL,
         "What the server computes with, for the rows. Without it: this machine's processor."),
    TEXT(dtype, "dtype", "NAME", NULL, "What the server computes in, for the rows."),
    {.name = "json",
     .kind = CLI_FLAG,
     .offset = offsetof(settings, json),
     .help = "Print the results as a JSON object in place of the table."},
    TEXT(output, "output", "FILE", NULL, "Also append the results to FILE, as a JSON object on one line."),
    {0},
};

static const cli_group groups[] = {
    {"Server", server_options, 0},
    {"Load", load_options, 0},
    {"Prompts", prompt_options, 0},
    {"Results", result_options, 0},
};

/* What was found out about the server. */
typedef struct served {
    load_address address;
    char model[256], owner[64];
    char key[1024];
} served;

/* ---- The server's facts */

static int read_key(const settings *given, served *server) {
    const char *key = getenv("OPENAI_API_KEY");
    if (given->key_file != NULL) {
        FILE *file = fopen(given->key_file, "r");
        char *line = file != NULL ? fgets(server->key, sizeof server->key, file) : NULL;
        if (file != NULL)
            fclose(file);
        if (line == NULL || strcspn(line, "\r\n") == 0)
            return cli_failure("--api-key-file: %s cannot be read, or is empty", given->key_file);
        line[strcspn(line, "\r\n")] = 0;
        key = line;
    }
    for (const char *at = key; at != NULL && *at != 0; at++)
        if (*at < '!' || *at > '~')
            return cli_failure("the API key has a character that cannot be sent in a header");
    server->address.key = key != NULL && key[0] != 0 ? key : NULL;
    return CLI_OK;
}

/* The model's name: the given one, or the first that the server has. */
static int find_model(const settings *given, served *server) {
    char *body = NULL;
    int http_status;
    if (load_address_get(&server->address, "/v1/models", &http_status, &body) != MB_OK)
        return cli_report_failure();
    json_t *models = http_status == 200 ? json_loads(body, 0, NULL) : NULL;
    const json_t *first = json_array_get(json_object_get(models, "data"), 0);
    const json_t *id = json_object_get(first, "id"), *owner = json_object_get(first, "owned_by");
    snprintf(server->owner, sizeof server->owner, "%s",
             json_is_string(owner) ? json_string_value(owner) : "unknown");
    snprintf(server->model, sizeof server->model, "%s",
             given->model != NULL ? given->model
             : json_is_string(id) ? json_string_value(id)
                                  : "");
    json_decref(models);
    mb_free(body);
    if (http_status == 401)
        return cli_failure("%s wants an API key: give --api-key-file, or set OPENAI_API_KEY", given->url);
    if (server->model[0] == 0)
        return cli_failure("%s/v1/models names no model (status %d); give --model", given->url, http_status);
    return CLI_OK;
}

static int find_server(const settings *given, served *server) {
    int status = read_key(given, server);
    if (status != CLI_OK)
        return status;
    if (load_address_find(given->url, &server->address) != MB_OK)
        return cli_report_failure();
    return find_model(given, server);
}

/* ---- The run */

static void report_progress(int32_t n_done, int32_t n_requests) {
    if (cli_messages_are_terminal())
        fprintf(stderr, "\r%d of %d requests ", (int)n_done, (int)n_requests);
}

static void end_progress(void) {
    if (cli_messages_are_terminal())
        fputs("\r                                \r", stderr);
}

static uint64_t fresh_seed(void) {
    return (uint64_t)(cli_now() * 1e9) * 0x9e3779b97f4a7c15u;
}

static int run_load(const settings *given, const served *server, load_plan_options *plan,
                    load_measured *measured) {
    load_run_options options = {.concurrency = (int32_t)given->concurrency.value,
                                .timeout_s = given->timeout.value,
                                .is_stopped = cli_interrupted,
                                .report = report_progress};
    if (!given->concurrency.given)
        options.concurrency = given->rate.given ? 0 : 8;
    if (given->n_warmup.value > 0) {
        load_plan_options warmup = *plan;
        warmup.n_requests = (int32_t)given->n_warmup.value;
        warmup.rate = 0;
        warmup.first_request = plan->n_requests; /* the same prefixes, other prompts */
        if (load_run(&server->address, &warmup, &options, measured) != MB_OK)
            return cli_report_failure();
        int was_stopped = measured->was_stopped;
        load_measured_free(measured);
        if (was_stopped)
            return CLI_INTERRUPTED;
    }
    mb_status status = load_run(&server->address, plan, &options, measured);
    end_progress();
    return status == MB_OK ? CLI_OK : cli_report_failure();
}

/* ---- The results */

static void describe_load(const settings *given, char *text, size_t capacity) {
    int concurrency = (int)(given->concurrency.given ? given->concurrency.value : 8);
    if (given->rate.given && given->concurrency.given)
        snprintf(text, capacity, "Poisson arrivals at %g in a second, at most %d at once", given->rate.value,
                 concurrency);
    else if (given->rate.given)
        snprintf(text, capacity, "Poisson arrivals at %g in a second", given->rate.value);
    else
        snprintf(text, capacity, "%d at once", concurrency);
}

static void describe_prompts(const settings *given, char *text, size_t capacity) {
    if (strcmp(given->prompts, "sharegpt") == 0)
        snprintf(text, capacity, "ShareGPT-like lengths up to %d", (int)given->n_longest.value);
    else if (strcmp(given->prompts, "shared-prefix") == 0)
        snprintf(text, capacity, "%d tokens in after one of %d prefixes of %d, %d out",
                 (int)given->n_prompt.value, (int)given->n_prefixes.value, (int)given->n_prefix.value,
                 (int)given->n_output.value);
    else
        snprintf(text, capacity, "%d tokens in, %d out", (int)given->n_prompt.value,
                 (int)given->n_output.value);
}

static void print_spread(const char *name, const load_spread *spread) {
    cli_print("%-28s %9.2f %9.2f %9.2f %9.2f %9.2f\n", name, spread->mean, spread->p50, spread->p90,
              spread->p99, spread->max);
}

/* Each sentence of failures once, with how often it came; the first few. */
static void print_failures(const load_measured *measured) {
    enum { MOST = 8 };
    const char *told[MOST];
    int n_told = 0;
    for (int32_t i = 0; i < measured->n_results && n_told < MOST; i++) {
        const char *message = measured->results[i].message;
        int n = 0, is_known = !measured->results[i].failed || message[0] == 0;
        for (int j = 0; j < n_told; j++)
            is_known |= strcmp(told[j], message) == 0;
        if (is_known)
            continue;
        told[n_told++] = message;
        for (int32_t j = i; j < measured->n_results; j++)
            n += measured->results[j].failed && strcmp(measured->results[j].message, message) == 0;
        cli_print("  %d failed: ", n);
        cli_print_text(message, strlen(message));
        cli_print("\n");
    }
}

static void print_table(const settings *given, const served *server, const load_measured *measured,
                        const load_summary *summary) {
    char load[128], prompts[128];
    describe_load(given, load, sizeof load);
    describe_prompts(given, prompts, sizeof prompts);
    cli_print("%s at %s\n%s, %s\n\n", server->model, given->url, load, prompts);
    cli_print("%-28s %9s %9s %9s %9s %9s\n", "milliseconds", "mean", "p50", "p90", "p99", "max");
    print_spread("time to first token", &summary->first);
    print_spread("time between tokens", &summary->gap);
    print_spread("time per output token", &summary->per_token);
    print_spread("end to end", &summary->whole);
    cli_print("\nrequests    %d completed, %d failed in %.1f s: %.2f in a second\n",
              (int)summary->n_completed, (int)summary->n_failed, measured->duration_s, summary->requests_s);
    print_failures(measured);
    cli_print("output      %.1f tokens/s", summary->output_tok_s);
    if (measured->steady_tok_s > 0)
        cli_print("; %.1f while all ran", measured->steady_tok_s);
    cli_print("\nprompts     %.1f tokens/s, %.1f %% of them cached\n", summary->prompt_tok_s,
              summary->n_prompt > 0 ? 100.0 * (double)summary->n_cached / (double)summary->n_prompt : 0.0);
    if (given->slo_ttft.given || given->slo_tpot.given)
        cli_print("goodput     %.2f requests in a second within the limits: %.1f %% of all\n",
                  summary->goodput_s, 100.0 * summary->n_good / (summary->n_completed + summary->n_failed));
    cli_print("client      %.2f s of processor time\n", measured->cpu_s);
    if (measured->was_stopped)
        cli_print("The run was interrupted; what had not ended counts as failed.\n");
}

static void add_spread(json_t *row, const char *name, const load_spread *spread) {
    json_object_set_new(row, name,
                        json_pack("{s:f, s:f, s:f, s:f, s:f}", "mean", spread->mean, "p50", spread->p50,
                                  "p90", spread->p90, "p99", spread->p99, "max", spread->max));
}

static json_t *shape_of(const settings *given) {
    json_t *shape = json_pack("{s:s, s:s}", "prompts", given->prompts, "endpoint", given->endpoint);
    if (given->rate.given)
        json_object_set_new(shape, "rate", json_real(given->rate.value));
    if (given->concurrency.given || !given->rate.given)
        json_object_set_new(shape, "concurrency",
                            json_integer(given->concurrency.given ? given->concurrency.value : 8));
    if (strcmp(given->prompts, "sharegpt") == 0) {
        json_object_set_new(shape, "longest", json_integer(given->n_longest.value));
    } else {
        json_object_set_new(shape, "in", json_integer(given->n_prompt.value));
        json_object_set_new(shape, "out", json_integer(given->n_output.value));
    }
    if (strcmp(given->prompts, "shared-prefix") == 0) {
        json_object_set_new(shape, "prefix", json_integer(given->n_prefix.value));
        json_object_set_new(shape, "prefixes", json_integer(given->n_prefixes.value));
    }
    return shape;
}

static json_t *row_of(const settings *given, const served *server, const load_measured *measured,
                      const load_summary *summary) {
    char date[16], card[128], how[256], load[128];
    cli_bench_date(date, sizeof date);
    cli_bench_card(given->card != NULL ? given->card : "cpu", card, sizeof card);
    describe_load(given, load, sizeof load);
    snprintf(how, sizeof how, "%s, %d requests after %d, seed %lld", load, (int)given->n_requests.value,
             (int)given->n_warmup.value, (long long)given->seed.value);
    json_t *row =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:o}", "bench", "serve", "who", server->owner,
                  "commit", strcmp(server->owner, "moebius") == 0 ? cli_bench_commit() : "unknown", "model",
                  server->model, "card", card, "date", date, "dtype",
                  given->dtype != NULL ? given->dtype : "unknown", "shape", shape_of(given));
    if (row == NULL)
        return NULL;
    add_spread(row, "ttft_ms", &summary->first);
    add_spread(row, "itl_ms", &summary->gap);
    add_spread(row, "tpot_ms", &summary->per_token);
    add_spread(row, "e2e_ms", &summary->whole);
    json_object_set_new(row, "requests", json_integer(summary->n_completed));
    json_object_set_new(row, "errors", json_integer(summary->n_failed));
    json_object_set_new(row, "s", json_real(measured->duration_s));
    json_object_set_new(row, "requests_s", json_real(summary->requests_s));
    json_object_set_new(row, "tok_s", json_real(summary->output_tok_s));
    json_object_set_new(row, "steady_tok_s", json_real(measured->steady_tok_s));
    json_object_set_new(row, "prompt_tok_s", json_real(summary->prompt_tok_s));
    json_object_set_new(row, "prompt_tokens", json_integer(summary->n_prompt));
    json_object_set_new(row, "cached_tokens", json_integer(summary->n_cached));
    json_object_set_new(row, "output_tokens", json_integer(summary->n_output));
    if (given->slo_ttft.given || given->slo_tpot.given) {
        json_object_set_new(row, "goodput_s", json_real(summary->goodput_s));
        if (given->slo_ttft.given)
            json_object_set_new(row, "slo_ttft_ms", json_real(given->slo_ttft.value));
        if (given->slo_tpot.given)
            json_object_set_new(row, "slo_tpot_ms", json_real(given->slo_tpot.value));
    }
    json_object_set_new(row, "client_cpu_s", json_real(measured->cpu_s));
    json_object_set_new(row, "how", json_string(how));
    return row;
}

static int tell(const settings *given, const served *server, load_measured *measured, cli_bench_rows *rows) {
    load_summary summary;
    if (load_summarise(measured, given->slo_ttft.value, given->slo_tpot.value, &summary) != MB_OK)
        return cli_report_failure();
    if (!rows->on_stdout && measured->n_results > 0)
        print_table(given, server, measured, &summary);
    if (measured->was_stopped)
        return CLI_INTERRUPTED;
    int status = cli_bench_rows_write(rows, row_of(given, server, measured, &summary));
    if (status == CLI_OK && summary.n_completed == 0)
        return cli_failure("every request failed; the first: %s", measured->results[0].message);
    return status;
}

static int measure(const settings *given, cli_bench_rows *rows) {
    served server = {0};
    load_measured measured = {0};
    cli_interrupt_catch(1);
    int status = find_server(given, &server);
    if (status != CLI_OK)
        return status;
    json_t *name = json_string(server.model);
    char *name_json = name != NULL ? json_dumps(name, JSON_ENCODE_ANY) : NULL;
    json_decref(name);
    if (name_json == NULL)
        return cli_failure("--model is not UTF-8");
    load_plan_options plan = {.prompts = strcmp(given->prompts, "sharegpt") == 0        ? LOAD_SHAREGPT
                                         : strcmp(given->prompts, "shared-prefix") == 0 ? LOAD_SHARED_PREFIX
                                                                                        : LOAD_FIXED,
                              .endpoint = strcmp(given->endpoint, "chat") == 0 ? LOAD_CHAT : LOAD_COMPLETIONS,
                              .n_requests = (int32_t)given->n_requests.value,
                              .rate = given->rate.value,
                              .n_prompt = (int32_t)given->n_prompt.value,
                              .n_output = (int32_t)given->n_output.value,
                              .n_prefix = (int32_t)given->n_prefix.value,
                              .n_prefixes = (int32_t)given->n_prefixes.value,
                              .n_longest = (int32_t)given->n_longest.value,
                              .vocabulary = (int32_t)given->vocabulary.value,
                              .seed = (uint64_t)given->seed.value,
                              .content_seed = fresh_seed(),
                              .model_json = name_json,
                              .temperature = given->temperature.value,
                              .stops_at_eos = given->stops_at_eos};
    status = run_load(given, &server, &plan, &measured);
    if (status == CLI_OK)
        status = tell(given, &server, &measured, rows);
    load_measured_free(&measured);
    free(name_json);
    return status;
}

static int bench_serve_main(int argc, char **argv) {
    settings given = {0};
    cli_bench_rows rows;
    int status = cli_parse(&cli_bench_serve_command, argc, argv, &given, NULL);
    if (status >= 0)
        return status;
    status = cli_bench_rows_open(&rows, given.json, given.output);
    if (status == CLI_OK)
        status = measure(&given, &rows);
    status = cli_bench_rows_close(&rows, status);
    cli_settings_free(&cli_bench_serve_command, &given);
    return status;
}

const cli_command cli_bench_serve_command = {
    .name = "bench serve",
    .summary = "load a server and measure what its clients see",
    .synopsis = "moebius bench serve [--url URL] [--rate R | --concurrency N] [--requests N]\n"
                "                    [--prompts KIND] [--prompt-tokens N] [--output-tokens N]\n"
                "                    [--slo-ttft-ms MS] [--slo-tpot-ms MS] [--json] [--output FILE]",
    .description =
        "Sends streaming requests to a server with OpenAI's API, moebius serve or another, and measures each as a client "
        "sees it. No model is opened here.\n"
        "\n"
        "With --rate requests arrive at random times and do not wait for each other, as those of many people do. Then a "
        "server that falls behind is seen to: times count from the planned arrival. With --concurrency a new request "
        "begins when another has ended, which tells what the server can do at most.\n"
        "\n"
        "Time to first token and end to end are over requests, time between tokens is over all pairs of events that "
        "follow each other, and time per output token is each request's mean after the first token. \"While all ran\" is "
        "from the last request's first token to the first request's end: what moebius bench calls decode.",
    .examples = "moebius bench serve --concurrency 64 --requests 256\n"
                "moebius bench serve --rate 4 --prompts sharegpt --slo-ttft-ms 500 --slo-tpot-ms 50\n"
                "moebius bench serve --url http://10.0.0.7:8000 --vocabulary 151643 --card 'NVIDIA H100' \\\n"
                "    --prompts shared-prefix --output results.jsonl",
    .operand_hint = "the server is given with --url",
    .groups = groups,
    .n_groups = CLI_COUNT(groups),
    .main = bench_serve_main,
};
