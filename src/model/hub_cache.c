/*
 * hub_cache.c - models that `hf download` has fetched. For the name ORG/NAME the cache has a folder
 * models--ORG--NAME: in it refs/main holds the commit, and snapshots/COMMIT/ the files.
 */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/alloc.h"
#include "base/file.h"
#include "moebius/moebius.h"

static int is_directory(const char *path) {
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

/* ORG/NAME, of the characters that the hub allows. */
static int is_hub_name(const char *name) {
    static const char allowed[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.";
    size_t org = strspn(name, allowed);
    const char *rest = name + org + 1;
    return org > 0 && name[0] != '.' && name[org] == '/' && *rest != '\0' && *rest != '.' &&
           rest[strspn(rest, allowed)] == '\0';
}

static mb_status find_cache(char path[PATH_MAX]) {
    static const struct {
        const char *variable, *below;
    } places[] = {
        {"HF_HUB_CACHE", ""},
        {"HF_HOME", "/hub"},
        {"XDG_CACHE_HOME", "/huggingface/hub"},
        {"HOME", "/.cache/huggingface/hub"},
    };
    for (size_t i = 0; i < sizeof places / sizeof *places; i++) {
        const char *value = getenv(places[i].variable);
        if (value == NULL || *value == '\0')
            continue;
        int n = snprintf(path, PATH_MAX, "%s%s", value, places[i].below);
        if (n >= PATH_MAX)
            return mb_fail(MB_ERR_ARGUMENT, "%s is a path of %d bytes, which is too long", places[i].variable,
                           n);
        return MB_OK;
    }
    return mb_fail(MB_ERR_NOT_FOUND, "neither HF_HOME nor HOME says where the Hugging Face cache is");
}

/* The commit that refs/main names; "" when there is none. */
static mb_status read_commit(const char *repository, char commit[NAME_MAX + 1]) {
    enum { MAX_REF_BYTES = 4096 };
    mb_small_file file;
    commit[0] = '\0';
    MB_TRY(mb_file_read_optional(repository, "refs/main", MAX_REF_BYTES, &file));
    if (file.bytes == NULL)
        return MB_OK;
    size_t length = strspn(file.bytes, "0123456789abcdefABCDEF");
    int is_commit =
        length > 0 && length <= NAME_MAX && file.bytes[length + strspn(file.bytes + length, " \r\n")] == '\0';
    if (is_commit) {
        memcpy(commit, file.bytes, length);
        commit[length] = '\0';
    }
    mb_free(file.bytes);
    return is_commit ? MB_OK : mb_fail(MB_ERR_FORMAT, "%s: not a commit of 40 hexadecimal digits", file.path);
}

static mb_status find_snapshot(const char *name, const char *cache, char snapshot[PATH_MAX]) {
    char repository[PATH_MAX], commit[NAME_MAX + 1];
    int org = (int)strcspn(name, "/");
    int n = snprintf(repository, sizeof repository, "%s/models--%.*s--%s", cache, org, name, name + org + 1);
    if (n >= PATH_MAX)
        return mb_fail(MB_ERR_ARGUMENT, "the path of %s in the cache %s is too long", name, cache);
    MB_TRY(read_commit(repository, commit));
    if (commit[0] == '\0')
        return mb_fail(
            MB_ERR_NOT_FOUND,
            "%s: no such directory, and no model of this name in the Hugging Face cache %s; if it is a "
            "model's name, get it with: hf download %s",
            name, cache, name);
    n = snprintf(snapshot, PATH_MAX, "%s/snapshots/%s", repository, commit);
    if (n >= PATH_MAX)
        return mb_fail(MB_ERR_ARGUMENT, "the path of %s in the cache %s is too long", name, cache);
    if (!is_directory(snapshot))
        return mb_fail(
            MB_ERR_NOT_FOUND,
            "%s: its download into the Hugging Face cache is not complete (there is no %s); go on with: hf "
            "download %s",
            name, snapshot, name);
    return MB_OK;
}

mb_status mb_find_model(const char *name, char **directory) {
    char path[PATH_MAX];
    const char *found = name;
    MB_TRY(mb_need(name, "mb_find_model: name"));
    MB_TRY(mb_need(directory, "mb_find_model: directory"));
    *directory = NULL;
    struct stat info;
    if (stat(name, &info) != 0) {
        if (errno != ENOENT || !is_hub_name(name))
            return mb_fail(MB_ERR_NOT_FOUND, "%s: %s; give the directory of a Hugging Face checkpoint", name,
                           errno == ENOENT ? "no such directory" : strerror(errno));
        char cache[PATH_MAX];
        MB_TRY(find_cache(cache));
        MB_TRY(find_snapshot(name, cache, path));
        found = path;
    }
    *directory = mb_strdup(found);
    return *directory != NULL ? MB_OK : mb_fail(MB_ERR_MEMORY, "no memory for the path %s", found);
}
