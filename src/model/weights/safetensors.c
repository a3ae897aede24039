#include "model/weights/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "model/json.h"

enum { SHOWN = 160 };

/* Every dtype of the format. `ours` says that mb_dtype has it. */
static const struct dtype_row {
    const char *name;
    int bits, ours;
    mb_dtype dtype;
} dtypes[] = {
    {"BF16", 16, 1, MB_BF16}, {"F32", 32, 1, MB_F32},   {"F8_E4M3", 8, 1, MB_F8_E4M3},
    {"F16", 16, 1, MB_F16},   {"BOOL", 8, 0, 0},        {"F4", 4, 0, 0},
    {"F6_E2M3", 6, 0, 0},     {"F6_E3M2", 6, 0, 0},     {"U8", 8, 0, 0},
    {"I8", 8, 0, 0},          {"F8_E5M2", 8, 0, 0},     {"F8_E8M0", 8, 1, MB_F8_E8M0},
    {"F8_E4M3FNUZ", 8, 0, 0}, {"F8_E5M2FNUZ", 8, 0, 0}, {"I16", 16, 0, 0},
    {"U16", 16, 0, 0},        {"I32", 32, 0, 0},        {"U32", 32, 0, 0},
    {"C64", 64, 0, 0},        {"F64", 64, 0, 0},        {"I64", 64, 0, 0},
    {"U64", 64, 0, 0},
};

static const struct dtype_row *find_dtype(const char *name) {
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (strcmp(dtypes[i].name, name) == 0)
            return &dtypes[i];
    return NULL;
}

mb_status mb_safetensors_header_bytes(const char *path, const unsigned char prefix[MB_SAFETENSORS_PREFIX],
                                      uint64_t file_size, size_t *header_bytes) {
    uint64_t n = 0;
    for (int i = MB_SAFETENSORS_PREFIX - 1; i >= 0; i--)
        n = n << 8 | prefix[i];
    if (n > MB_SAFETENSORS_MAX_HEADER)
        return mb_fail(
            MB_ERR_FORMAT,
            "%s: the header's length is %llu bytes, more than the format's limit of %d; this is not a "
            "safetensors file, or it is damaged: download it again",
            path, (unsigned long long)n, MB_SAFETENSORS_MAX_HEADER);
    if (n > file_size - MB_SAFETENSORS_PREFIX)
        return mb_fail(
            MB_ERR_FORMAT,
            "%s: the header's length is %llu bytes but the file has only %llu: it is cut off, download "
            "it again",
            path, (unsigned long long)n, (unsigned long long)file_size);
    *header_bytes = (size_t)n;
    return MB_OK;
}

const char *mb_tensor_shape(char *buffer, size_t capacity, const mb_tensor *tensor) {
    size_t n = (size_t)snprintf(buffer, capacity, "[");
    for (int32_t i = 0; i < tensor->rank && i < MB_TENSOR_DIMS && n < capacity; i++)
        n += (size_t)snprintf(buffer + n, capacity - n, "%s%llu", i ? ", " : "",
                              (unsigned long long)tensor->shape[i]);
    if (n < capacity)
        snprintf(buffer + n, capacity - n, "%s]", tensor->rank > MB_TENSOR_DIMS ? ", ..." : "");
    return buffer;
}

/* ---- One tensor's entry ------------------------------------------------------------------------------- */

typedef struct entry_reader {
    const char *path, *quoted_name;
    uint64_t data_start; /* of the tensors' bytes in the file */
} entry_reader;

static mb_status bad_entry(const entry_reader *r, const char *what) {
    return mb_fail(MB_ERR_FORMAT, "%s: tensor %s %s; the file is damaged, download it again", r->path,
                   r->quoted_name, what);
}

