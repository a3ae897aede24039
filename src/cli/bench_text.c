/* moebius bench text: what the host does for text besides the model: masks, grammars, templates. */
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/alloc.h"
#include "base/median.h"
#include "base/random.h"
#include "cli/bench.h"
#include "cli/bench_rows.h"
#include "cli/engine_settings.h"
#include "cli/interrupt.h"
#include "cli/model_settings.h"
#include "cli/output.h"
#include "moebius/grammar.h"

enum { MAX_REPEAT = 100, MAX_TOKENS = 400, N_LATER = 8, MAX_GRAMMAR_BYTES = 1 << 15, N_MESSAGES = 20 };

typedef struct settings {
    cli_integer n_repeat, seed;
    int json;
    const char *output;
    cli_model_settings model;
} settings;

static const cli_option bench_options[] = {
    {.name = "repeat",
     .value_name = "N",
     .kind = CLI_INTEGER,
     .offset = offsetof(settings, n_repeat),
     .minimum = 1,
     .maximum = MAX_REPEAT,
     .fallback = "9",
     .help = "Compilations of each grammar, each with new answers, and renderings of the template."},
    {.name = "seed",
     .value_name = "N",
     .kind = CLI_INTEGER,
     .offset = offsetof(settings, seed),
     .minimum = 0,
     .maximum = 9007199254740991,
     .fallback = "1",
     .help = "Seed of the random answers."},
    {.name = "json",
     .kind = CLI_FLAG,
     .offset = offsetof(settings, json),
     .help = "Print the results as JSON, one object a line, in place of the table."},
    {.name = "output",
     .value_name = "FILE",
     .kind = CLI_TEXT,
     .offset = offsetof(settings, output),
     .help = "Also append the results to FILE, one JSON object a line."},
    {0},
};

static const cli_group groups[] = {
    {"Benchmark", bench_options, 0},
    {"Model", cli_model_options, offsetof(settings, model)},
};

/* ---- Grammars --------------------------------------------------------------------------------------- */

typedef struct text_case {
    const char *name;
    mb_grammar_kind kind;
    const char *text; /* NULL: the large schema. JSON, so that spaces after it make another text of it */
} text_case;

static const text_case cases[] = {
    {"any JSON object", MB_GRAMMAR_STRUCTURE, "{\"json_object\": true}"},
    {"schema of 10 kB", MB_GRAMMAR_JSON_SCHEMA, NULL},
    {"string", MB_GRAMMAR_JSON_SCHEMA, "{\"type\": \"string\"}"},
    {"string of up to 60", MB_GRAMMAR_JSON_SCHEMA, "{\"type\": \"string\", \"maxLength\": 60}"},
    {"string of up to 2000", MB_GRAMMAR_JSON_SCHEMA, "{\"type\": \"string\", \"maxLength\": 2000}"},
    {"pattern of letters", MB_GRAMMAR_JSON_SCHEMA,
     "{\"type\": \"string\", \"pattern\": \"^[a-zA-Z ]{10,200}$\"}"},
    {"regex of words", MB_GRAMMAR_STRUCTURE, "{\"regex\": \"([A-Z][a-z]+ ){3,20}is (good|bad)[.]\"}"},
    {"strings and numbers", MB_GRAMMAR_JSON_SCHEMA,
     "{\"type\": \"array\", \"minItems\": 50, \"items\": {\"type\": [\"string\", \"number\"]}}"},
};

/* About 10 kB: objects of objects with strings, enumerations, numbers and arrays. */
static void write_large_schema(char *end) {
    static const char *const kinds[] = {
        "{\"type\": \"string\", \"maxLength\": 80}",
        "{\"type\": \"integer\", \"minimum\": 0, \"maximum\": 1000000}",
        "{\"enum\": [\"red\", \"green\", \"blue\", \"unknown\"]}",
        "{\"type\": \"string\", \"format\": \"date-time\"}",
        "{\"type\": \"array\", \"items\": {\"type\": \"string\"}, \"maxItems\": 20}",
        "{\"type\": [\"number\", \"null\"]}",
        "{\"type\": \"string\", \"pattern\": \"^[A-Z]{2}[0-9]{4,8}$\"}",
        "{\"anyOf\": [{\"type\": \"boolean\"}, {\"type\": \"string\"}]}"};
    end += sprintf(end, "{\"type\": \"object\", \"properties\": {");
    for (int i = 0; i < 10; i++) {
        end += sprintf(end, "%s\"section_%d\": {\"type\": \"object\", \"properties\": {", i ? ", " : "", i);
        for (int k = 0; k < 14; k++)
            end += sprintf(end, "%s\"field_%d_of_%d\": %s", k ? ", " : "", k, i, kinds[(i + k) % 8]);
        end += sprintf(end, "}, \"required\": [\"field_0_of_%d\", \"field_5_of_%d\"]}", i, i);
    }
    sprintf(end, "}, \"required\": [\"section_0\", \"section_1\"]}");
}

