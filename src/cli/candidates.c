#include "cli/candidates.h"

#include <dirent.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/alloc.h"

void cli_candidates_free(cli_candidates *candidates) {
    for (size_t i = 0; i < candidates->count; i++)
        mb_free(candidates->items[i]);
    mb_free(candidates->items);
    *candidates = (cli_candidates){0};
}

void cli_candidates_offer(cli_candidates *candidates, const char *typed, const char *word) {
    if (strncmp(word, typed, candidates->n_typed) != 0 ||
        mb_grow((void **)&candidates->items, &candidates->capacity, candidates->count + 1,
                sizeof *candidates->items) != 0)
        return;
    char *copy = mb_strdup(word);
    if (copy != NULL)
        candidates->items[candidates->count++] = copy;
}

static int compare(const void *left, const void *right) {
    return strcmp(*(char *const *)left, *(char *const *)right);
}

void cli_candidates_offer_paths(cli_candidates *candidates, const char *typed) {
    char folder[PATH_MAX], word[PATH_MAX], path[PATH_MAX];
    const char *slash = strrchr(typed, '/'), *home = getenv("HOME");
    int n_folder = slash != NULL ? (int)(slash + 1 - typed) : 0, from_home = strncmp(typed, "~/", 2) == 0;
    const char *begin = from_home && home != NULL ? home : "", *rest = from_home ? typed + 1 : typed;
    candidates->n_typed = strlen(typed);
    if (snprintf(folder, sizeof folder, "%s%.*s", begin, n_folder - from_home, rest) >= (int)sizeof folder)
        return;
    DIR *opened = opendir(*folder != '\0' ? folder : ".");
    if (opened == NULL)
        return;
    for (struct dirent *entry; (entry = readdir(opened)) != NULL;) {
        struct stat info;
        /* Hidden files only when a dot was typed. */
        if (entry->d_name[0] == '.' && (typed[n_folder] != '.' || strcmp(entry->d_name, ".") == 0))
            continue;
        if (snprintf(path, sizeof path, "%s%s", folder, entry->d_name) >= (int)sizeof path)
            continue;
        int is_folder = stat(path, &info) == 0 && S_ISDIR(info.st_mode);
        if (snprintf(word, sizeof word, "%.*s%s%s", n_folder, typed, entry->d_name, is_folder ? "/" : "") <
            (int)sizeof word)
            cli_candidates_offer(candidates, typed, word);
    }
    closedir(opened);
    qsort(candidates->items, candidates->count, sizeof *candidates->items, compare);
}

size_t cli_candidates_common(const cli_candidates *candidates) {
    const char *first = candidates->items[0];
    size_t n = strlen(first);
    for (size_t i = 1; i < candidates->count; i++) {
        size_t same = 0;
        while (same < n && candidates->items[i][same] == first[same])
            same++;
        n = same;
    }
    /* Never half a character. */
    while (n > candidates->n_typed && ((unsigned char)first[n] & 0xc0) == 0x80)
        n--;
    return n;
}
