/*
 * weight_plan.h - which bytes of a checkpoint go where in the one device block of all weights, decided and
 * checked before anything is read.
 *
 * A model's share may be planned instead of all of it (some heads, some columns of the experts, some experts),
 * for models that lie on several devices: every part has a range of rows and of columns.
 */
#ifndef MB_MODEL_WEIGHT_PLAN_H
#define MB_MODEL_WEIGHT_PLAN_H

#include "model/config.h"
#include "model/weights/checkpoint.h"
#include "model/weights/weights.h"

typedef struct mb_range {
    int64_t first, count;
} mb_range;

/* What of a model is loaded, and in which type. Norms, router, embedding and lm_head always are, whole. */
typedef struct mb_weight_share {
    mb_range heads, kv_heads; /* rows of q_proj and columns of o_proj; rows of k_proj and v_proj */
    mb_range inner;           /* of dense layers' intermediate size: rows of gate and up, columns of down */
    mb_range moe_inner;       /* the same of each expert */
    mb_range experts;
    /* NULL: matrices keep the type that the files have. Else kernels want the type that is computed with: matrices
     * get it, but fp8 stays fp8 beside 16-bit types, and the router keeps its type. */
    const mb_dtype *matrix_dtype;
} mb_weight_share;

mb_weight_share mb_weight_share_all(const mb_config *config);

/* What happens to a part on its way. */
typedef enum mb_part_kind {
    MB_PART_COPY,    /* nothing */
    MB_PART_CONVERT, /* to another dtype; fp8 is multiplied by its scales first */
    MB_PART_SCALES, /* block scales become fp32; a row is repeated for all groups of scale_rows that it covers */
} mb_part_kind;

/* A rectangle of one tensor and its place. A tensor is seen as a matrix: its last dimension is a row (a vector's
 * rows have one column), all others together are its rows. The rectangle's rows follow one another there. */
typedef struct mb_weight_part {
    mb_part_kind kind;
    const mb_tensor *tensor;
    const mb_tensor *scale; /* MB_PART_CONVERT of fp8: of 128x128 blocks; else NULL */
    mb_range rows, cols;    /* of the tensor; MB_PART_SCALES: of the weight that it scales */
    mb_dtype dtype;         /* that it gets */
    int32_t scale_rows;     /* MB_PART_SCALES only: weight rows that share a scale there, a divisor of 128 */
    uint64_t offset;        /* in the block */
} mb_weight_part;

/* Where one merged matrix begins. */
typedef struct mb_weight_place {
    mb_weight *weight;
    const char *mapped;   /* the data's address in a mapped file, else NULL */
    uint64_t data, scale; /* offsets in the block */
    int has_scale;
} mb_weight_place;

typedef struct mb_weight_plan {
    mb_weight_part *parts;
    size_t n_parts, parts_capacity;
    mb_weight_place *places;
    size_t n_places, places_capacity;
    uint64_t n_bytes;      /* of the block */
    uint64_t mapped_bytes; /* that the block would have more, were nothing mapped */
    uint64_t read_bytes;   /* that will be read from files */
} mb_weight_plan;

/* Finds every tensor that the share needs, checks its shape and dtype, and fills weights' layers and all fields
 * of its mb_weights but the pointers; weights->layers was allocated. Tensors of different dtypes that are merged
 * get the widest. A weight that is one stretch of a mapped file (mb_checkpoint_map), aligned as its elements
 * are, stays there. Tensors that the model has no use for give a warning. On failure the plan is empty. */
mb_status mb_weight_plan_make(const mb_checkpoint *checkpoint, const mb_config *config,
                              const mb_weight_share *share, mb_weights *weights, mb_weight_plan *plan);
void mb_weight_plan_free(mb_weight_plan *plan);

/* Sets the pointers of all weights, now that the block is known. */
void mb_weight_plan_place(const mb_weight_plan *plan, void *memory);

/* Bytes of one of the part's rows in the block; how many rows that are. */
uint64_t mb_weight_part_row_bytes(const mb_weight_part *part);
int64_t mb_weight_part_n_rows(const mb_weight_part *part);

/* A tensor as a matrix. */
int64_t mb_tensor_cols(const mb_tensor *tensor);
uint64_t mb_tensor_row_bytes(const mb_tensor *tensor);

#endif
