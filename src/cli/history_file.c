/*
 * One line for each entry: a line break in it is written \n, a backslash \\. Entries are
 * appended by one write, so several chats at once, or one that is killed, leave whole lines.
 * The file is cut when it is opened.
 */
#define _GNU_SOURCE /* memrchr */
#include "cli/history_file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/file.h"

enum {
    MAX_ENTRIES = 1000,
    MAX_ENTRY_BYTES = 16 << 10, /* as written */
    MAX_FILE_BYTES = 1 << 20,   /* after a cut */
    MAX_READ_BYTES = 64 << 20,  /* a larger file is not ours: nothing is read from it */
};

struct cli_history_file {
    char path[PATH_MAX];
};

static int find_path(char path[PATH_MAX]) {
    const char *named = getenv("MOEBIUS_HISTORY"), *state = getenv("XDG_STATE_HOME"), *home = getenv("HOME");
    int n = PATH_MAX;
    if (named != NULL)
        n = *named != '\0' ? snprintf(path, PATH_MAX, "%s", named) : PATH_MAX;
    else if (state != NULL && *state == '/') /* others are to be ignored, the XDG specification says */
        n = snprintf(path, PATH_MAX, "%s/moebius/chat_history", state);
    else if (home != NULL && *home != '\0')
        n = snprintf(path, PATH_MAX, "%s/.local/state/moebius/chat_history", home);
    return n < PATH_MAX ? 0 : -1;
}

/* Makes the folders of a path that are not there, readable for nobody else. */
static void make_folders(const char *path) {
    char part[PATH_MAX];
    for (const char *slash = strchr(path + 1, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        snprintf(part, sizeof part, "%.*s", (int)(slash - path), path);
        mkdir(part, 0700);
    }
}

/* The entry of a written line, in place. */
static void unescape(char *line) {
    char *out = line;
    for (; *line != '\0'; line++) {
        if (line[0] == '\\' && line[1] != '\0')
            *out++ = *++line == 'n' ? '\n' : *line;
        else
            *out++ = *line;
    }
    *out = '\0';
}

/* The entry as a line with its line break: freed with mb_free, NULL without memory. */
static char *escape(const char *entry, size_t *n_bytes) {
    char *line = mb_malloc(2 * strlen(entry) + 2);
    size_t n = 0;
    if (line == NULL)
        return NULL;
    for (; *entry != '\0'; entry++) {
        if (*entry == '\n' || *entry == '\\')
            line[n++] = '\\';
        line[n++] = *entry == '\n' ? 'n' : *entry;
    }
    line[n++] = '\n';
    *n_bytes = n;
    return line;
}

static int write_whole(int fd, const char *bytes, size_t n_bytes) {
    while (n_bytes > 0) {
        ssize_t n = write(fd, bytes, n_bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        bytes += n;
        n_bytes -= (size_t)n;
    }
    return 0;
}

/* Where the entries that are kept begin: the last ones, as far as number and size allow. */
static size_t find_cut(const char *bytes, size_t n_bytes) {
    size_t at = n_bytes, n_entries = 0;
    while (at > 0) {
        const char *before = at > 1 ? memrchr(bytes, '\n', at - 1) : NULL;
        size_t start = before != NULL ? (size_t)(before - bytes) + 1 : 0;
        if (n_entries == MAX_ENTRIES || n_bytes - start > MAX_FILE_BYTES)
            break;
        n_entries++;
        at = start;
    }
    return at;
}

/* Replaces the file by bytes: another chat reads the old file or the new one. */
static void replace(const char *path, const char *bytes, size_t n_bytes) {
    char fresh[PATH_MAX];
    if (snprintf(fresh, sizeof fresh, "%s.%ld", path, (long)getpid()) >= PATH_MAX)
        return;
    int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (fd < 0)
        return;
    int failed = write_whole(fd, bytes, n_bytes) != 0;
    failed |= close(fd) != 0;
    if (failed || rename(fresh, path) != 0)
        unlink(fresh);
}

cli_history_file *cli_history_file_open(void (*take)(void *user, const char *entry), void *user) {
    char *bytes;
    size_t n_bytes;
    cli_history_file *file = mb_calloc(1, sizeof *file);
    if (file == NULL || find_path(file->path) != 0) {
        mb_free(file);
        return NULL;
    }
    make_folders(file->path);
    mb_status status = mb_file_read(file->path, MAX_READ_BYTES, &bytes, &n_bytes);
    if (status != MB_OK)
        return file;
    chmod(file->path, 0600);
    const char *last_break = memrchr(bytes, '\n', n_bytes);
    size_t n_whole = last_break != NULL ? (size_t)(last_break - bytes) + 1 : 0; /* without a torn last line */
    size_t cut = find_cut(bytes, n_whole);
    if (cut > 0 || n_whole < n_bytes)
        replace(file->path, bytes + cut, n_whole - cut);
    for (char *line = bytes + cut, *end; (end = strchr(line, '\n')) != NULL; line = end + 1) {
        *end = '\0';
        unescape(line);
        take(user, line);
    }
    mb_free(bytes);
    return file;
}

void cli_history_file_close(cli_history_file *file) {
    mb_free(file);
}

void cli_history_file_add(cli_history_file *file, const char *entry) {
    size_t n_bytes;
    char *line = file != NULL ? escape(entry, &n_bytes) : NULL;
    if (line != NULL && n_bytes <= MAX_ENTRY_BYTES) {
        int fd = open(file->path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC | O_NONBLOCK, 0600);
        if (fd >= 0) {
            (void)!write(fd, line, n_bytes);
            close(fd);
        }
    }
    mb_free(line);
}