static mb_status parse_shape(const entry_reader *r, const json_t *shape, int bits, mb_tensor *tensor,
                             uint64_t *n_bytes) {
    if (!json_is_array(shape))
        return bad_entry(r, "has no \"shape\" array");
    tensor->rank = (int32_t)json_array_size(shape);
    uint64_t count = 1, n_bits;
    for (int32_t i = 0; i < tensor->rank; i++) {
        const json_t *item = json_array_get(shape, (size_t)i);
        if (!json_is_integer(item) || json_integer_value(item) < 0)
            return bad_entry(r, "has a dimension that is not an integer >= 0");
        uint64_t size = (uint64_t)json_integer_value(item);
        if (i < MB_TENSOR_DIMS)
            tensor->shape[i] = size;
        if (__builtin_mul_overflow(count, size, &count))
            return bad_entry(r, "has a shape whose product does not fit in 64 bits");
    }
    if (__builtin_mul_overflow(count, (uint64_t)bits, &n_bits))
        return bad_entry(r, "has a shape whose product does not fit in 64 bits");
    if (n_bits % 8 != 0)
        return bad_entry(r, "does not end on a whole byte");
    *n_bytes = n_bits / 8;
    return MB_OK;
}

static mb_status parse_offsets(const entry_reader *r, const json_t *offsets, uint64_t n_bytes,
                               mb_tensor *tensor) {
    const json_t *start = json_array_get(offsets, 0), *end = json_array_get(offsets, 1);
    if (json_array_size(offsets) != 2 || !json_is_integer(start) || !json_is_integer(end))
        return bad_entry(r, "has no \"data_offsets\" of two integers");
    json_int_t from = json_integer_value(start), to = json_integer_value(end);
    if (from < 0 || to < from)
        return bad_entry(r, "has \"data_offsets\" that are negative or end before they start");
    tensor->n_bytes = (uint64_t)(to - from);
    if (__builtin_add_overflow((uint64_t)from, r->data_start, &tensor->offset))
        return bad_entry(r, "has \"data_offsets\" that do not fit in 64 bits");
    if (tensor->n_bytes != n_bytes) {
        char shape[SHOWN];
        return mb_fail(
            MB_ERR_FORMAT,
            "%s: tensor %s has %llu bytes by its \"data_offsets\", but %s of %s is %llu; the file is "
            "damaged, download it again",
            r->path, r->quoted_name, (unsigned long long)tensor->n_bytes,
            mb_tensor_shape(shape, sizeof shape, tensor), tensor->dtype_name, (unsigned long long)n_bytes);
    }
    return MB_OK;
}

static mb_status parse_entry(const entry_reader *r, const json_t *entry, mb_tensor *tensor) {
    if (!mb_json_is_object(entry))
        return bad_entry(r, "is not described by an object");
    const char *dtype_name = json_string_value(json_object_get(entry, "dtype"));
    if (!dtype_name)
        return bad_entry(r, "has no \"dtype\" string");
    const struct dtype_row *dtype = find_dtype(dtype_name);
    if (!dtype) {
        char shown[SHOWN];
        return mb_fail(MB_ERR_FORMAT, "%s: tensor %s has the dtype %s, which safetensors does not know",
                       r->path, r->quoted_name, mb_quote(shown, sizeof shown, dtype_name));
    }
    tensor->dtype_name = dtype->name;
    tensor->is_float = dtype->ours;
    tensor->dtype = dtype->dtype;
    uint64_t n_bytes;
    MB_TRY(parse_shape(r, json_object_get(entry, "shape"), dtype->bits, tensor, &n_bytes));
    return parse_offsets(r, json_object_get(entry, "data_offsets"), n_bytes, tensor);
}

/* ---- The whole header --------------------------------------------------------------------------------- */

static mb_status check_metadata(const char *path, const json_t *metadata) {
    const char *key;
    json_t *value;
    if (json_is_null(metadata)) /* as good as none */
        return MB_OK;
    if (!mb_json_is_object(metadata))
        return mb_fail(MB_ERR_FORMAT, "%s: \"__metadata__\" must be an object of strings", path);
    json_object_foreach((json_t *)metadata, key, value) {
        char shown[SHOWN];
        if (!json_is_string(value))
            return mb_fail(MB_ERR_FORMAT, "%s: \"__metadata__\" must hold strings only, but %s does not",
                           path, mb_quote(shown, sizeof shown, key));
    }
    return MB_OK;
}

