#include "model/weights/weight_tensors.h"

#include <stdio.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "model/json.h"
#include "model/weights/name_list.h"
#include "ops/common/dtype.h"

enum { SHOWN = 160, NAME_BYTES = 192 };

mb_status mb_weight_tensors_init(mb_weight_tensors *tensors, const mb_checkpoint *checkpoint,
                                 const mb_config *config) {
    *tensors = (mb_weight_tensors){checkpoint, config, mb_calloc(checkpoint->n_tensors + 1, 1)};
    if (!tensors->is_used)
        return mb_fail(MB_ERR_MEMORY, "no memory for a list of %zu tensors", checkpoint->n_tensors);
    return MB_OK;
}

void mb_weight_tensors_free(mb_weight_tensors *tensors) {
    mb_free(tensors->is_used);
    *tensors = (mb_weight_tensors){0};
}

static int directory_length(const mb_checkpoint *checkpoint) {
    const char *path = checkpoint->shards[0].path;
    return (int)(strrchr(path, '/') - path);
}

static int ends_with(const char *text, const char *suffix) {
    size_t n = strlen(text), m = strlen(suffix);
    return n >= m && strcmp(text + n - m, suffix) == 0;
}

/* ---- What is missing, and why ------------------------------------------------------------------------- */

/* The weight's bytes under a name that quantised checkpoints use for packed integers. NULL: none. */
static const mb_tensor *find_packed(const mb_checkpoint *checkpoint, const char *name) {
    static const char *const kinds[] = {"weight_packed", "qweight", "weight_quantized"};
    if (!ends_with(name, ".weight"))
        return NULL;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        char packed[NAME_BYTES];
        snprintf(packed, sizeof packed, "%.*s%s", (int)(strlen(name) - strlen("weight")), name, kinds[i]);
        const mb_tensor *tensor = mb_checkpoint_find(checkpoint, packed);
        if (tensor)
            return tensor;
    }
    return NULL;
}

/* A tensor of the same name but for what stands before it. NULL: none. */
static const mb_tensor *find_elsewhere(const mb_checkpoint *checkpoint, const char *name, const char *tail) {
    for (size_t i = 0; i < checkpoint->n_tensors; i++) {
        const char *other = checkpoint->tensors[i].name;
        size_t n = strlen(other), m = strlen(tail);
        if (n >= m && strcmp(other + n - m, tail) == 0 && (n == m || other[n - m - 1] == '.') &&
            strcmp(other, name) != 0)
            return &checkpoint->tensors[i];
    }
    return NULL;
}

static mb_status fail_missing(const mb_checkpoint *checkpoint, const char *name) {
    static const char usual[] = "model.";
    const char *path = checkpoint->shards[0].path;
    int n_path = directory_length(checkpoint);
    char shown[SHOWN];
    const mb_tensor *other = find_packed(checkpoint, name);
    if (other)
        return mb_fail(
            MB_ERR_UNSUPPORTED,
            "%.*s: \"%s\" is stored as \"%s\"; of quantised weights only fp8 with 128x128 blocks is "
            "supported, take the model in that or in bf16",
            n_path, path, name, other->name);
    /* Other names of a whole model begin elsewhere, those of a tensor that strayed do not matter: the
     * embedding is the first that is looked up. */
    const char *tail = strncmp(name, usual, sizeof usual - 1) == 0 ? name + sizeof usual - 1 : name;
    other = find_elsewhere(checkpoint, name, tail);
    if (other && strcmp(tail, "embed_tokens.weight") == 0) {
        char prefix[SHOWN];
        snprintf(prefix, sizeof prefix, "%.*s", (int)(strlen(other->name) - strlen(tail)), other->name);
        return mb_fail(
            MB_ERR_CONFIG,
            "%.*s: nothing is missing, but the tensors' names begin with %s where \"%s\" is expected (%s "
            "is there); the model was saved as a part of another one or by another program, rename "
            "them",
            n_path, path, mb_quote(shown, sizeof shown, prefix), usual, other->name);
    }
    if (other && strcmp(tail, name) == 0)
        return mb_fail(MB_ERR_CONFIG, "%.*s: tensor \"%s\" is missing, but \"%s\" is there; rename it",
                       n_path, path, name, other->name);
    return mb_fail(
        MB_ERR_CONFIG,
        "%.*s: tensor \"%s\" is missing, and config.json needs it; download the checkpoint again, or "
        "correct config.json",
        n_path, path, name);
}

/* ---- Taking ------------------------------------------------------------------------------------------- */

