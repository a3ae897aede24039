#include "model/weights/checkpoint.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/file.h"
#include "base/log.h"
#include "model/json.h"
#include "model/weights/name_list.h"

enum { SHOWN = 160, MAX_PATH = 4096, MAX_INDEX_BYTES = 100000000, LFS_START = 64 };

static const char index_name[] = "model.safetensors.index.json";
static const char single_name[] = "model.safetensors";

/* ---- One shard ---------------------------------------------------------------------------------------- */

static mb_status read_fully(int fd, const char *path, uint64_t offset, void *to, size_t n_bytes) {
    size_t done = 0;
    while (done < n_bytes) {
        ssize_t n = pread(fd, (char *)to + done, n_bytes - done, (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return mb_fail(MB_ERR_IO, "%s: reading at byte %llu failed: %s", path,
                           (unsigned long long)(offset + done),
                           n < 0 ? strerror(errno) : "the file became shorter; is something writing to it?");
        done += (size_t)n;
    }
    return MB_OK;
}

static mb_status read_header(mb_shard *shard) {
    struct stat info;
    if (fstat(shard->fd, &info) != 0)
        return mb_fail(MB_ERR_IO, "%s: %s", shard->path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return mb_fail(MB_ERR_FORMAT, "%s: not a regular file; the checkpoint's download is damaged",
                       shard->path);
    uint64_t size = (uint64_t)info.st_size;
    if (size < MB_SAFETENSORS_PREFIX)
        return mb_fail(MB_ERR_FORMAT,
                       "%s: only %llu bytes, too short for a safetensors file; download it again",
                       shard->path, (unsigned long long)size);
    shard->n_bytes = size;
    char start[LFS_START];
    size_t n_start = size < sizeof start ? (size_t)size : sizeof start, n_bytes;
    MB_TRY(read_fully(shard->fd, shard->path, 0, start, n_start));
    MB_TRY(mb_lfs_pointer_check(shard->path, start, n_start));
    unsigned char prefix[MB_SAFETENSORS_PREFIX];
    memcpy(prefix, start, sizeof prefix);
    MB_TRY(mb_safetensors_header_bytes(shard->path, prefix, size, &n_bytes));
    char *header = mb_malloc(n_bytes);
    if (!header)
        return mb_fail(MB_ERR_MEMORY, "%s: no memory for the header of %zu bytes", shard->path, n_bytes);
    mb_status status = read_fully(shard->fd, shard->path, sizeof prefix, header, n_bytes);
    if (status == MB_OK)
        status = mb_safetensors_parse(shard->path, header, n_bytes, size, &shard->header);
    mb_free(header);
    return status;
}

/* Any tensor that the index puts into the shard: for the sentence about a missing file. */
static const char *a_tensor_of(const mb_shard_index *index, const char *shard) {
    const char *tensor;
    json_t *value;
    json_object_foreach((json_t *)index->weight_map, tensor, value) {
        if (strcmp(json_string_value(value), shard) == 0)
            return tensor;
    }
    return "";
}

/* index may be NULL. */
static mb_status add_shard(mb_checkpoint *checkpoint, const char *directory, const char *name,
                           const mb_shard_index *index) {
    char path[MAX_PATH], shown[SHOWN];
    MB_TRY(mb_path_join(path, sizeof path, directory, name));
    mb_shard *shard = &checkpoint->shards[checkpoint->n_shards];
    *shard = (mb_shard){.path = mb_strdup(path)};
    if (!shard->path)
        return mb_fail(MB_ERR_MEMORY, "%s: no memory for the path", path);
    /* O_NONBLOCK: a named pipe must not hang us before fstat can refuse it. */
    shard->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    checkpoint->n_shards++;
    if (shard->fd < 0 && errno == ENOENT && index)
        return mb_fail(
            MB_ERR_IO,
            "%s: this shard is missing, the index puts tensor %s there; the download is incomplete, "
            "download it again",
            path, mb_quote(shown, sizeof shown, a_tensor_of(index, name)));
    if (shard->fd < 0 && errno == ENOENT)
        return mb_fail(
            MB_ERR_IO,
            "%s: it is a link to a file that is not there; the download is incomplete, download it "
            "again",
            path);
    if (shard->fd < 0)
        return mb_fail(MB_ERR_IO, "%s: cannot be opened: %s", path, strerror(errno));
    return read_header(shard);
}

/* ---- Which files -------------------------------------------------------------------------------------- */

static mb_status allocate_shards(mb_checkpoint *checkpoint, const char *directory, size_t count) {
    checkpoint->shards = mb_calloc(count, sizeof *checkpoint->shards);
    if (!checkpoint->shards)
        return mb_fail(MB_ERR_MEMORY, "%s: no memory for a list of %zu files", directory, count);
    return MB_OK;
}

static mb_status add_indexed_shards(mb_checkpoint *checkpoint, const char *directory,
                                    const mb_shard_index *index) {
    int names_single = 0;
    for (size_t i = 0; i < index->n_shards; i++)
        names_single |= strcmp(index->shards[i], single_name) == 0;
    char path[MAX_PATH];
    MB_TRY(mb_path_join(path, sizeof path, directory, single_name));
    if (!names_single && access(path, F_OK) == 0)
        return mb_fail(
            MB_ERR_FORMAT,
            "%s: there are both %s and an index of other shards; remove the one that is not wanted",
            directory, single_name);
    MB_TRY(allocate_shards(checkpoint, directory, index->n_shards));
    for (size_t i = 0; i < index->n_shards; i++)
        MB_TRY(add_shard(checkpoint, directory, index->shards[i], index));
    return MB_OK;
}

static int is_safetensors(const struct dirent *entry) {
    static const char suffix[] = ".safetensors";
    size_t n = strlen(entry->d_name), m = sizeof suffix - 1;
    return n > m && entry->d_name[0] != '.' && strcmp(entry->d_name + n - m, suffix) == 0;
}

static mb_status add_listed_shards(mb_checkpoint *checkpoint, const char *directory) {
    struct dirent **entries;
    int count = scandir(directory, &entries, is_safetensors, alphasort);
    if (count < 0)
        return mb_fail(errno == ENOMEM ? MB_ERR_MEMORY : MB_ERR_IO, "%s: cannot be listed: %s", directory,
                       strerror(errno));
    mb_status status = MB_OK;
    if (count == 0)
        status = mb_fail(
            MB_ERR_NOT_FOUND,
            "%s: there are no weights (%s, or shards with %s); is this a checkpoint's directory, and was "
            "it downloaded whole?",
            directory, single_name, index_name);
    else
        status = allocate_shards(checkpoint, directory, (size_t)count);
    for (int i = 0; i < count; i++) {
        if (status == MB_OK)
            status = add_shard(checkpoint, directory, entries[i]->d_name, NULL);
        free(entries[i]);
    }
    free(entries);
    return status;
}

/* ---- All tensors together ----------------------------------------------------------------------------- */

static int compare_names(const void *left, const void *right) {
    const mb_tensor *a = left, *b = right;
    return strcmp(a->name, b->name);
}

static mb_status merge_tensors(mb_checkpoint *checkpoint, const char *directory) {
    size_t count = 0;
    for (size_t s = 0; s < checkpoint->n_shards; s++)
        count += checkpoint->shards[s].header.n_tensors;
    checkpoint->tensors = mb_malloc_array(count, sizeof *checkpoint->tensors);
    if (!checkpoint->tensors)
        return mb_fail(MB_ERR_MEMORY, "%s: no memory for a list of %zu tensors", directory, count);
    for (size_t s = 0; s < checkpoint->n_shards; s++) {
        mb_safetensors *header = &checkpoint->shards[s].header;
        for (size_t i = 0; i < header->n_tensors; i++) {
            mb_tensor *tensor = &checkpoint->tensors[checkpoint->n_tensors++];
            *tensor = header->tensors[i];
            tensor->i_file = (int32_t)s;
        }
        mb_free(header->tensors);
        header->tensors = NULL;
    }
    qsort(checkpoint->tensors, count, sizeof *checkpoint->tensors, compare_names);
    for (size_t i = 1; i < count; i++) {
        const mb_tensor *a = &checkpoint->tensors[i - 1], *b = &checkpoint->tensors[i];
        char shown[SHOWN];
        if (strcmp(a->name, b->name) == 0)
            return mb_fail(MB_ERR_FORMAT, "%s: tensor %s is also in %s; each tensor may be there once",
                           mb_checkpoint_path(checkpoint, a), mb_quote(shown, sizeof shown, a->name),
                           mb_checkpoint_path(checkpoint, b));
    }
    return MB_OK;
}

/* As in transformers and vLLM, the index tells which files there are; what is in them is read from them. */
static void compare_with_index(const mb_checkpoint *checkpoint, const char *index_path,
                               const mb_shard_index *index) {
    mb_name_list absent = {0}, misplaced = {0};
    const char *name;
    json_t *shard;
    json_object_foreach((json_t *)index->weight_map, name, shard) {
        if (!mb_checkpoint_find(checkpoint, name))
            mb_name_list_add(&absent, name);
    }
    for (size_t i = 0; i < checkpoint->n_tensors; i++) {
        const mb_tensor *tensor = &checkpoint->tensors[i];
        const char *file = strrchr(mb_checkpoint_path(checkpoint, tensor), '/') + 1;
        const char *named = json_string_value(json_object_get(index->weight_map, tensor->name));
        if (!named || strcmp(named, file) != 0)
            mb_name_list_add(&misplaced, tensor->name);
    }
    if (absent.n_names > 0)
        mb_log(MB_LOG_WARN, "%s: names tensors that no file has: %s", index_path, mb_name_list_text(&absent));
    if (misplaced.n_names > 0)
        mb_log(MB_LOG_WARN, "%s: does not name these tensors, or puts them into the wrong file: %s",
               index_path, mb_name_list_text(&misplaced));
}

/* ---- Opening ------------------------------------------------------------------------------------------ */

static mb_status open_indexed(mb_checkpoint *checkpoint, const char *directory, const char *index_path,
                              const char *json, size_t n_bytes) {
    mb_shard_index index;
    MB_TRY(mb_shard_index_parse(index_path, json, n_bytes, &index));
    mb_status status = add_indexed_shards(checkpoint, directory, &index);
    if (status == MB_OK)
        status = merge_tensors(checkpoint, directory);
    if (status == MB_OK)
        compare_with_index(checkpoint, index_path, &index);
    mb_shard_index_free(&index);
    return status;
}

static mb_status open_unindexed(mb_checkpoint *checkpoint, const char *directory) {
    char path[MAX_PATH];
    MB_TRY(mb_path_join(path, sizeof path, directory, single_name));
    if (access(path, F_OK) == 0) {
        MB_TRY(allocate_shards(checkpoint, directory, 1));
        MB_TRY(add_shard(checkpoint, directory, single_name, NULL));
    } else {
        MB_TRY(add_listed_shards(checkpoint, directory));
    }
    return merge_tensors(checkpoint, directory);
}

mb_status mb_checkpoint_open(const char *directory, mb_checkpoint *checkpoint) {
    *checkpoint = (mb_checkpoint){0};
    char path[MAX_PATH], *json;
    size_t n_bytes;
    MB_TRY(mb_path_join(path, sizeof path, directory, index_name));
    mb_status status = mb_file_read(path, MAX_INDEX_BYTES, &json, &n_bytes);
    if (status == MB_OK) {
        status = open_indexed(checkpoint, directory, path, json, n_bytes);
        mb_free(json);
    } else if (status == MB_ERR_NOT_FOUND) {
        status = open_unindexed(checkpoint, directory);
    }
    if (status != MB_OK)
        mb_checkpoint_close(checkpoint);
    return status;
}

static void unmap(mb_shard *shard) {
    if (shard->map)
        munmap(shard->map, (size_t)shard->n_bytes);
    shard->map = NULL;
}

void mb_checkpoint_close(mb_checkpoint *checkpoint) {
    for (size_t s = 0; s < checkpoint->n_shards; s++) {
        mb_shard *shard = &checkpoint->shards[s];
        mb_safetensors_free(&shard->header);
        unmap(shard);
        if (shard->fd >= 0)
            close(shard->fd);
        mb_free(shard->path);
    }
    mb_free(checkpoint->shards);
    mb_free(checkpoint->tensors);
    *checkpoint = (mb_checkpoint){0};
}

mb_status mb_checkpoint_map(mb_checkpoint *checkpoint) {
    for (size_t s = 0; s < checkpoint->n_shards; s++) {
        mb_shard *shard = &checkpoint->shards[s];
        struct stat info;
        void *map = mmap(NULL, (size_t)shard->n_bytes, PROT_READ, MAP_SHARED, shard->fd, 0);
        if (map == MAP_FAILED) {
            mb_log(MB_LOG_DEBUG, "%s: cannot be mapped and is copied: %s", shard->path, strerror(errno));
            continue;
        }
        shard->map = map;
        if (fstat(shard->fd, &info) != 0 || (uint64_t)info.st_size != shard->n_bytes)
            return mb_fail(MB_ERR_IO,
                           "%s: the file's size changed while it was opened; is something writing to it?",
                           shard->path);
    }
    return MB_OK;
}

mb_status mb_checkpoint_give_maps(mb_checkpoint *checkpoint, mb_file_map **maps, size_t *n_maps) {
    *n_maps = 0;
    *maps = mb_calloc(checkpoint->n_shards, sizeof **maps);
    if (!*maps)
        return mb_fail(MB_ERR_MEMORY, "no memory for a list of %zu files", checkpoint->n_shards);
    for (size_t s = 0; s < checkpoint->n_shards; s++) {
        mb_shard *shard = &checkpoint->shards[s];
        if (shard->map)
            (*maps)[(*n_maps)++] = (mb_file_map){shard->map, shard->n_bytes};
        shard->map = NULL;
    }
    return MB_OK;
}

void mb_file_maps_close(mb_file_map *maps, size_t n_maps) {
    for (size_t i = 0; i < n_maps; i++)
        munmap(maps[i].address, (size_t)maps[i].n_bytes);
    mb_free(maps);
}

const mb_tensor *mb_checkpoint_find(const mb_checkpoint *checkpoint, const char *name) {
    mb_tensor key = {.name = name};
    if (checkpoint->n_tensors == 0)
        return NULL;
    return bsearch(&key, checkpoint->tensors, checkpoint->n_tensors, sizeof key, compare_names);
}

const char *mb_checkpoint_path(const mb_checkpoint *checkpoint, const mb_tensor *tensor) {
    return checkpoint->shards[tensor->i_file].path;
}

mb_status mb_checkpoint_read(const mb_checkpoint *checkpoint, const mb_tensor *tensor, uint64_t offset,
                             void *to, size_t n_bytes) {
    const mb_shard *shard = &checkpoint->shards[tensor->i_file];
    return read_fully(shard->fd, shard->path, tensor->offset + offset, to, n_bytes);
}
