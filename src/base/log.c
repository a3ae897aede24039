#include "base/log.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *const level_names[] = {"error", "warn", "info", "debug"};

static mb_log_level threshold(void) {
    static atomic_int cached = -1;
    int level = atomic_load_explicit(&cached, memory_order_relaxed);
    if (level >= 0)
        return (mb_log_level)level;
    level = MB_LOG_WARN;
    const char *name = getenv("MOEBIUS_LOG");
    for (int i = 0; name && i <= MB_LOG_DEBUG; i++)
        if (strcmp(name, level_names[i]) == 0)
            level = i;
    atomic_store_explicit(&cached, level, memory_order_relaxed);
    return (mb_log_level)level;
}

void mb_log(mb_log_level level, const char *format, ...) {
    if (level > threshold())
        return;
    char line[1024];
    int n = snprintf(line, sizeof line, "moebius %s: ", level_names[level]);
    va_list arguments;
    va_start(arguments, format);
    int m = vsnprintf(line + n, sizeof line - (size_t)n - 1, format, arguments);
    va_end(arguments);
    if (m < 0)
        return;
    size_t end = (size_t)n + (size_t)m;
    if (end > sizeof line - 2)
        end = sizeof line - 2;
    line[end++] = '\n';
    ssize_t written = write(STDERR_FILENO, line, end);
    (void)written; /* nowhere left to complain */
}
