/* Responses of a server as the load generator reads them: HTTP, events, chunks. The first byte divides
 * the rest into pieces. */
#include <stddef.h>
#include <stdint.h>

#include "load/events.h"
#include "load/response.h"

static load_events events;

static void take_event(void *context, const char *data, size_t n_bytes) {
    load_chunk chunk;
    (void)context;
    load_chunk_read(data, n_bytes, &chunk);
}

static void take_body(void *context, const char *bytes, size_t n_bytes) {
    char message[200];
    load_events_take(&events, bytes, n_bytes, take_event, context);
    load_error_message(bytes, n_bytes, message, sizeof message);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static load_response response;
    if (size == 0)
        return 0;
    size_t step = (size_t)data[0] % 64 + 1;
    load_response_begin(&response);
    for (size_t at = 1; at < size && response.state != LOAD_COMPLETE && response.problem == NULL;) {
        size_t n = size - at < step ? size - at : step;
        at += load_response_take(&response, (const char *)data + at, n, take_body, NULL);
    }
    load_response_end(&response);
    load_events_free(&events);
    return 0;
}
