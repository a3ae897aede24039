/* moebius bench: prefill and decode speed of a model on this machine. */
#include "cli/bench.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/bench_profile.h"
#include "cli/bench_rows.h"
#include "cli/commands.h"
#include "cli/engine_settings.h"
#include "cli/interrupt.h"
#include "cli/model_settings.h"
#include "cli/output.h"

typedef struct settings {
    cli_ids lengths, batches;
    cli_integer n_new, n_repeat, seed;
    int json, random_weights, profile;
    cli_integer steps_in_flight, max_step_tokens;
    const char *output, *graphs;
    cli_model_settings model;
} settings;

static const cli_option bench_options[] = {
    {.name = "prompt-lengths",
     .value_name = "N[,...]",
     .kind = CLI_IDS,
     .offset = offsetof(settings, lengths),
     .minimum = 1,
     .maximum = 1048576,
     .fallback = "128,512",
     .help = "Tokens of each prompt."},
    {.name = "batches",
     .value_name = "N[,...]",
     .kind = CLI_IDS,
     .offset = offsetof(settings, batches),
     .minimum = 1,
     .maximum = 1024,
     .fallback = "1,8",
     .help = "Sequences that run at the same time. Every length is timed with every batch; what the model "
             "has no room for is left out."},
    {.letter = 'n',
     .name = "max-new-tokens",
     .value_name = "N",
     .kind = CLI_INTEGER,
     .offset = offsetof(settings, n_new),
     .minimum = 1,
     .maximum = 65536,
     .fallback = "64",
     .help = "Decode steps in each timed run."},
    {.name = "repeat",
     .value_name = "N",
     .kind = CLI_INTEGER,
     .offset = offsetof(settings, n_repeat),
     .minimum = 1,
     .maximum = 1000,
     .fallback = "3",
     .help = "Timed runs after one warm-up; the median counts."},
    {.name = "seed",
     .value_name = "N",
     .kind = CLI_INTEGER,
     .offset = offsetof(settings, seed),
     .minimum = 0,
     .maximum = 9007199254740991,
     .fallback = "1",
     .help = "Seed of the random prompts."},
    {.name = "graphs",
     .value_name = "HOW",
     .kind = CLI_CHOICE,
     .offset = offsetof(settings, graphs),
     .choices = "step|none|attention|two-streams",
     .fallback = "step",
     .help =
         "How a GPU gets a decode step: as one CUDA graph; kernel by kernel; with a graph for the attention of "
         "each layer; or as one graph with copies on a second stream. The results have the same bits."},
    {.name = "steps-in-flight",
     .value_name = "N",
     .kind = CLI_INTEGER,
     .offset = offsetof(settings, steps_in_flight),
     .minimum = 1,
     .maximum = 2,
     .help =
         "2: the next step is planned and launched while the device runs one. Without it: 2 on a GPU, 1 on "
         "the CPU. The results have the same bits."},
    {.name = "max-step-tokens",
     .value_name = "N",
     .kind = CLI_INTEGER,
     .offset = offsetof(settings, max_step_tokens),
     .minimum = 2,
     .maximum = 1048576,
     .help =
         "Most tokens in one step, of all prompts or of one: at least twice the batch. Without it: 2048 on "
         "the CPU, of one prompt 512; 8192 on a GPU."},
    {.name = "profile",
     .kind = CLI_FLAG,
     .offset = offsetof(settings, profile),
     .help =
         "Also tell where the time of a step goes, operator by operator, as a table with bars and as rows with "
         "\"bench\": \"profile\", which bench/plot_profile.py draws."},
    {.name = "random-weights",
     .kind = CLI_FLAG,
     .offset = offsetof(settings, random_weights),
     .help =
         "DIR needs no more than a config.json, and may be the path of that file: random weights of its shape are "
         "made on the device, always the same ones."},
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

/* What every row says about this run. */
typedef struct run_facts {
    mb_model_info info;
    char model[256], card[128], date[16], how[128];
    const char *graphs;
    int with_profile;
} run_facts;

static void collect_facts(const char *directory, const settings *given, const mb_model *model,
                          run_facts *facts) {
    mb_model_get_info(model, &facts->info);
    facts->with_profile = given->profile;
    cli_name_of_path(directory, facts->model, sizeof facts->model);
    int on_cpu = strcmp(facts->info.device, "cpu") == 0;
    cli_bench_card(facts->info.device, facts->card, sizeof facts->card);
    cli_bench_date(facts->date, sizeof facts->date);
    char threads[32] = "";
    if (on_cpu)
        snprintf(threads, sizeof threads, "%d threads, ",
                 (int)(given->model.n_threads.given ? given->model.n_threads.value
                                                    : sysconf(_SC_NPROCESSORS_ONLN)));
    facts->graphs = given->graphs;
    snprintf(facts->how, sizeof facts->how, "%srandom prompts, 1 warm-up, median of %d", threads,
             (int)given->n_repeat.value);
}

/* What all rows say. bench: "prefill", "decode" or "profile". */
static json_t *make_row(const run_facts *facts, const char *bench, const cli_bench_case *shape,
                        int64_t step_tokens, const cli_bench_pass *pass) {
    const mb_profile *profile = &pass->profile;
    json_t *row =
        json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:{s:i, s:i}, s:I, s:s, s:s, s:s, s:f, s:f, s:s}",
                  "bench", bench, "who", "moebius", "commit", cli_bench_commit(), "model", facts->model,
                  "card", facts->card, "date", facts->date, "dtype", facts->info.dtype, "shape", "batch",
                  shape->batch, "context", shape->length, "max_step_tokens", (json_int_t)step_tokens,
                  "graphs", facts->graphs, "weights", facts->info.weight_dtype, "kv", facts->info.kv_dtype,
                  "tok_s", pass->tok_s, "step_us", pass->step_us, "how", facts->how);
    if (row == NULL || profile->n_steps == 0)
        return row;
    json_object_set_new(row, "bytes", json_real(profile->bytes / (double)profile->n_steps));
    json_object_set_new(row, "flops", json_real(profile->flops / (double)profile->n_steps));
    if (profile->floor_us > 0)
        json_object_set_new(row, "floor_us", json_real(profile->floor_us / (double)profile->n_steps));
    return row;
}