/* ---- Measuring -------------------------------------------------------------------------------------- */

/* Of this thread's processor time, because other programs may have the core meanwhile. */
static double now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec * 1e-3;
}

typedef struct times {
    double *items;
    size_t n, capacity;
} times;

typedef struct summary {
    double median, p99, max;
} summary;

static summary summarize(times *t) {
    if (t->n == 0)
        return (summary){0};
    double median = mb_median(t->items, t->n); /* sorts */
    return (summary){median, t->items[t->n - 1 - t->n / 100], t->items[t->n - 1]};
}

typedef struct text_bench {
    const mb_model *model;
    mb_model_info info;
    char model_name[256], card[128], date[16];
    cli_bench_rows *rows;
    int n_repeat;
    uint64_t random;
    uint32_t *bits;
    size_t n_words;
    int32_t closing[5]; /* tokens that end something in JSON; -1: the vocabulary has none */
    times compile, first, later;
} text_bench;

static int keep_time(times *t, double us) {
    if (mb_grow((void **)&t->items, &t->capacity, t->n + 1, sizeof *t->items) != 0)
        return cli_failure("no memory for the times");
    t->items[t->n++] = us;
    return CLI_OK;
}

static mb_status find_closing(text_bench *b) {
    static const char closing[] = "\"}],:";
    memset(b->closing, 0xff, sizeof b->closing);
    for (int32_t id = 0; id < b->info.vocab; id++) {
        const char *bytes;
        size_t n_bytes;
        int is_special;
        mb_status status = mb_token_bytes(b->model, id, &bytes, &n_bytes, &is_special);
        if (status != MB_OK)
            return status;
        const char *found = n_bytes == 1 && !is_special && bytes[0] ? strchr(closing, bytes[0]) : NULL;
        if (found)
            b->closing[found - closing] = id;
    }
    return MB_OK;
}

static int is_allowed(const text_bench *b, int32_t id) {
    return id >= 0 && (b->bits[id / 32] >> (id % 32) & 1);
}

/* Any token that is allowed; now and then one that closes something, so that answers end. -1: there is none. */
static int32_t draw(text_bench *b) {
    for (int i = 0; i < 5 && mb_random(&b->random) % 4 == 0; i++)
        if (is_allowed(b, b->closing[i]))
            return b->closing[i];
    int32_t first = (int32_t)(mb_random(&b->random) % (uint64_t)b->info.vocab);
    for (int32_t i = 0; i < b->info.vocab; i++)
        if (is_allowed(b, (first + i) % b->info.vocab))
            return (first + i) % b->info.vocab;
    return -1;
}

/* Adds the times of the masks of one random answer. */
static int answer(text_bench *b, mb_grammar *grammar, times *t) {
    mb_grammar_state *state;
    if (mb_grammar_state_open(grammar, MB_GRAMMAR_AT_ONCE, &state) != MB_OK)
        return cli_report_failure();
    int status = CLI_OK;
    for (int n = 0; n < MAX_TOKENS && status == CLI_OK && !mb_grammar_is_finished(state); n++) {
        double start = now_us();
        mb_status masked = mb_grammar_mask(state, b->bits, b->n_words);
        double us = now_us() - start;
        int32_t id = masked == MB_OK ? draw(b) : -1;
        if (masked != MB_OK || (id >= 0 && mb_grammar_advance(state, id) != MB_OK))
            status = cli_report_failure();
        else
            status = keep_time(t, us);
        if (id < 0)
            break;
    }
    mb_grammar_state_close(state);
    return status;
}

