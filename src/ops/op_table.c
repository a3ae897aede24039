#include "ops/op_table.h"

#include <stdio.h>
#include <string.h>

static void append(char *names, size_t capacity, int is_first, const char *name) {
    size_t used = strlen(names);
    snprintf(names + used, capacity - used, "%s%s", is_first ? "" : ", ", name);
}

int mb_ops_missing(const mb_ops *ops, char *names, size_t capacity) {
    int n = 0;
    names[0] = '\0';
#define PLAIN(op) \
    if (!ops->op) \
        append(names, capacity, n++ == 0, #op);
#define WITH_WORKSPACE(op)                \
    if (!ops->op || !ops->op##_workspace) \
        append(names, capacity, n++ == 0, #op);
    MB_OPERATORS(PLAIN, WITH_WORKSPACE)
#undef PLAIN
#undef WITH_WORKSPACE
    return n;
}
