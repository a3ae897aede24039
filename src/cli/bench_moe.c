/* moebius bench moe: how fast the MoE operator is at given shapes. */
#include "bench/bench.h"

#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli/bench.h"
#include "cli/bench_rows.h"
#include "cli/interrupt.h"
#include "cli/output.h"

typedef struct settings {
    cli_ids shapes; /* five numbers each */
    const char *dtype, *activation, *routing, *device, *output;
    int has_bias, json;
    cli_integer n_repeat, n_threads, seed;
} settings;

/* Qwen3-30B-A3B's layer: a token, a batch of sequences, and some prompts. */
static int32_t default_shapes[] = {1, 2048, 768, 128, 8, 16, 2048, 768, 128, 8, 704, 2048, 768, 128, 8};
enum { SIDES = 5 };

static const cli_option options[] = {
    {.name = "thiek",
     .value_name = "T,H,I,E,K",
     .kind = CLI_SHAPES,
     .offset = offsetof(settings, shapes),
     .minimum = 1,
     .maximum = 1048576,
     .help =
         "A shape: tokens, hidden size, intermediate size of one expert, experts, chosen experts per token. "
         "Can be given several times. Without it: Qwen3-30B-A3B's layer (2048,768,128,8) at 1, 16 and 704 "
         "tokens."},
    {.name = "dtype",
     .value_name = "TYPE",
     .kind = CLI_CHOICE,
     .offset = offsetof(settings, dtype),
     .choices = "bf16|fp16|tf32|fp32|fp8_block|fp8_tensor",
     .fallback = "bf16",
     .help =
         "Type of the weights, and how they are multiplied. tf32 and fp32: fp32 weights, on tensor cores or "
         "exactly. fp8_block: e4m3 weights with a scale for each 128 x 128 block. fp8_tensor: with one scale "
         "for each expert. Tokens are bf16 with both."},
    {.name = "activation",
     .value_name = "NAME",
     .kind = CLI_CHOICE,
     .offset = offsetof(settings, activation),
     .choices = CLI_ACTIVATIONS,
     .fallback = "swiglu",
     .help =
         "Between the two matrices of an expert. The first three have a gate; the others' first matrix has half "
         "the rows."},
    {.name = "bias",
     .kind = CLI_FLAG,
     .offset = offsetof(settings, has_bias),
     .help = "Both matrices have a bias."},
    {.name = "routing",
     .value_name = "KIND",
     .kind = CLI_CHOICE,
     .offset = offsetof(settings, routing),
     .choices = "uniform|zipf",
     .fallback = "uniform",
     .help =
         "How tokens choose experts. zipf: a token's first choice is the most popular expert twice as often as the "
         "second, three times as often as the third, and so on. Its other choices are drawn from the rest."},
    {.name = "device",
     .value_name = "DEVICE",
     .kind = CLI_CHOICE,
     .offset = offsetof(settings, device),
     .choices = "cpu|cuda|cuda:N",
     .help = "Where it runs. Without it: the GPU when there is one, else the CPU."},
    {.name = "threads",
     .value_name = "N",
     .kind = CLI_INTEGER,
     .offset = offsetof(settings, n_threads),
     .minimum = 1,
     .maximum = 1024,
     .help = "CPU threads. Without it: one for each core that the process may use."},
    {.name = "repeat",
     .value_name = "N",
     .kind = CLI_INTEGER,
     .offset = offsetof(settings, n_repeat),
     .minimum = 1,
     .maximum = 10000,
     .help = "Timed runs; the median counts. Without it: 31 on a GPU, 5 on the CPU."},
    {.name = "seed",
     .value_name = "N",
     .kind = CLI_INTEGER,
     .offset = offsetof(settings, seed),
     .minimum = 0,
     .maximum = 9007199254740991,
     .fallback = "1",
     .help = "Seed of weights, tokens and router logits."},
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

static const cli_group groups[] = {{"Benchmark", options, 0}};

static void describe_how(const settings *given, const mb_bench_moe_result *result, char *how,
                         size_t capacity) {
    if (strcmp(result->device, "cpu") == 0)
        snprintf(how, capacity, "%d threads, wall clock, median of %d",
                 (int)(given->n_threads.given ? given->n_threads.value : sysconf(_SC_NPROCESSORS_ONLN)),
                 result->n_repeats);
    else
        snprintf(how, capacity, "graph of route and forward, L2 flushed, median of %d", result->n_repeats);
}

static double tflops(const mb_bench_moe_result *result) {
    return result->flops / result->us * 1e-6;
}

static double gbps(const mb_bench_moe_result *result) {
    return result->bytes / result->us * 1e-3;
}

static int write_row(cli_bench_rows *rows, const settings *given, const mb_bench_moe_args *args,
                     const mb_bench_moe_result *result) {
    char card[128], date[16], how[128];
    cli_bench_card(result->device, card, sizeof card);
    cli_bench_date(date, sizeof date);
    describe_how(given, result, how, sizeof how);
    json_t *row = json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:s, s:{s:I, s:i, s:i, s:i, s:i}, s:s, s:b, s:f, s:f, s:f}", "bench",
        args->is_zipf ? "moe_zipf" : "moe", "who", "moebius", "commit", cli_bench_commit(), "card", card,
        "date", date, "dtype", args->dtype, "shape", "T", (json_int_t)args->n_tokens, "H", args->hidden, "I",
        args->intermediate, "E", args->n_experts, "K", args->top_k, "activation", given->activation, "bias",
        args->has_bias, "us", result->us, "tflops", tflops(result), "gbps", gbps(result));
    if (row != NULL && result->floor_us > 0)
        json_object_set_new(row, "floor_us", json_real(result->floor_us));
    if (row != NULL)
        json_object_set_new(row, "how", json_string(how));
    return cli_bench_rows_write(rows, row);
}