/* One compilation; i: how many spaces make it a grammar that the model has not kept. */
static int compile_and_answer(text_bench *b, const text_case *c, const char *text, int i) {
    char padded[MAX_GRAMMAR_BYTES + MAX_REPEAT];
    size_t n_bytes = (size_t)snprintf(padded, sizeof padded, "%s%*s", text, i, "");
    mb_grammar *grammar;
    double start = now_us();
    if (mb_grammar_open(b->model, c->kind, padded, n_bytes, &grammar) != MB_OK)
        return cli_report_failure();
    int status = keep_time(&b->compile, now_us() - start);
    if (status == CLI_OK)
        status = answer(b, grammar, &b->first);
    for (int k = 0; k < N_LATER && status == CLI_OK; k++)
        status = answer(b, grammar, &b->later);
    mb_grammar_close(grammar);
    return cli_interrupted() ? CLI_INTERRUPTED : status;
}

/* ---- Rows ------------------------------------------------------------------------------------------- */

static json_t *row_of(const text_bench *b, const char *what) {
    char how[128];
    snprintf(how, sizeof how, "processor time of one thread, %d grammars or renderings", b->n_repeat);
    return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:i, s:s}", "bench", "text", "what", what, "who",
                     "moebius", "commit", cli_bench_commit(), "model", b->model_name, "card", b->card, "date",
                     b->date, "vocab", (int)b->info.vocab, "how", how);
}

static json_t *summary_json(summary s) {
    return json_pack("{s:f, s:f, s:f}", "median", s.median, "p99", s.p99, "max", s.max);
}

static int write_grammar_row(const text_bench *b, const text_case *c, size_t n_bytes, double compile_us,
                             summary first, summary later) {
    json_t *row = row_of(b, "grammar");
    if (row &&
        json_object_update_new(row, json_pack("{s:s, s:I, s:f, s:o, s:o}", "grammar", c->name, "bytes",
                                              (json_int_t)n_bytes, "compile_us", compile_us, "first_mask_us",
                                              summary_json(first), "mask_us", summary_json(later))) != 0) {
        json_decref(row);
        row = NULL;
    }
    return cli_bench_rows_write(b->rows, row);
}

static int run_grammar(text_bench *b, const text_case *c) {
    static char large[MAX_GRAMMAR_BYTES];
    if (!c->text)
        write_large_schema(large);
    const char *text = c->text ? c->text : large;
    int status = CLI_OK;
    b->compile.n = b->first.n = b->later.n = 0;
    for (int i = 0; i < b->n_repeat && status == CLI_OK; i++)
        status = compile_and_answer(b, c, text, i);
    if (status != CLI_OK)
        return status;
    double compile_us = summarize(&b->compile).median;
    summary first = summarize(&b->first), later = summarize(&b->later);
    if (!b->rows->on_stdout) {
        cli_print("%-21s %8.0f   %7.1f %7.1f %7.1f   %7.1f %7.1f %7.1f\n", c->name, compile_us, first.median,
                  first.p99, first.max, later.median, later.p99, later.max);
        cli_flush();
    }
    return write_grammar_row(b, c, strlen(text), compile_us, first, later);
}

/* ---- Template --------------------------------------------------------------------------------------- */

/* Messages of 800 bytes, of the user and the assistant by turns. */
static char *make_messages(void) {
    char content[801];
    json_t *messages = json_array();
    for (size_t i = 0; i < sizeof content - 1; i++)
        content[i] = "a small town by the sea, "[i % 25];
    content[sizeof content - 1] = '\0';
    int failed = !messages;
    for (int i = 0; i < N_MESSAGES && !failed; i++)
        failed = json_array_append_new(messages, json_pack("{s:s, s:s}", "role", i % 2 ? "assistant" : "user",
                                                           "content", content)) != 0;
    char *text = failed ? NULL : json_dumps(messages, 0);
    json_decref(messages);
    return text;
}

static int run_template(text_bench *b) {
    char *messages = make_messages();
    mb_chat_options options;
    mb_chat_options_init(&options);
    int status = messages ? CLI_OK : cli_failure("no memory for the messages");
    b->compile.n = 0;
    for (int i = 0; i < b->n_repeat && status == CLI_OK; i++) {
        char *text;
        double start = now_us();
        if (mb_chat_render(b->model, messages, &options, &text) != MB_OK)
            status = cli_report_failure();
        else
            status = keep_time(&b->compile, now_us() - start);
        mb_free_text(text);
    }
    free(messages);
    if (status != CLI_OK)
        return status;
    summary s = summarize(&b->compile);
    if (!b->rows->on_stdout)
        cli_print("\nchat template, %d messages of 800 bytes: %.0f us (slowest %.0f)\n", N_MESSAGES, s.median,
                  s.max);
    json_t *row = row_of(b, "template");
    if (row && json_object_update_new(row, json_pack("{s:i, s:o}", "messages", N_MESSAGES, "template_us",
                                                     summary_json(s))) != 0) {
        json_decref(row);
        row = NULL;
    }
    return cli_bench_rows_write(b->rows, row);
}

