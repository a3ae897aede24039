/* moebius bench train: whether the training operators are right, and how fast, at given shapes. */
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
    const char *dtype, *grad_dtype, *activation, *routing, *device, *output;
    int has_bias, skip_check, json;
    cli_integer tile_rows, n_repeat, n_threads, seed;
} settings;

/* What a CPU does in seconds. */
static int32_t default_shapes[] = {256, 256, 128, 16, 2};
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
         "Can be given several times. Without it: 256,256,128,16,2."},
    {.name = "routing",
     .value_name = "KIND",
     .kind = CLI_CHOICE,
     .offset = offsetof(settings, routing),
     .choices = "topk|rounding",
     .fallback = "topk",
     .help = "rounding: each expert's count of tokens is rounded to the nearest multiple of --tile-rows, as "
             "docs/training.md explains. Inference is with top-k always."},
    {.name = "tile-rows",
     .value_name = "N",
     .kind = CLI_INTEGER,
     .offset = offsetof(settings, tile_rows),
     .minimum = 1,
     .maximum = 65536,
     .fallback = "128",
     .help = "Rows of a tile: for --routing rounding, and for the share of rows that pad tiles."},
    {.name = "dtype",
     .value_name = "TYPE",
     .kind = CLI_CHOICE,
     .offset = offsetof(settings, dtype),
     .choices = "bf16|fp16|fp32",
     .fallback = "bf16",
     .help = "Type of tokens and weights."},
    {.name = "grad-dtype",
     .value_name = "TYPE",
     .kind = CLI_CHOICE,
     .offset = offsetof(settings, grad_dtype),
     .choices = "fp32|same",
     .fallback = "fp32",
     .help =
         "Type of the gradients of weights and biases; same: that of the weights, which is less to write."},
    {.name = "activation",
     .value_name = "NAME",
     .kind = CLI_CHOICE,
     .offset = offsetof(settings, activation),
     .choices = CLI_ACTIVATIONS,
     .fallback = "swiglu",
     .help =
         "Between the two matrices of an expert. The first three have a gate; the others' first matrix has "
         "half the rows."},
    {.name = "add-bias",
     .kind = CLI_FLAG,
     .offset = offsetof(settings, has_bias),
     .help = "Both matrices have a bias."},
    {.name = "skip-test",
     .kind = CLI_FLAG,
     .offset = offsetof(settings, skip_check),
     .help = "Do not compare the results with the reference, which takes minutes for a large layer."},
    {.name = "device",
     .value_name = "DEVICE",
     .kind = CLI_CHOICE,
     .offset = offsetof(settings, device),
     .choices = "cpu|cuda|cuda:N",
     .fallback = "cpu",
     .help = "Where it runs."},
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
     .help = "Timed runs; the median counts. Without it: 31 on a GPU, 3 on the CPU."},
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
     .help = "Print the results as JSON, one object a line, in place of the tables."},
    {.name = "output",
     .value_name = "FILE",
     .kind = CLI_TEXT,
     .offset = offsetof(settings, output),
     .help = "Also append the results to FILE, one JSON object a line."},
    {0},
};

static const cli_group groups[] = {{"Benchmark", options, 0}};

static const struct {
    const char *key, *name;
} passes[MB_N_PASSES] = {
    [MB_PASS_INFERENCE] = {"inference", "inference"},
    [MB_PASS_FORWARD] = {"forward", "training forward"},
    [MB_PASS_BOTH] = {"both", "forward + backward"},
    [MB_PASS_BACKWARD] = {"backward", "backward"},
};

static int is_on_cpu(const mb_bench_train_result *result) {
    return strcmp(result->device, "cpu") == 0;
}

static void describe_how(const settings *given, const mb_bench_train_result *result, char *how,
                         size_t capacity) {
    if (is_on_cpu(result))
        snprintf(how, capacity, "%d threads, wall clock, median of %d",
                 (int)(given->n_threads.given ? given->n_threads.value : sysconf(_SC_NPROCESSORS_ONLN)),
                 result->n_repeats);
    else
        snprintf(how, capacity, "graph, L2 flushed, median of %d", result->n_repeats);
}

static double tflops(const mb_bench_train_result *result, int pass) {
    return result->flops[pass] / result->us[pass] * 1e-6;
}

/* ---- Tables -------------------------------------------------------------------------------------------- */

