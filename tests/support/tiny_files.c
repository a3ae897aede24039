/* tiny_files.c - the file half of tiny_checkpoint.h: temporary directories, lists of tensors, safetensors. */
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "support/tiny_checkpoint.h"

static void die(const char *what, const char *name) {
    fprintf(stderr, "test helper: cannot %s %s\n", what, name);
    perror("reason");
    abort();
}

void tiny_directory_make(char directory[TINY_PATH]) {
    const char *parent = getenv("TMPDIR");
    int n = snprintf(directory, TINY_PATH, "%s/moebius-test-XXXXXX", parent && *parent ? parent : "/tmp");
    if (n < 0 || n >= TINY_PATH || !mkdtemp(directory))
        die("make a directory below", parent ? parent : "/tmp");
}

void tiny_directory_remove(const char *directory) {
    DIR *entries = opendir(directory);
    if (!entries)
        die("open", directory);
    for (struct dirent *entry = readdir(entries); entry; entry = readdir(entries)) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        char path[TINY_PATH + 256];
        struct stat info;
        snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
        if (lstat(path, &info) == 0 && S_ISDIR(info.st_mode))
            tiny_directory_remove(path);
        else
            unlink(path);
    }
    closedir(entries);
    rmdir(directory);
}

void tiny_file_write(const char *directory, const char *name, const void *bytes, size_t n_bytes) {
    char path[TINY_PATH + 256];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, n_bytes, f) != n_bytes || fclose(f) != 0)
        die("write", path);
}

void tiny_text_write(const char *directory, const char *name, const char *text) {
    tiny_file_write(directory, name, text, strlen(text));
}

char *tiny_file_read(const char *directory, const char *name, size_t *n_bytes) {
    char path[TINY_PATH + 256];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *f = fopen(path, "rb");
    struct stat info;
    if (!f || fstat(fileno(f), &info) != 0)
        die("open", path);
    *n_bytes = (size_t)info.st_size;
    char *bytes = malloc(*n_bytes + 1);
    if (!bytes || fread(bytes, 1, *n_bytes, f) != *n_bytes)
        die("read", path);
    bytes[*n_bytes] = '\0';
    fclose(f);
    return bytes;
}

static size_t dtype_bytes(const char *dtype) {
    static const struct {
        const char *name;
        size_t n_bytes;
    } known[] = {{"F64", 8}, {"I64", 8}, {"F32", 4}, {"I32", 4}, {"BF16", 2}, {"F16", 2}, {"I16", 2}};
    for (size_t i = 0; i < sizeof known / sizeof *known; i++)
        if (strcmp(known[i].name, dtype) == 0)
            return known[i].n_bytes;
    return 1;
}

tiny_tensor *tiny_tensors_add(tiny_tensors *tensors, const char *name, const char *dtype, int rank,
                              const int64_t *shape) {
    if (tensors->count == tensors->capacity) {
        tensors->capacity = tensors->capacity ? 2 * tensors->capacity : 64;
        tensors->items = realloc(tensors->items, tensors->capacity * sizeof *tensors->items);
        if (!tensors->items)
            die("allocate", name);
    }
    tiny_tensor *tensor = &tensors->items[tensors->count++];
    *tensor = (tiny_tensor){.dtype = dtype, .rank = rank};
    snprintf(tensor->name, sizeof tensor->name, "%s", name);
    tensor->n_bytes = dtype_bytes(dtype);
    for (int i = 0; i < rank; i++) {
        tensor->shape[i] = shape[i];
        tensor->n_bytes *= (size_t)shape[i];
    }
    tensor->data = calloc(tensor->n_bytes ? tensor->n_bytes : 1, 1);
    if (!tensor->data)
        die("allocate", name);
    return tensor;
}

tiny_tensor *tiny_tensors_find(const tiny_tensors *tensors, const char *name) {
    for (size_t i = 0; i < tensors->count; i++)
        if (strcmp(tensors->items[i].name, name) == 0)
            return &tensors->items[i];
    return NULL;
}

void tiny_tensors_remove(tiny_tensors *tensors, const char *name) {
    tiny_tensor *tensor = tiny_tensors_find(tensors, name);
    if (!tensor)
        die("find", name);
    free(tensor->data);
    size_t i = (size_t)(tensor - tensors->items);
    memmove(tensor, tensor + 1, (tensors->count - i - 1) * sizeof *tensor);
    tensors->count--;
}

void tiny_tensors_free(tiny_tensors *tensors) {
    for (size_t i = 0; i < tensors->count; i++)
        free(tensors->items[i].data);
    free(tensors->items);
    *tensors = (tiny_tensors){0};
}

void tiny_safetensors_write(const tiny_tensors *tensors, size_t first, size_t count, const char *directory,
                            const char *name) {
    char *bytes;
    size_t n;
    FILE *f = open_memstream(&bytes, &n);
    if (!f)
        die("open memory for", name);
    uint64_t header_bytes = 0, offset = 0;
    fwrite(&header_bytes, sizeof header_bytes, 1, f);
    fprintf(f, "{\"__metadata__\":{\"format\":\"pt\"}");
    for (size_t i = first; i < first + count; i++) {
        const tiny_tensor *tensor = &tensors->items[i];
        fprintf(f, ",\"%s\":{\"dtype\":\"%s\",\"shape\":[", tensor->name, tensor->dtype);
        for (int d = 0; d < tensor->rank; d++)
            fprintf(f, "%s%lld", d ? "," : "", (long long)tensor->shape[d]);
        fprintf(f, "],\"data_offsets\":[%llu,%llu]}", (unsigned long long)offset,
                (unsigned long long)(offset + tensor->n_bytes));
        offset += tensor->n_bytes;
    }
    fprintf(f, "}");
    fflush(f);
    while (n % 8 != 0) { /* as the safetensors library pads it */
        fputc(' ', f);
        fflush(f);
    }
    header_bytes = n - sizeof header_bytes;
    for (size_t i = first; i < first + count; i++)
        fwrite(tensors->items[i].data, 1, tensors->items[i].n_bytes, f);
    if (fclose(f) != 0)
        die("write", name);
    memcpy(bytes, &header_bytes, sizeof header_bytes);
    tiny_file_write(directory, name, bytes, n);
    free(bytes);
}
