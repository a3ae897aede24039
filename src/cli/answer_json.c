#include "cli/answer_json.h"

#include <string.h>

#include <jansson.h>

#include "cli/output.h"

static const char *finish_reason(mb_state state) {
    switch (state) {
    case MB_FINISHED_STOP:
        return "stop";
    case MB_FINISHED_LENGTH:
        return "length";
    default:
        return "interrupted";
    }
}

/* The text, or null when only ids were asked for. */
static json_t *string_or_null(const char *text, size_t n_bytes) {
    return text != NULL ? json_stringn(text, n_bytes) : json_null();
}

static json_t *list_ids(const cli_ids *ids) {
    json_t *list = json_array();
    for (size_t i = 0; i < ids->count && list != NULL; i++) {
        if (json_array_append_new(list, json_integer(ids->items[i])) != 0) {
            json_decref(list);
            list = NULL;
        }
    }
    return list;
}

static json_t *usage(const cli_figures *figures) {
    return json_pack("{s:I, s:I, s:I}", "prompt_tokens", (json_int_t)figures->n_prompt, "completion_tokens",
                     (json_int_t)figures->n_new, "total_tokens",
                     (json_int_t)(figures->n_prompt + figures->n_new));
}

/* Seconds. The first token is null when there is none. */
static json_t *timings(const cli_answer_report *report) {
    const cli_figures *figures = report->figures;
    json_t *first = figures->n_new > 0 ? json_real(figures->first - report->started) : json_null();
    return json_pack("{s:f, s:o, s:f, s:f}", "loading", figures->submitted - report->started, "first_token",
                     first, "total", cli_now() - report->started, "output_tokens_per_second",
                     cli_output_rate(figures));
}

int cli_print_answer_json(const cli_answer_report *report) {
    const cli_answer *answer = report->answer;
    const char *text = answer == NULL || answer->text != NULL ? NULL : "", *stop = NULL;
    if (answer != NULL && answer->text != NULL)
        text = answer->text;
    if (answer != NULL && answer->stop >= 0)
        stop = report->stop_texts->items[answer->stop];
    json_t *seed =
        report->sampling->temperature > 0 ? json_integer((json_int_t)report->sampling->seed) : json_null();
    json_t *object = json_pack("{s:s, s:o, s:o, s:s, s:o, s:o, s:o, s:o}", "model", report->model, "text",
                               string_or_null(text, answer != NULL ? answer->n_text : 0), "ids",
                               list_ids(report->ids), "finish_reason", finish_reason(report->figures->state),
                               "stop", string_or_null(stop, stop != NULL ? strlen(stop) : 0), "seed", seed,
                               "usage", usage(report->figures), "timings", timings(report));
    if (object == NULL)
        return cli_failure("no memory for the answer as JSON");
    json_dumpf(object, stdout, JSON_REAL_PRECISION(6)); /* the end of the program tells of a failed write */
    cli_print("\n");
    json_decref(object);
    return CLI_OK;
}
