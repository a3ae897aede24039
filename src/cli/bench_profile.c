#include "cli/bench_profile.h"

#include <stdio.h>

#include "cli/output.h"

static double share_of(double part, double whole) {
    return whole > 0 ? part / whole : 0;
}

/* "attention", "gemm 5120x2048" */
static void operator_label(const mb_profile_operator *operator, char * label, size_t capacity) {
    if (operator->n> 0)
        snprintf(label, capacity, "%s %lldx%lld", operator->name, (long long)operator->n,
                 (long long)operator->k);
    else
        snprintf(label, capacity, "%s", operator->name);
}

/* A bar is as long as the operator's share of the slowest one. */
static void print_operator(const mb_profile *profile, const mb_profile_operator *operator) {
    static const char longest[] = "########################";
    char label[64];
    double n = (double)profile->n_steps, us = operator->us;
    int length = (int)(0.5 + (double)(sizeof longest - 1) * share_of(us, profile->operators[0].us));
    operator_label(operator, label, sizeof label);
    cli_print("    %-20s %6.1f %10.4f %6.1f %10.3f %10.4f %8.2f %8.3f", label, (double)operator->n_calls / n,
              us / n / 1e3,
              100 * share_of(us, profile->device_us), operator->bytes / n / 1e6, operator->flops / n / 1e9,
              share_of(operator->bytes, us) / 1e3, share_of(operator->flops, us) / 1e6);
    if (profile->floor_us > 0)
        cli_print(" %7.1f", 100 * share_of(operator->floor_us, us));
    cli_print("%s%.*s\n", length > 0 ? "  " : "", length, longest);
}

static void print_line(const char *label, double us, double device_us) {
    cli_print("    %-27s %10.4f %6.1f\n", label, us / 1e3, 100 * share_of(us, device_us));
}

void cli_bench_print_profile(const char *name, const cli_bench_pass *pass) {
    const mb_profile *profile = &pass->profile;
    double n = (double)profile->n_steps, device_us = profile->device_us / n;
    if (profile->n_steps == 0)
        return;
    cli_print("\n  %s, mean of %llu step%s\n    %-20s %6s %10s %6s %10s %10s %8s %8s%s\n", name,
              (unsigned long long)profile->n_steps, profile->n_steps == 1 ? "" : "s", "operator", "calls",
              "ms", "%", "MB", "GFLOP", "GB/s", "TFLOP/s", profile->floor_us > 0 ? " % floor" : "");
    for (int32_t i = 0; i < profile->n_operators; i++)
        print_operator(profile, &profile->operators[i]);
    print_line("between operators", profile->between_us / n, device_us);
    print_line("all on the device", device_us, device_us);
    print_line("the host's part", profile->host_us / n, device_us);
    print_line("a step that is not profiled", pass->step_us, device_us);
}

static json_t *operator_row(const mb_profile *profile, const mb_profile_operator *operator) {
    double n = (double)profile->n_steps, us = operator->us;
    json_t *row =
        json_pack("{s:s, s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "op", operator->name, "calls",
                  (double)operator->n_calls / n, "us", us / n, "share", share_of(us, profile->device_us),
                  "bytes", operator->bytes / n, "flops", operator->flops / n, "gbps",
                  share_of(operator->bytes, us) / 1e3, "tflops", share_of(operator->flops, us) / 1e6);
    if (row != NULL && operator->n> 0)
        json_object_set_new(row, "weight",
                            json_pack("[I, I]", (json_int_t) operator->n, (json_int_t) operator->k));
    if (row != NULL && operator->floor_us> 0)
        json_object_set_new(row, "floor_us", json_real(operator->floor_us / n));
    return row;
}

void cli_bench_add_profile(json_t *row, const cli_bench_pass *pass) {
    const mb_profile *profile = &pass->profile;
    double n = (double)profile->n_steps;
    json_t *operators = json_array();
    for (int32_t i = 0; i < profile->n_operators; i++)
        json_array_append_new(operators, operator_row(profile, &profile->operators[i]));
    json_object_set_new(row, "steps", json_integer((json_int_t)profile->n_steps));
    json_object_set_new(row, "device_us", json_real(profile->device_us / n));
    json_object_set_new(row, "between_us", json_real(profile->between_us / n));
    json_object_set_new(row, "host_us", json_real(profile->host_us / n));
    json_object_set_new(row, "operators", operators);
}