static json_t *make_profile_row(const run_facts *facts, const char *name, const cli_bench_case *shape,
                                int64_t step_tokens, const cli_bench_pass *pass) {
    json_t *row = make_row(facts, "profile", shape, step_tokens, pass);
    if (row != NULL) {
        json_object_set_new(row, "pass", json_string(name));
        cli_bench_add_profile(row, pass);
    }
    return row;
}

static int write_rows(cli_bench_rows *rows, const run_facts *facts, const char *name,
                      const cli_bench_case *shape, int64_t step_tokens, const cli_bench_pass *pass) {
    int status = cli_bench_rows_write(rows, make_row(facts, name, shape, step_tokens, pass));
    if (status == CLI_OK && facts->with_profile && pass->profile.n_steps > 0)
        status = cli_bench_rows_write(rows, make_profile_row(facts, name, shape, step_tokens, pass));
    return status;
}

static void print_head(const run_facts *facts) {
    cli_print("%s on %s\n%s weights, %s, graphs: %s, %s\n\n", facts->model, facts->card,
              facts->info.weight_dtype, facts->info.dtype, facts->graphs, facts->how);
    cli_print("  prompt   batch                   prompt or       ms a        MB a     GFLOP a     %% of\n"
              "  tokens                     output tokens/s       step        step        step    floor\n");
    cli_flush();
}

