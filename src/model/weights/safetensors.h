/*
 * safetensors.h - the header of one safetensors file: 8 bytes of length, JSON, then the tensors' bytes.
 *
 * Every rule of the format is checked: header at most 100,000,000 bytes and within the file, an object of
 * UTF-8 JSON without duplicate keys, tensors that follow one another from offset 0 without hole or overlap to
 * exactly the end of the file, sizes that agree with shape and dtype. Scalars (rank 0) and empty tensors are
 * legal, as are NaNs in the data.
 */
#ifndef MB_MODEL_SAFETENSORS_H
#define MB_MODEL_SAFETENSORS_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"
#include "moebius/ops.h"

enum {
    MB_SAFETENSORS_MAX_HEADER = 100000000,
    MB_SAFETENSORS_PREFIX = 8, /* the header's length, little endian */
    MB_TENSOR_DIMS = 4,        /* dimensions kept; the format allows any rank */
};

typedef struct mb_tensor {
    const char *name;
    const char *dtype_name; /* as the file spells it; lives for ever */
    int is_float;           /* dtype is one of ours and in `dtype`; 0: legal in a file, unused by models */
    mb_dtype dtype;
    int32_t rank;
    uint64_t shape[MB_TENSOR_DIMS]; /* the first MB_TENSOR_DIMS dimensions */
    uint64_t offset, n_bytes;       /* where the bytes are in the file */
    int32_t i_file;                 /* for the checkpoint: which shard; 0 here */
} mb_tensor;

typedef struct mb_safetensors {
    mb_tensor *tensors; /* in the order of their offsets */
    size_t n_tensors;
    char *names; /* the block that the names lie in */
} mb_safetensors;

/* The header's length from a file's first 8 bytes, checked against file_size (at least 8). */
mb_status mb_safetensors_header_bytes(const char *path, const unsigned char prefix[MB_SAFETENSORS_PREFIX],
                                      uint64_t file_size, size_t *header_bytes);

/* Parses the n_bytes of JSON that follow the prefix. `path` is for error sentences. Memory and time grow with
 * n_bytes (times its logarithm), never with what the header claims. */
mb_status mb_safetensors_parse(const char *path, const char *header, size_t n_bytes, uint64_t file_size,
                               mb_safetensors *file);
void mb_safetensors_free(mb_safetensors *file);

/* "[128, 2048]" of a tensor's shape, for sentences; returns buffer. */
const char *mb_tensor_shape(char *buffer, size_t capacity, const mb_tensor *tensor);

#endif
