/*
 * offline.h - the server without HTTP: the body of a request in, the body of its reply
 * out, for moebius batch.
 */
#ifndef MB_SERVER_OFFLINE_H
#define MB_SERVER_OFFLINE_H

#include <jansson.h>

#include "moebius/answer.h"
#include "moebius/moebius.h"

typedef struct server_offline server_offline;

typedef struct server_offline_settings {
    const char *name;          /* of the model in replies, where a request names none; must live as long */
    int64_t max_model_len;     /* most tokens of prompt and answer; 0: as the model and the KV cache allow */
    int32_t max_requests;      /* at once; the session's max_queued is set to hold their answers */
    mb_answer_formats formats; /* of reasoning and calls, see mb_answer_formats_of */
    mb_session_options session;
} server_offline_settings;

/* The model must live longer. */
mb_status server_offline_open(mb_model *model, const server_offline_settings *settings,
                              server_offline **opened);
/* Ends what runs: its replies have status 503. No reply comes after this. NULL allowed. */
void server_offline_close(server_offline *offline);

/* Called once for each request, on any thread, perhaps within server_offline_answer. status: as of HTTP. The
 * body is JSON on one line, OpenAI's error object when the status is not 200; it is the callee's to free with
 * mb_free, and NULL when there was no memory for it. */
typedef void (*server_offline_fn)(void *user, int status, char *body, size_t n_body);

/* Answers a request to `url`, /v1/chat/completions or /v1/completions. Renders and tokenizes on the calling
 * thread; then returns. At most max_requests may be without a reply. */
void server_offline_answer(server_offline *offline, const char *url, const json_t *body,
                           server_offline_fn done, void *user);

/* Whether a text has the bounds of the server's requests, in depth and number of values; to be asked before it is
 * parsed. Returns 0, or -1 with a sentence. */
int server_offline_check(const char *json, size_t n_bytes, char *sentence, size_t capacity);

void server_offline_get_stats(server_offline *offline, mb_session_stats *stats);

#endif
