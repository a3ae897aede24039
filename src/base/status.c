#include "base/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* A fixed buffer per thread: recording an error must work when memory is what ran out. */
static _Thread_local char last_error[1024];

const char *mb_status_name(mb_status status) {
    switch (status) {
#define X(name, value, text) \
    case name:               \
        return #name;
        MB_STATUS_LIST(X)
#undef X
    }
    return "MB_ERR_UNKNOWN";
}

const char *mb_status_text(mb_status status) {
    switch (status) {
#define X(name, value, text) \
    case name:               \
        return text;
        MB_STATUS_LIST(X)
#undef X
    }
    return "unknown status code";
}

const char *mb_last_error(void) {
    return last_error;
}

mb_status mb_fail(mb_status status, const char *format, ...) {
    /* Formatted aside first: an argument may be the present sentence itself. */
    char sentence[sizeof last_error];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    memcpy(last_error, sentence, sizeof sentence);
    return status;
}

mb_status mb_fail_context(mb_status status, const char *format, ...) {
    char sentence[sizeof last_error];
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    if (n >= 0 && (size_t)n < sizeof sentence)
        snprintf(sentence + n, sizeof sentence - (size_t)n, ": %s", last_error);
    memcpy(last_error, sentence, sizeof sentence);
    return status;
}