static void print_head(const settings *given, const mb_bench_moe_result *result) {
    char card[128], how[128];
    cli_bench_card(result->device, card, sizeof card);
    describe_how(given, result, how, sizeof how);
    cli_print("%s\n%s, %s%s, %s routing, %s\n\n", card, given->dtype, given->activation,
              given->has_bias ? " with biases" : "", given->routing, how);
    cli_print("      T      H      I     E   K          us   TFLOP/s     GB/s    floor us  %% of floor\n");
}

static void print_result(const mb_bench_moe_args *args, const mb_bench_moe_result *result) {
    cli_print("%7lld %6d %6d %5d %3d  %10.1f  %8.2f %8.1f", (long long)args->n_tokens, (int)args->hidden,
              (int)args->intermediate, (int)args->n_experts, (int)args->top_k, result->us, tflops(result),
              gbps(result));
    if (result->floor_us > 0)
        cli_print("  %10.1f  %10.1f\n", result->floor_us, 100 * result->floor_us / result->us);
    else
        cli_print("  %10s  %10s\n", "-", "-");
    cli_flush();
}

static int run_shape(const settings *given, const int32_t *shape, cli_bench_rows *rows, int is_first) {
    mb_bench_moe_args args = {
        .n_tokens = shape[0],
        .hidden = shape[1],
        .intermediate = shape[2],
        .n_experts = shape[3],
        .top_k = shape[4],
        .device = given->device,
        .dtype = given->dtype,
        .activation = cli_bench_activation(given->activation),
        .has_bias = given->has_bias,
        .is_zipf = strcmp(given->routing, "zipf") == 0,
        .n_repeats = (int)given->n_repeat.value,
        .n_threads = (int)given->n_threads.value,
        .seed = (uint64_t)given->seed.value,
    };
    mb_bench_moe_result result;
    if (mb_bench_moe(&args, &result) != MB_OK)
        return cli_failure("--thiek %d,%d,%d,%d,%d: %s", (int)shape[0], (int)shape[1], (int)shape[2],
                           (int)shape[3], (int)shape[4], mb_last_error());
    if (!rows->on_stdout) {
        if (is_first)
            print_head(given, &result);
        print_result(&args, &result);
    }
    return write_row(rows, given, &args, &result);
}

static int run_all(const settings *given, cli_bench_rows *rows) {
    const int32_t *shapes = given->shapes.count > 0 ? given->shapes.items : default_shapes;
    size_t n = given->shapes.count > 0 ? given->shapes.count : CLI_COUNT(default_shapes);
    int status = CLI_OK;
    cli_interrupt_catch(1);
    for (size_t i = 0; i < n && status == CLI_OK; i += SIDES) {
        status = cli_interrupted() ? CLI_INTERRUPTED : run_shape(given, shapes + i, rows, i == 0);
        if (cli_output_failed())
            status = CLI_FAILED;
    }
    return status;
}

static int bench_moe_main(int argc, char **argv) {
    settings given = {0};
    cli_bench_rows rows;
    int status = cli_parse(&cli_bench_moe_command, argc, argv, &given, NULL);
    if (status >= 0)
        return status;
    status = cli_bench_rows_open(&rows, given.json, given.output);
    if (status == CLI_OK)
        status = run_all(&given, &rows);
    status = cli_bench_rows_close(&rows, status);
    cli_settings_free(&cli_bench_moe_command, &given);
    return status;
}

const cli_command cli_bench_moe_command = {
    .name = "bench moe",
    .summary = "measure the MoE operator",
    .synopsis = "moebius bench moe [--thiek T,H,I,E,K] ... [--dtype TYPE] [--activation NAME]\n"
                "                  [--bias] [--routing KIND] [--device DEVICE] [--json]\n"
                "                  [--output FILE]",
    .description =
        "Times one MoE layer with its router, from tokens and router logits to the combined output, on random "
        "weights. No model is needed.\n"
        "\n"
        "TFLOP/s counts the multiplications and additions of the experts' matrices. GB/s counts the weights of the "
        "experts that were chosen at all. The floor is the time that the card needs for the larger of the two, when "
        "it reads 3.0 TB/s (H200: 4.3) and computes 700 TFLOP/s in bf16 and fp16, 1400 in fp8, 350 in tf32 and 45 in "
        "fp32. On a GPU it is a CUDA graph that is timed, and 256 MiB are written before each run, so that the cache "
        "holds none of the weights. On the CPU there is no floor.",
    .examples = "moebius bench moe\n"
                "moebius bench moe --thiek 16,2048,768,128,8 --thiek 4096,2048,768,128,8 --dtype fp8_block\n"
                "moebius bench moe --thiek 64,256,64,8,2 --device cpu --activation gelu --bias\n"
                "moebius bench moe --output results.jsonl",
    .operand_hint = "a file for the results is given with --output FILE",
    .groups = groups,
    .n_groups = CLI_COUNT(groups),
    .main = bench_moe_main,
};
