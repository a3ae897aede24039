#include "base/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"

static mb_status read_open_file(int fd, const char *path, size_t max_bytes, char **bytes, size_t *n_bytes) {
    struct stat info;
    if (fstat(fd, &info) != 0)
        return mb_fail(MB_ERR_IO, "%s: %s", path, strerror(errno));
    if (!S_ISREG(info.st_mode))
        return mb_fail(MB_ERR_FORMAT, "%s: not a regular file", path);
    if (info.st_size < 0 || (unsigned long long)info.st_size > max_bytes)
        return mb_fail(MB_ERR_FORMAT, "%s: %lld bytes, more than the limit of %zu for this file", path,
                       (long long)info.st_size, max_bytes);
    size_t size = (size_t)info.st_size, done = 0;
    char *buffer = mb_malloc(size + 1);
    if (!buffer)
        return mb_fail(MB_ERR_MEMORY, "%s: no memory for %zu bytes", path, size + 1);
    while (done < size) {
        ssize_t n = read(fd, buffer + done, size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            const char *why = n < 0 ? strerror(errno) : "the file ended early; was it being written?";
            mb_free(buffer);
            return mb_fail(MB_ERR_IO, "%s: read failed at byte %zu of %zu: %s", path, done, size, why);
        }
        done += (size_t)n;
    }
    buffer[size] = '\0';
    *bytes = buffer;
    *n_bytes = size;
    return MB_OK;
}

mb_status mb_file_read(const char *path, size_t max_bytes, char **bytes, size_t *n_bytes) {
    *bytes = NULL;
    *n_bytes = 0;
    /* O_NONBLOCK: a named pipe must not hang us before fstat can refuse it. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    struct stat link;
    if (fd < 0 && errno == ENOENT && lstat(path, &link) == 0) /* so the path itself is there */
        return mb_fail(MB_ERR_IO, "%s: it is a link to a file that is not there; was the download completed?",
                       path);
    if (fd < 0)
        return mb_fail(errno == ENOENT ? MB_ERR_NOT_FOUND : MB_ERR_IO, "%s: %s", path, strerror(errno));
    mb_status status = read_open_file(fd, path, max_bytes, bytes, n_bytes);
    close(fd);
    return status;
}

mb_status mb_file_read_optional(const char *directory, const char *name, size_t max_bytes,
                                mb_small_file *file) {
    file->bytes = NULL;
    file->n_bytes = 0;
    MB_TRY(mb_path_join(file->path, sizeof file->path, directory, name));
    mb_status status = mb_file_read(file->path, max_bytes, &file->bytes, &file->n_bytes);
    return status == MB_ERR_NOT_FOUND ? MB_OK : status;
}

mb_status mb_lfs_pointer_check(const char *path, const char *bytes, size_t n_bytes) {
    static const char first_line[] = "version https://git-lfs.github.com/spec/";
    if (n_bytes < sizeof first_line - 1 || memcmp(bytes, first_line, sizeof first_line - 1) != 0)
        return MB_OK;
    return mb_fail(
        MB_ERR_FORMAT,
        "%s: this is a Git LFS pointer, the file itself was not fetched; run \"git lfs pull\" in its "
        "directory",
        path);
}

int mb_begins_with_bom(const char *bytes, size_t n_bytes) {
    static const char utf8[] = "\xef\xbb\xbf", little[] = "\xff\xfe", big[] = "\xfe\xff";
    return (n_bytes >= 3 && memcmp(bytes, utf8, 3) == 0) ||
           (n_bytes >= 2 && (memcmp(bytes, little, 2) == 0 || memcmp(bytes, big, 2) == 0));
}

mb_status mb_bom_check(const char *what, const char *bytes, size_t n_bytes) {
    if (!mb_begins_with_bom(bytes, n_bytes))
        return MB_OK;
    return mb_fail(MB_ERR_FORMAT, "%s: begins with a byte order mark (BOM); save it as UTF-8 without one",
                   what);
}

mb_status mb_path_join(char *path, size_t capacity, const char *directory, const char *name) {
    const size_t length = strlen(directory);
    const char *slash = length > 0 && directory[length - 1] == '/' ? "" : "/";
    int n = snprintf(path, capacity, "%s%s%s", directory, slash, name);
    if (n < 0 || (size_t)n >= capacity)
        return mb_fail(MB_ERR_ARGUMENT, "path too long: %s%s%s", directory, slash, name);
    return MB_OK;
}