/* ---- Command ---------------------------------------------------------------------------------------- */

/* The first grammar of a model makes the tree of its tokens, which is no part of the others' time. */
static int make_tokens_tree(const mb_model *model) {
    mb_grammar *grammar;
    if (mb_grammar_open(model, MB_GRAMMAR_CHOICE, "[\"a\"]", 5, &grammar) != MB_OK)
        return cli_report_failure();
    mb_grammar_close(grammar);
    return CLI_OK;
}

static int run_all(const mb_model *model, const char *directory, const settings *given,
                   cli_bench_rows *rows) {
    text_bench b = {.model = model,
                    .rows = rows,
                    .n_repeat = (int)given->n_repeat.value,
                    .random = (uint64_t)given->seed.value};
    mb_model_get_info(model, &b.info);
    cli_name_of_path(directory, b.model_name, sizeof b.model_name);
    cli_bench_card("cpu", b.card, sizeof b.card);
    cli_bench_date(b.date, sizeof b.date);
    b.n_words = ((size_t)b.info.vocab + 31) / 32;
    b.bits = mb_malloc_array(b.n_words, sizeof *b.bits);
    int status = b.bits ? make_tokens_tree(model) : cli_failure("no memory for a mask");
    if (status == CLI_OK && find_closing(&b) != MB_OK)
        status = cli_report_failure();
    cli_interrupt_catch(1);
    if (status == CLI_OK && !rows->on_stdout)
        cli_print("%s, %d tokens, on one core of %s\nmicroseconds\n\n"
                  "                                mask, in new states         mask, further answers\n"
                  "grammar                compile    median     p99     max    median     p99     max\n",
                  b.model_name, (int)b.info.vocab, b.card);
    for (size_t i = 0; i < CLI_COUNT(cases) && status == CLI_OK; i++)
        status = cli_output_failed() ? CLI_FAILED : run_grammar(&b, &cases[i]);
    if (status == CLI_OK)
        status = run_template(&b);
    mb_free(b.bits);
    mb_free(b.compile.items);
    mb_free(b.first.items);
    mb_free(b.later.items);
    return status;
}

static int bench_text_main(int argc, char **argv) {
    settings given = {0};
    const char *directory;
    mb_model *model = NULL;
    cli_bench_rows rows;
    int status = cli_parse(&cli_bench_text_command, argc, argv, &given, &directory);
    if (status >= 0)
        return status;
    status = cli_bench_rows_open(&rows, given.json, given.output);
    if (status == CLI_OK)
        status = cli_open_part(directory, &given.model, MB_LOAD_TEXT, &model);
    if (status == CLI_OK)
        status = run_all(model, directory, &given, &rows);
    mb_model_close(model);
    status = cli_bench_rows_close(&rows, status);
    cli_settings_free(&cli_bench_text_command, &given);
    return status;
}

const cli_command cli_bench_text_command = {
    .name = "bench text",
    .summary = "measure masks, grammars and the chat template",
    .synopsis = "moebius bench text DIR [--repeat N] [--json] [--output FILE]",
    .description =
        "Times what the host does for a request besides the model, with DIR's tokenizer and chat template; weights "
        "are not needed.\n"
        "\n"
        "For each grammar: compiling it; then a random answer, whose states are new to the grammar, and further "
        "answers. Each step of an answer has one mask over the whole vocabulary; its time is the median, the 99th "
        "percentile and the slowest. All is processor time of one thread.\n"
        "\n"
        "tools/made_up_vocabulary.py makes a DIR with a tokenizer of any size, of words that no language has.",
    .examples = "moebius bench text models/demo\n"
                "moebius bench text Qwen/Qwen3-30B-A3B --output results.jsonl",
    .operand_hint = "a file for the results is given with --output FILE",
    .groups = groups,
    .n_groups = CLI_COUNT(groups),
    .main = bench_text_main,
};