static void print_pass(const char *name, const cli_bench_case *bench, const cli_bench_pass *pass) {
    const mb_profile *profile = &pass->profile;
    double n = (double)profile->n_steps;
    cli_print("%8d  %6d  %-8s  %17.1f  %9.3f", (int)bench->length, (int)bench->batch, name, pass->tok_s,
              pass->step_us / 1e3);
    if (profile->n_steps > 0)
        cli_print("  %10.1f  %10.3f", profile->bytes / n / 1e6, profile->flops / n / 1e9);
    if (profile->n_steps > 0 && profile->floor_us > 0)
        cli_print("  %7.1f", 100 * profile->floor_us / n / pass->step_us);
    cli_print("\n");
}

static void print_result(const run_facts *facts, const cli_bench_case *bench,
                         const cli_bench_result *result) {
    print_pass("prefill", bench, &result->prefill);
    print_pass("decode", bench, &result->decode);
    if (facts->with_profile) {
        cli_bench_print_profile("prefill", &result->prefill);
        cli_bench_print_profile("decode", &result->decode);
        cli_print("\n");
    }
    cli_flush();
}

/* Times one combination, or says why the model is too small for it. *n_run counts the timed ones. */
static int run_case(mb_model *model, const run_facts *facts, const cli_bench_case *bench,
                    cli_bench_rows *rows, int *n_run) {
    cli_bench_result result;
    if (cli_bench_positions(bench) > facts->info.max_positions) {
        fprintf(stderr,
                "moebius: left out: prompts of %d tokens, batch %d and -n %d take %lld positions, the model "
                "has %d\n",
                (int)bench->length, (int)bench->batch, (int)bench->n_new,
                (long long)cli_bench_positions(bench), (int)facts->info.max_positions);
        return CLI_OK;
    }
    if (bench->max_step_tokens > 0 && bench->max_step_tokens < 2 * bench->batch) {
        fprintf(
            stderr,
            "moebius: left out: batch %d: steps of %d tokens are too small for it; give --max-step-tokens %d "
            "or more\n",
            (int)bench->batch, (int)bench->max_step_tokens, 2 * (int)bench->batch);
        return CLI_OK;
    }
    if (!rows->on_stdout && *n_run == 0)
        print_head(facts);
    ++*n_run;
    int status = cli_bench_run(model, bench, &result);
    if (status == CLI_OK && result.is_left_out) {
        --*n_run;
        fprintf(stderr, "moebius: left out: prompts of %d tokens, batch %d: %s\n", (int)bench->length,
                (int)bench->batch, mb_last_error());
    }
    if (status != CLI_OK || result.is_left_out)
        return status;
    if (!rows->on_stdout)
        print_result(facts, bench, &result);
    status = write_rows(rows, facts, "prefill", bench, result.step_tokens, &result.prefill);
    if (status == CLI_OK)
        status = write_rows(rows, facts, "decode", bench, result.step_tokens, &result.decode);
    return status;
}

static mb_graphs chosen_graphs(const settings *given) {
    static const char *const names[] = {[MB_GRAPHS_STEP] = "step",
                                        [MB_GRAPHS_NONE] = "none",
                                        [MB_GRAPHS_ATTENTION] = "attention",
                                        [MB_GRAPHS_TWO_STREAMS] = "two-streams"};
    mb_graphs graphs = MB_GRAPHS_STEP;
    while (strcmp(names[graphs], given->graphs) != 0)
        graphs++;
    return graphs;
}

static int run_all(mb_model *model, const char *directory, const settings *given, cli_bench_rows *rows) {
    run_facts facts;
    int status = CLI_OK, n_run = 0;
    collect_facts(directory, given, model, &facts);
    cli_interrupt_catch(1);
    for (size_t i = 0; i < given->lengths.count && status == CLI_OK; i++) {
        for (size_t j = 0; j < given->batches.count && status == CLI_OK; j++) {
            cli_bench_case bench = {.length = given->lengths.items[i],
                                    .batch = given->batches.items[j],
                                    .n_new = (int32_t)given->n_new.value,
                                    .n_repeat = (int32_t)given->n_repeat.value,
                                    .seed = (uint64_t)given->seed.value,
                                    .graphs = chosen_graphs(given),
                                    .profile = given->profile,
                                    .steps_in_flight = (int32_t)given->steps_in_flight.value,
                                    .max_step_tokens = (int32_t)given->max_step_tokens.value};
            status = run_case(model, &facts, &bench, rows, &n_run);
            if (cli_output_failed())
                status = CLI_FAILED;
        }
    }
    if (status == CLI_OK && n_run == 0)
        status = cli_failure(
            "no combination fits this model and its memory; give smaller --prompt-lengths, --batches or -n");
    return status;
}

