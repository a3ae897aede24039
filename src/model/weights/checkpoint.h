/*
 * checkpoint.h - all tensors of a checkpoint directory, found by name.
 *
 * The directory holds model.safetensors.index.json and the shards it names, or model.safetensors, or any
 * *.safetensors files. Each tensor must be in exactly one file. Where index and shards disagree, the shards
 * count, and a warning lists the names. Files stay open until the checkpoint is closed. Reads go through
 * pread: if another program changes a file meanwhile, the read fails or gives other bytes, but does no
 * harm.
 */
#ifndef MB_MODEL_CHECKPOINT_H
#define MB_MODEL_CHECKPOINT_H

#include <jansson.h>

#include "model/weights/safetensors.h"

typedef struct mb_shard {
    char *path;
    int fd;
    void *map; /* the whole file, read-only; NULL: not mapped */
    uint64_t n_bytes;
    mb_safetensors header; /* owns the names; its tensors were moved to the checkpoint */
} mb_shard;

typedef struct mb_checkpoint {
    mb_shard *shards;
    size_t n_shards;
    mb_tensor *tensors; /* of all shards, sorted by name */
    size_t n_tensors;
} mb_checkpoint;

/* Opens all files and reads their headers. MB_ERR_IO: a file is missing or unreadable; MB_ERR_FORMAT: a file
 * or the index breaks its format, or they contradict one another. On failure everything is released. */
mb_status mb_checkpoint_open(const char *directory, mb_checkpoint *checkpoint);
void mb_checkpoint_close(mb_checkpoint *checkpoint);

/* A file that is mapped. */
typedef struct mb_file_map {
    void *address;
    uint64_t n_bytes;
} mb_file_map;

/* Maps the shards. A shard that the system does not map is read with pread like before. MB_ERR_IO: a
 * shard's size has changed since its header was read. Once a file is mapped, reading behind a new, lower
 * end of it ends the program (SIGBUS). */
mb_status mb_checkpoint_map(mb_checkpoint *checkpoint);
/* The caller gets the maps and closes them with mb_file_maps_close. On MB_ERR_MEMORY they stay with the
 * checkpoint. */
mb_status mb_checkpoint_give_maps(mb_checkpoint *checkpoint, mb_file_map **maps, size_t *n_maps);
void mb_file_maps_close(mb_file_map *maps, size_t n_maps);

/* NULL: no tensor has this name. */
const mb_tensor *mb_checkpoint_find(const mb_checkpoint *checkpoint, const char *name);
const char *mb_checkpoint_path(const mb_checkpoint *checkpoint, const mb_tensor *tensor);

/* Reads bytes [offset, offset + n_bytes) of a tensor. Thread-safe. */
mb_status mb_checkpoint_read(const mb_checkpoint *checkpoint, const mb_tensor *tensor, uint64_t offset,
                             void *to, size_t n_bytes);

/* The parsed index: weight_map maps tensor names to shard names, all of which were checked to be plain file
 * names. */
typedef struct mb_shard_index {
    json_t *root;
    const json_t *weight_map;
    const char **shards; /* each shard's name once, sorted */
    size_t n_shards;
} mb_shard_index;

mb_status mb_shard_index_parse(const char *path, const char *json, size_t n_bytes, mb_shard_index *index);
void mb_shard_index_free(mb_shard_index *index);

#endif