static int compare_offsets(const void *left, const void *right) {
    const mb_tensor *a = left, *b = right;
    if (a->offset != b->offset)
        return a->offset < b->offset ? -1 : 1;
    /* Empty tensors come before the one that starts at the same place. */
    return (a->n_bytes > b->n_bytes) - (a->n_bytes < b->n_bytes);
}

/* Sorted tensors must cover [data_start, file_size) exactly. */
static mb_status check_coverage(const char *path, const mb_safetensors *file, uint64_t data_start,
                                uint64_t file_size) {
    uint64_t end = data_start;
    char shown[SHOWN];
    for (size_t i = 0; i < file->n_tensors; i++) {
        const mb_tensor *tensor = &file->tensors[i];
        if (tensor->offset != end)
            return mb_fail(
                MB_ERR_FORMAT,
                "%s: tensor %s starts at byte %llu of the data, but the one before it ends at %llu: "
                "tensors must not %s; the file is damaged, download it again",
                path, mb_quote(shown, sizeof shown, tensor->name),
                (unsigned long long)(tensor->offset - data_start), (unsigned long long)(end - data_start),
                tensor->offset < end ? "overlap" : "leave holes");
        if (__builtin_add_overflow(end, tensor->n_bytes, &end) || end > file_size)
            return mb_fail(
                MB_ERR_FORMAT,
                "%s: tensor %s ends behind the end of the file (%llu bytes): it is cut off, download it "
                "again",
                path, mb_quote(shown, sizeof shown, tensor->name), (unsigned long long)file_size);
    }
    if (end != file_size)
        return mb_fail(MB_ERR_FORMAT,
                       "%s: %llu bytes follow the last tensor; the format allows none, download it again",
                       path, (unsigned long long)(file_size - end));
    return MB_OK;
}

/* All names and entries, in the JSON's order. */
static mb_status parse_entries(const char *path, const json_t *root, uint64_t data_start,
                               mb_safetensors *file) {
    size_t name_bytes = 0;
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)root, key, value) {
        name_bytes += strlen(key) + 1;
    }
    file->names = mb_malloc(name_bytes);
    file->tensors = mb_calloc(json_object_size(root) + 1, sizeof *file->tensors);
    if (!file->names || !file->tensors)
        return mb_fail(MB_ERR_MEMORY, "%s: no memory for the names of %zu tensors", path,
                       json_object_size(root));
    char *name = file->names;
    json_object_foreach((json_t *)root, key, value) {
        if (strcmp(key, "__metadata__") == 0) {
            MB_TRY(check_metadata(path, value));
            continue;
        }
        char shown[SHOWN];
        entry_reader r = {path, mb_quote(shown, sizeof shown, key), data_start};
        mb_tensor *tensor = &file->tensors[file->n_tensors++];
        MB_TRY(parse_entry(&r, value, tensor));
        size_t length = strlen(key) + 1;
        memcpy(name, key, length);
        tensor->name = name;
        name += length;
    }
    return MB_OK;
}

static mb_status parse_header(const char *path, const json_t *root, size_t n_bytes, uint64_t file_size,
                              mb_safetensors *file) {
    uint64_t data_start = MB_SAFETENSORS_PREFIX + (uint64_t)n_bytes;
    MB_TRY(parse_entries(path, root, data_start, file));
    qsort(file->tensors, file->n_tensors, sizeof *file->tensors, compare_offsets);
    return check_coverage(path, file, data_start, file_size);
}

mb_status mb_safetensors_parse(const char *path, const char *header, size_t n_bytes, uint64_t file_size,
                               mb_safetensors *file) {
    *file = (mb_safetensors){0};
    if (n_bytes == 0 || header[0] != '{')
        return mb_fail(
            MB_ERR_FORMAT,
            "%s: the header does not begin with '{'; this is not a safetensors file, or it is damaged: "
            "download it again",
            path);
    json_t *root;
    MB_TRY(mb_json_parse(path, header, n_bytes, &root));
    mb_status status = parse_header(path, root, n_bytes, file_size, file);
    mb_json_free(root);
    if (status != MB_OK)
        mb_safetensors_free(file);
    return status;
}

void mb_safetensors_free(mb_safetensors *file) {
    mb_free(file->tensors);
    mb_free(file->names);
    *file = (mb_safetensors){0};
}
