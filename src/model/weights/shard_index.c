/* shard_index.c - model.safetensors.index.json (declared in checkpoint.h). */
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "model/json.h"
#include "model/weights/checkpoint.h"

enum { SHOWN = 160, MAX_FILE_NAME = 255 };

/* A shard is opened below the checkpoint's directory and nowhere else: its name may not be a path. */
static int is_plain_file_name(const char *name) {
    static const char suffix[] = ".safetensors";
    size_t n = strlen(name);
    if (n < sizeof suffix || n > MAX_FILE_NAME || strcmp(name + n - (sizeof suffix - 1), suffix) != 0)
        return 0;
    if (strstr(name, ".."))
        return 0;
    for (const char *c = name; *c; c++)
        if (*c == '/' || *c == '\\' || (unsigned char)*c < ' ' || *c == 0x7F)
            return 0;
    return 1;
}

static int compare_names(const void *left, const void *right) {
    const char *const *a = left, *const *b = right;
    return strcmp(*a, *b);
}

static mb_status collect_shards(const char *path, mb_shard_index *index) {
    size_t count = json_object_size(index->weight_map), n = 0;
    index->shards = mb_malloc_array(count, sizeof *index->shards);
    if (!index->shards)
        return mb_fail(MB_ERR_MEMORY, "%s: no memory for the names of %zu tensors", path, count);
    const char *tensor;
    json_t *shard;
    json_object_foreach((json_t *)index->weight_map, tensor, shard) {
        char shown[SHOWN], shown_shard[SHOWN];
        if (!json_is_string(shard))
            return mb_fail(MB_ERR_FORMAT, "%s: \"weight_map\" gives no file name for %s", path,
                           mb_quote(shown, sizeof shown, tensor));
        if (!is_plain_file_name(json_string_value(shard)))
            return mb_fail(MB_ERR_FORMAT,
                           "%s: \"weight_map\" puts %s into %s; shards must be plain file names that end in "
                           ".safetensors, beside the index",
                           path, mb_quote(shown, sizeof shown, tensor),
                           mb_quote(shown_shard, sizeof shown_shard, json_string_value(shard)));
        index->shards[n++] = json_string_value(shard);
    }
    qsort(index->shards, n, sizeof *index->shards, compare_names);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || strcmp(index->shards[i], index->shards[index->n_shards - 1]) != 0)
            index->shards[index->n_shards++] = index->shards[i];
    return MB_OK;
}

mb_status mb_shard_index_parse(const char *path, const char *json, size_t n_bytes, mb_shard_index *index) {
    *index = (mb_shard_index){0};
    MB_TRY(mb_json_parse_config(path, json, n_bytes, &index->root));
    index->weight_map = json_object_get(index->root, "weight_map");
    mb_status status;
    if (!json_is_object(index->weight_map) || json_object_size(index->weight_map) == 0)
        status = mb_fail(MB_ERR_FORMAT,
                         "%s: has no \"weight_map\" object that names the shard of each tensor", path);
    else
        status = collect_shards(path, index);
    if (status != MB_OK)
        mb_shard_index_free(index);
    return status;
}

void mb_shard_index_free(mb_shard_index *index) {
    mb_json_free(index->root);
    mb_free(index->shards);
    *index = (mb_shard_index){0};
}