static int bench_main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "moe") == 0)
        return cli_bench_moe_command.main(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "serve") == 0)
        return cli_bench_serve_command.main(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "text") == 0)
        return cli_bench_text_command.main(argc - 1, argv + 1);
    if (argc > 1 && strcmp(argv[1], "train") == 0)
        return cli_bench_train_command.main(argc - 1, argv + 1);
    settings given = {0};
    const char *directory;
    mb_model *model = NULL;
    cli_bench_rows rows;
    int status = cli_parse(&cli_bench_command, argc, argv, &given, &directory);
    if (status >= 0)
        return status;
    status = cli_bench_rows_open(&rows, given.json, given.output);
    if (status == CLI_OK)
        status = cli_open_part(directory, &given.model, given.random_weights ? MB_LOAD_RANDOM : MB_LOAD_ALL,
                               &model);
    if (status == CLI_OK)
        status = run_all(model, directory, &given, &rows);
    mb_model_close(model);
    status = cli_bench_rows_close(&rows, status);
    cli_settings_free(&cli_bench_command, &given);
    return status;
}

const cli_command cli_bench_command = {
    .name = "bench",
    .summary = "measure prefill and decode speed, the MoE operator, or a server",
    .synopsis = "moebius bench DIR [--prompt-lengths 128,512] [--batches 1,8] [-n 64] [--repeat 3]\n"
                "                  [--profile] [--json] [--output FILE]\n"
                "moebius bench moe [--thiek T,H,I,E,K] ...\n"
                "moebius bench serve [--url URL] ...\n"
                "moebius bench text DIR ...\n"
                "moebius bench train [--thiek T,H,I,E,K] ...",
    .description =
        "Times random prompts, drawn over the whole vocabulary, at every combination of the given lengths and "
        "batches, and prints two speeds.\n"
        "\n"
        "Prefill is in prompt tokens per second: the tokens of all prompts, divided by the time until every sequence "
        "has its first new token. Decode is in output tokens per second: the tokens that all sequences together get "
        "in N steps after that, divided by the time of those steps; prompt tokens are not counted.\n"
        "\n"
        "Bytes and floating-point operations of a step are what its operators must move and compute: of the experts "
        "those that tokens were sent to, of the KV cache the positions that were attended. They are counted in "
        "further runs, after the timed ones. The floor, on a GPU, is the time of the bytes at the rate that its memory reaches, "
        "or of the operations at the rate of their type, whichever is longer.\n"
        "\n"
        "moebius bench moe times the MoE operator alone, without a model: see moebius bench moe --help. "
        "moebius bench serve measures a server: see moebius bench serve --help. moebius bench text "
        "measures masks, grammars and the chat template: see moebius bench text --help. moebius bench train checks and "
        "times the training of an MoE layer: see moebius bench train --help. (A folder that is called moe, serve, text or "
        "train is given as ./moe, ./serve, ./text or ./train.)",
    .examples = "moebius bench models/demo\n"
                "moebius bench models/demo --prompt-lengths 256 --batches 1,2,4 --repeat 5\n"
                "moebius bench models/demo --profile --batches 1,16 --prompt-lengths 256\n"
                "moebius bench models/demo --output results.jsonl",
    .operand_hint = "a file for the results is given with --output FILE",
    .groups = groups,
    .n_groups = CLI_COUNT(groups),
    .main = bench_main,
};
