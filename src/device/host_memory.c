#include "device/host_memory.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/status.h"

/* The number behind `key` on a line of its own, or the first number when key is "". 0: none ("max": no
 * limit). */
static uint64_t read_number(const char *root, const char *path, const char *name, const char *key) {
    char full[PATH_MAX], line[512];
    unsigned long long number = 0;
    if (snprintf(full, sizeof full, "%s%s%s", root, path, name) >= (int)sizeof full)
        return 0;
    FILE *file = fopen(full, "re");
    if (!file)
        return 0;
    size_t n = strlen(key);
    while (fgets(line, sizeof line, file))
        if (strncmp(line, key, n) == 0 && sscanf(line + n, "%llu", &number) == 1)
            break;
    fclose(file);
    return number;
}

/* What differs between the two versions of control groups. */
typedef struct cgroup_files {
    const char *mount, *limit, *used, *active, *inactive; /* the last two: keys of memory.stat */
} cgroup_files;

/* One group: lowers the figures when it has a limit and less memory, or less left. */
static void apply_group(const char *root, const cgroup_files *files, const char *group, uint64_t *total_bytes,
                        uint64_t *free_bytes) {
    char path[PATH_MAX];
    if (snprintf(path, sizeof path, "%s%s/", files->mount, group) >= (int)sizeof path)
        return;
    uint64_t limit = read_number(root, path, files->limit, "");
    if (limit == 0)
        return;
    uint64_t used = read_number(root, path, files->used, "");
    uint64_t cached = read_number(root, path, "memory.stat", files->active) +
                      read_number(root, path, "memory.stat", files->inactive);
    used = used > cached ? used - cached : 0;
    uint64_t left = used < limit ? limit - used : 0;
    *total_bytes = limit < *total_bytes ? limit : *total_bytes;
    *free_bytes = left < *free_bytes ? left : *free_bytes;
}

/* This process's group in a hierarchy, as /proc/self/cgroup names it: "0::/a/b" or "4:memory:/a/b". ""
 * if none. */
static void find_group(const char *root, const char *controller, char group[PATH_MAX]) {
    char path[PATH_MAX], line[PATH_MAX];
    group[0] = '\0';
    if (snprintf(path, sizeof path, "%s/proc/self/cgroup", root) >= (int)sizeof path)
        return;
    FILE *file = fopen(path, "re");
    if (!file)
        return;
    while (fgets(line, sizeof line, file)) {
        char *names = strchr(line, ':'), *own = names ? strchr(names + 1, ':') : NULL;
        if (!own)
            continue;
        *own++ = '\0';
        own[strcspn(own, "\n")] = '\0';
        if (strcmp(names + 1, controller) == 0)
            snprintf(group, PATH_MAX, "%s", strcmp(own, "/") == 0 ? "" : own);
    }
    fclose(file);
}

mb_status mb_host_memory(const char *root, uint64_t *total_bytes, uint64_t *free_bytes) {
    static const cgroup_files versions[] = {
        {"/sys/fs/cgroup", "memory.max", "memory.current", "active_file ", "inactive_file "},
        {"/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_active_file ",
         "total_inactive_file "},
    };
    static const char *const controllers[] = {"", "memory"};
    *total_bytes = read_number(root, "/proc/", "meminfo", "MemTotal:") * 1024;
    *free_bytes = read_number(root, "/proc/", "meminfo", "MemAvailable:") * 1024;
    if (*total_bytes == 0)
        return mb_fail(MB_ERR_DEVICE, "cpu: %s/proc/meminfo does not tell how much memory there is", root);
    for (int i = 0; i < 2; i++) {
        char group[PATH_MAX];
        find_group(root, controllers[i], group);
        for (;;) { /* a group has its parents' limits too */
            apply_group(root, &versions[i], group, total_bytes, free_bytes);
            char *last = strrchr(group, '/');
            if (!last)
                break;
            *last = '\0';
        }
    }
    return MB_OK;
}