static void print_head(const settings *given, const mb_bench_train_args *args,
                       const mb_bench_train_result *result) {
    char card[128], how[128];
    cli_bench_card(result->device, card, sizeof card);
    describe_how(given, result, how, sizeof how);
    cli_print("%s\nT %lld, H %d, I %d, E %d, K %d, %s, gradients %s, %s%s, %s\n%s\n", card,
              (long long)args->n_tokens, (int)args->hidden, (int)args->intermediate, (int)args->n_experts,
              (int)args->top_k, given->dtype, args->narrow_gradients ? given->dtype : "fp32",
              given->activation, given->has_bias ? " with biases" : "", given->routing, how);
}

static void print_checks(const mb_bench_train_result *result) {
    if (result->n_checks == 0) {
        cli_print("\nThe results were not compared.\n");
        return;
    }
    cli_print("\n           max |reference|  mean |reference|  max |difference|  mean relative\n");
    for (int i = 0; i < result->n_checks; i++) {
        const mb_bench_check *check = &result->checks[i];
        cli_print("  %-8s %15.4g  %16.4g  %16.4g  %13.2e%s\n", check->name, check->max_reference,
                  check->mean_reference, check->max_difference, check->mean_relative,
                  check->mean_relative <= result->limit ? "" : "  WRONG");
    }
}

static void print_times(const mb_bench_train_result *result) {
    int has_power = result->limit_watts > 0;
    cli_print("  %-20s %12s  %9s%s\n", "", "us", "TFLOP/s", has_power ? "  sustained    MHz     W" : "");
    for (int pass = 0; pass < MB_N_PASSES; pass++) {
        cli_print("  %-20s %12.1f  %9.3f", passes[pass].name, result->us[pass], tflops(result, pass));
        if (has_power)
            cli_print("  %9.3f  %5.0f  %4.0f", result->flops[pass] / result->sustained_us[pass] * 1e-6,
                      result->sm_mhz[pass], result->watts[pass]);
        cli_print("\n");
    }
    if (has_power)
        cli_print(
            "\n  Each pass begins after half a second of rest. sustained: TFLOP/s, SM clock and power of the same "
            "pass again and\n  again, without a graph, after a quarter of a second. The power limit is %.0f W: the clock falls "
            "at it, so compare\n  within a run.\n",
            result->limit_watts);
    if (has_power && result->watts_are_mean)
        cli_print(
            "  The driver tells power as a mean of the last second, in which the card has rested too.\n");
}

static void print_result(const settings *given, const mb_bench_train_args *args,
                         const mb_bench_train_result *result) {
    print_head(given, args, result);
    print_checks(result);
    const mb_moe_rounding_report *report = &result->report;
    cli_print("\n  choices: %lld routed, %lld processed, %lld in tiles of %d rows; wasted %.3f\n",
              (long long)report->routed, (long long)report->processed, (long long)report->hardware,
              (int)args->tile_rows, report->wasted_ratio);
    cli_print("  kept for the backward: %.2f MiB (p)\n\n", result->saved_bytes / (1 << 20));
    print_times(result);
    cli_flush();
}

/* ---- Rows ---------------------------------------------------------------------------------------------- */

static json_t *pack_checks(const mb_bench_train_result *result) {
    json_t *checks = json_object();
    for (int i = 0; i < result->n_checks; i++) {
        const mb_bench_check *check = &result->checks[i];
        json_object_set_new(checks, check->name,
                            json_pack("{s:f, s:f, s:f, s:f}", "max_reference", check->max_reference,
                                      "mean_reference", check->mean_reference, "max_difference",
                                      check->max_difference, "mean_relative", check->mean_relative));
    }
    return checks;
}

static void add_power(json_t *row, const mb_bench_train_result *result, int pass) {
    if (result->limit_watts <= 0)
        return;
    json_object_set_new(row, "sustained_us", json_real(result->sustained_us[pass]));
    json_object_set_new(row, "sm_mhz", json_real(result->sm_mhz[pass]));
    json_object_set_new(row, "watts", json_real(result->watts[pass]));
    json_object_set_new(row, "power", json_string(result->watts_are_mean ? "mean" : "instant"));
    json_object_set_new(row, "limit_watts", json_real(result->limit_watts));
}

