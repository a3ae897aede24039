/* reading.c - what readers of requests need to know of the model and the session. */
#include <string.h>

#include "server/generation.h"

static size_t longest_token(const mb_model *model, int32_t vocab) {
    size_t longest = 1, n_bytes;
    const char *bytes;
    for (int32_t id = 0; id < vocab; id++)
        if (mb_token_bytes(model, id, &bytes, &n_bytes, NULL) == MB_OK && n_bytes > longest)
            longest = n_bytes;
    return longest;
}

void server_reading_init(server_reading *reading, mb_model *model, mb_session *session,
                         const char *const *names, int64_t max_model_len) {
    mb_session_stats stats;
    *reading = (server_reading){.model = model, .names = names};
    mb_model_get_info(model, &reading->info);
    mb_session_get_stats(session, &stats);
    reading->context = reading->info.max_positions;
    if (64 * stats.kv_blocks_total < reading->context)
        reading->context = 64 * stats.kv_blocks_total;
    if (max_model_len > 0 && max_model_len < reading->context)
        reading->context = max_model_len;
    reading->longest_token = longest_token(model, reading->info.vocab);
    for (; *names != NULL; names++)
        reading->any_name |= strcmp(*names, "*") == 0;
}
