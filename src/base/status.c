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
    char former[sizeof last_error];
    memcpy(former, last_error, sizeof former);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(last_error, sizeof last_error, format, arguments);
    va_end(arguments);
    /* The new part may be cut, the old one too: a sentence that is too long loses its end. */
    size_t n = strlen(last_error), room = sizeof last_error - 1 - n;
    const char *parts[] = {": ", former};
    for (int i = 0; i < 2; i++) {
        size_t length = strlen(parts[i]) < room ? strlen(parts[i]) : room;
        memcpy(last_error + n, parts[i], length);
        n += length;
        room -= length;
    }
    last_error[n] = '\0';
    return status;
}

mb_status mb_need(const void *argument, const char *what) {
    return argument ? MB_OK : mb_fail(MB_ERR_ARGUMENT, "%s is NULL", what);
}
