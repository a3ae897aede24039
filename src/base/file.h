/* file.h - small files read whole, paths joined. */
#ifndef MB_BASE_FILE_H
#define MB_BASE_FILE_H

#include <limits.h>
#include <stddef.h>

#include "base/status.h"

/* Reads a regular file of at most max_bytes. *bytes is zero-terminated (not counted), freed with mb_free.
 * MB_ERR_NOT_FOUND: there is none. MB_ERR_IO: also a link to no file. MB_ERR_FORMAT: larger than max_bytes, or
 * not a regular file. */
mb_status mb_file_read(const char *path, size_t max_bytes, char **bytes, size_t *n_bytes);

typedef struct mb_small_file {
    char path[PATH_MAX];
    char *bytes; /* NULL: there is no such file */
    size_t n_bytes;
} mb_small_file;

/* The same of "directory/name". A missing file is not a failure. file->bytes is freed with mb_free. */
mb_status mb_file_read_optional(const char *directory, const char *name, size_t max_bytes,
                                mb_small_file *file);

/* MB_ERR_FORMAT with a sentence when the bytes are not a file but Git LFS's note of one: the repository was
 * cloned without its large files. */
mb_status mb_lfs_pointer_check(const char *path, const char *bytes, size_t n_bytes);

/* Whether text begins with a byte order mark (BOM), of UTF-8 or of UTF-16, as some editors and shells of Windows
 * write one. Python's json refuses such files, so checkpoints and requests have none. */
int mb_begins_with_bom(const char *bytes, size_t n_bytes);
/* MB_ERR_FORMAT with a sentence when they do; `what` names them in it: a path mostly. */
mb_status mb_bom_check(const char *what, const char *bytes, size_t n_bytes);

/* Writes "directory/name" to path. MB_ERR_ARGUMENT when it does not fit. */
mb_status mb_path_join(char *path, size_t capacity, const char *directory, const char *name);

#endif