static json_t *pack_row(const settings *given, const mb_bench_train_args *args,
                        const mb_bench_train_result *result, int pass) {
    char card[128], date[16], how[128];
    cli_bench_card(result->device, card, sizeof card);
    cli_bench_date(date, sizeof date);
    describe_how(given, result, how, sizeof how);
    const mb_moe_rounding_report *report = &result->report;
    json_t *row = json_pack(
        "{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:{s:I, s:i, s:i, s:i, s:i}, s:s, s:s, s:s, s:b, s:f, s:f,"
        " s:I, s:I, s:f, s:o, s:s}",
        "bench", "train", "who", "moebius", "commit", cli_bench_commit(), "card", card, "date", date, "dtype",
        args->dtype, "grad_dtype", args->narrow_gradients ? args->dtype : "fp32", "shape", "T",
        (json_int_t)args->n_tokens, "H", args->hidden, "I", args->intermediate, "E", args->n_experts, "K",
        args->top_k, "pass", passes[pass].key, "routing", given->routing, "activation", given->activation,
        "bias", args->has_bias, "us", result->us[pass], "tflops", tflops(result, pass), "processed",
        (json_int_t)report->processed, "hardware", (json_int_t)report->hardware, "wasted_ratio",
        report->wasted_ratio, "checks", pack_checks(result), "how", how);
    add_power(row, result, pass);
    return row;
}

static int run_shape(const settings *given, const int32_t *shape, cli_bench_rows *rows, int is_first) {
    mb_bench_train_args args = {
        .n_tokens = shape[0],
        .hidden = shape[1],
        .intermediate = shape[2],
        .n_experts = shape[3],
        .top_k = shape[4],
        .device = given->device,
        .dtype = given->dtype,
        .activation = cli_bench_activation(given->activation),
        .narrow_gradients = strcmp(given->grad_dtype, "same") == 0,
        .has_bias = given->has_bias,
        .rounding = strcmp(given->routing, "topk") == 0 ? MB_ROUNDING_NONE : MB_ROUNDING_NEAREST,
        .tile_rows = (int32_t)given->tile_rows.value,
        .skip_check = given->skip_check,
        .n_repeats = (int)given->n_repeat.value,
        .n_threads = (int)given->n_threads.value,
        .seed = (uint64_t)given->seed.value,
    };
    mb_bench_train_result result;
    int status = CLI_OK;
    if (mb_bench_train(&args, &result) != MB_OK)
        return cli_failure("--thiek %d,%d,%d,%d,%d: %s", (int)shape[0], (int)shape[1], (int)shape[2],
                           (int)shape[3], (int)shape[4], mb_last_error());
    if (!rows->on_stdout) {
        if (!is_first)
            cli_print("\n");
        print_result(given, &args, &result);
    }
    for (int pass = 0; pass < MB_N_PASSES && status == CLI_OK; pass++)
        status = cli_bench_rows_write(rows, pack_row(given, &args, &result, pass));
    if (status == CLI_OK && !result.is_right)
        return cli_failure("--thiek %d,%d,%d,%d,%d: a result differs by more than %g of the reference's mean",
                           (int)shape[0], (int)shape[1], (int)shape[2], (int)shape[3], (int)shape[4],
                           result.limit);
    return status;
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

static int bench_train_main(int argc, char **argv) {
    settings given = {0};
    cli_bench_rows rows;
    int status = cli_parse(&cli_bench_train_command, argc, argv, &given, NULL);
    if (status >= 0)
        return status;
    status = cli_bench_rows_open(&rows, given.json, given.output);
    if (status == CLI_OK)
        status = run_all(&given, &rows);
    status = cli_bench_rows_close(&rows, status);
    cli_settings_free(&cli_bench_train_command, &given);
    return status;
}

const cli_command cli_bench_train_command = {
    .name = "bench train",
    .summary = "check and measure the training of an MoE layer",
    .synopsis = "moebius bench train [--thiek T,H,I,E,K] ... [--routing topk|rounding]\n"
                "                    [--dtype TYPE] [--grad-dtype TYPE] [--activation NAME]\n"
                "                    [--add-bias] [--skip-test] [--json] [--output FILE]",
    .description =
        "Trains one MoE layer for a step, on random weights with uniform routing, and compares the output and all "
        "gradients with the CPU's reference in fp32 of the same values: dw1 is the gradient of the first matrix "
        "(gate and up), dw2 of the second, db1 and db2 of their biases, drouter of the router's logits. Then it "
        "times the passes. No model is needed. The exit status is 1 when a result is wrong. In fp32 on the CPU the "
        "reference is what is measured, and nothing differs.\n"
        "\n"
        "TFLOP/s counts the multiplications and additions of the experts' matrices: 6 T K H I forward with a gate "
        "(4 without), twice that backward. With token rounding the rows that were processed count in place of "
        "T K.",
    .examples = "moebius bench train\n"
                "moebius bench train --thiek 512,256,64,32,4 --routing rounding --tile-rows 16\n"
                "moebius bench train --activation gelu --add-bias --dtype fp16\n"
                "moebius bench train --output results.jsonl",
    .operand_hint = "a file for the results is given with --output FILE",
    .groups = groups,
    .n_groups = CLI_COUNT(groups),
    .main = bench_train_main,
};