mb_status mb_weight_tensors_take(mb_weight_tensors *tensors, const char *name, int rank, const int64_t *shape,
                                 const mb_tensor **found) {
    const mb_tensor *tensor = mb_checkpoint_find(tensors->checkpoint, name);
    if (!tensor)
        return fail_missing(tensors->checkpoint, name);
    int same = tensor->rank == rank;
    for (int i = 0; same && i < rank; i++)
        same = tensor->shape[i] == (uint64_t)shape[i];
    if (!same) {
        mb_tensor wanted = {.rank = rank};
        for (int i = 0; i < rank; i++)
            wanted.shape[i] = (uint64_t)shape[i];
        char is[SHOWN], should_be[SHOWN];
        return mb_fail(MB_ERR_CONFIG, "%s: tensor \"%s\" has the shape %s, but config.json makes it %s",
                       mb_checkpoint_path(tensors->checkpoint, tensor), name,
                       mb_tensor_shape(is, sizeof is, tensor),
                       mb_tensor_shape(should_be, sizeof should_be, &wanted));
    }
    tensors->is_used[tensor - tensors->checkpoint->tensors] = 1;
    *found = tensor;
    return MB_OK;
}

mb_status mb_weight_tensors_check_dtype(const mb_weight_tensors *tensors, const mb_tensor *tensor,
                                        int may_be_fp8) {
    const char *path = mb_checkpoint_path(tensors->checkpoint, tensor);
    if (!tensor->is_float || tensor->dtype == MB_F8_E8M0)
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "%s: tensor \"%s\" is %s; weights may be BF16, F16, F32 or F8_E4M3 with block scales",
                       path, tensor->name, tensor->dtype_name);
    if (tensor->dtype != MB_F8_E4M3)
        return MB_OK;
    if (!may_be_fp8)
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "%s: tensor \"%s\" is F8_E4M3; only linear layers may be, and not merged "
                       "experts",
                       path, tensor->name);
    if (!tensors->config->fp8_blocks)
        return mb_fail(MB_ERR_CONFIG,
                       "%s: tensor \"%s\" is F8_E4M3, but config.json has no \"quantization_config\" "
                       "for fp8",
                       path, tensor->name);
    return MB_OK;
}

mb_status mb_weight_tensors_take_scale(mb_weight_tensors *tensors, const mb_tensor *weight, int64_t rows,
                                       int64_t cols, const mb_tensor **scale) {
    const int64_t shape[2] = {mb_f8_blocks(rows), mb_f8_blocks(cols)};
    char name[NAME_BYTES];
    snprintf(name, sizeof name, "%s_scale", weight->name);
    if (!mb_checkpoint_find(tensors->checkpoint, name))
        snprintf(name, sizeof name, "%s_scale_inv", weight->name);
    MB_TRY(mb_weight_tensors_take(tensors, name, 2, shape, scale));
    if (!(*scale)->is_float || (*scale)->dtype == MB_F8_E4M3)
        return mb_fail(MB_ERR_UNSUPPORTED,
                       "%s: tensor \"%s\" is %s; block scales may be F32, BF16, F16 or F8_E8M0",
                       mb_checkpoint_path(tensors->checkpoint, *scale), name, (*scale)->dtype_name);
    return MB_OK;
}

mb_status mb_weight_tensors_compare(const mb_weight_tensors *tensors, const mb_tensor *a, const mb_tensor *b,
                                    int *are_equal) {
    enum { PIECE = 1 << 20 };
    *are_equal = a->dtype_name == b->dtype_name && a->rank == b->rank && a->n_bytes == b->n_bytes;
    for (int32_t i = 0; *are_equal && i < a->rank && i < MB_TENSOR_DIMS; i++)
        *are_equal = a->shape[i] == b->shape[i];
    if (!*are_equal)
        return MB_OK;
    char *pieces = mb_malloc(2 * PIECE);
    if (!pieces)
        return mb_fail(MB_ERR_MEMORY, "no memory to compare \"%s\" with \"%s\"", a->name, b->name);
    mb_status status = MB_OK;
    for (uint64_t at = 0; status == MB_OK && *are_equal && at < a->n_bytes; at += PIECE) {
        size_t n = a->n_bytes - at < PIECE ? (size_t)(a->n_bytes - at) : PIECE;
        status = mb_checkpoint_read(tensors->checkpoint, a, at, pieces, n);
        if (status == MB_OK)
            status = mb_checkpoint_read(tensors->checkpoint, b, at, pieces + PIECE, n);
        *are_equal = memcmp(pieces, pieces + PIECE, n) == 0;
    }
    mb_free(pieces);
    return status;
}

void mb_weight_tensors_warn_unused(const mb_weight_tensors *tensors) {
    const mb_checkpoint *checkpoint = tensors->checkpoint;
    mb_name_list unused = {0};
    for (size_t i = 0; i < checkpoint->n_tensors; i++)
        if (!tensors->is_used[i] && !ends_with(checkpoint->tensors[i].name, "rotary_emb.inv_freq"))
            mb_name_list_add(&unused, checkpoint->tensors[i].name);
    if (unused.n_names > 0)
        mb_log(MB_LOG_WARN, "%.*s: the model that config.json describes does not use these tensors: %s",
               directory_length(checkpoint), checkpoint->shards[0].path, mb_name_list_text(&unused));
}
