#include "cli/generate.h"

#include "base/alloc.h"
#include "cli/interrupt.h"
#include "cli/output.h"

int cli_encode(const mb_model *model, const char *text, size_t n_bytes, int parse_special, cli_ids *ids) {
    size_t capacity = n_bytes + 1, count = 0; /* rarely more tokens than bytes */
    for (;;) {
        int32_t *items = mb_malloc_array(capacity, sizeof *items);
        if (items == NULL)
            return cli_failure("no memory for a prompt of %zu bytes", n_bytes);
        mb_status status = mb_tokenize(model, text, n_bytes, parse_special, items, capacity, &count);
        if (status == MB_OK) {
            *ids = (cli_ids){items, count};
            return CLI_OK;
        }
        mb_free(items);
        if (status != MB_ERR_CAPACITY || count <= capacity)
            return cli_report_failure();
        capacity = count;
    }
}

int64_t cli_context_limit(const mb_model *model, mb_session *session) {
    mb_model_info info;
    mb_session_stats stats;
    mb_model_get_info(model, &info);
    mb_session_get_stats(session, &stats);
    int64_t kv_tokens = 64 * stats.kv_blocks_total;
    return kv_tokens < info.max_positions ? kv_tokens : info.max_positions;
}

/* Hands over what has arrived. `enough` ends the answer; further tokens are not looked at. */
static int read_tokens(mb_session *session, uint64_t id, cli_token_fn on_token, void *user,
                       cli_figures *figures, int *enough) {
    mb_token tokens[64];
    size_t n_tokens;
    do {
        if (mb_read(session, id, tokens, CLI_COUNT(tokens), &n_tokens, &figures->state) != MB_OK)
            return cli_report_failure();
        for (size_t i = 0; i < n_tokens && !*enough; i++) {
            figures->last = cli_now();
            if (figures->n_new++ == 0)
                figures->first = figures->last;
            cli_go go = on_token(user, &tokens[i]);
            if (go == CLI_GO_FAILED)
                return CLI_FAILED;
            *enough = go == CLI_GO_ENOUGH;
        }
    } while (n_tokens == CLI_COUNT(tokens));
    return cli_output_failed() ? CLI_FAILED : CLI_OK;
}

int cli_report_failed_sequence(mb_session *session, uint64_t id) {
    mb_get_failure(session, id);
    return cli_report_failure();
}

int cli_generate(mb_session *session, const mb_request *request, cli_token_fn on_token, void *user,
                 cli_figures *figures) {
    uint64_t id;
    *figures = (cli_figures){.n_prompt = request->n_ids, .submitted = cli_now(), .state = MB_WAITING};
    if (mb_submit(session, request, &id) != MB_OK)
        return cli_report_failure();
    int status = CLI_OK, enough = 0;
    for (int n_unfinished = 1; status == CLI_OK && !enough && n_unfinished > 0;) {
        if (cli_interrupted() && mb_cancel(session, id) != MB_OK)
            status = cli_report_failure();
        else if (mb_step(session, &n_unfinished) != MB_OK)
            status = cli_report_failure();
        else
            status = read_tokens(session, id, on_token, user, figures, &enough);
    }
    if (enough)
        figures->state = MB_FINISHED_STOP;
    if (status == CLI_OK && figures->state == MB_FAILED)
        status = cli_report_failed_sequence(session, id);
    mb_usage usage;
    if (mb_get_usage(session, id, &usage) == MB_OK)
        figures->n_cached = (size_t)usage.n_cached_tokens;
    mb_release(session, id);
    return status;
}

double cli_output_rate(const cli_figures *figures) {
    double seconds = figures->last - figures->first;
    return figures->n_new > 1 && seconds > 0 ? (double)(figures->n_new - 1) / seconds : 0;
}
