/*
 * weight_plan.h - which bytes of a checkpoint go where in the one device block of all weights, decided and
 * checked before anything is read.
 *
 * A plan covers a whole model, or one device's share of it: some heads, some columns of the experts, some
 * experts. For this, each part of a plan has a range of rows and a range of columns.
 */
#ifndef MB_MODEL_WEIGHT_PLAN_H
#define MB_MODEL_WEIGHT_PLAN_H

#include "model/config.h"
#include "model/weights/checkpoint.h"
#include "model/weights/weights.h"

typedef struct mb_range {
    int64_t first, count;
} mb_range;

/* The share of a model that is loaded, and in which type. Norms, router, embedding and lm_head are
 * always loaded whole. */
typedef struct mb_weight_share {
    mb_range heads, kv_heads; /* rows of q_proj and columns of o_proj; rows of k_proj and v_proj */
    mb_range inner;           /* of dense layers' intermediate size: rows of gate and up, columns of down */
    mb_range moe_inner;       /* the same of each expert */
    mb_range experts;
    mb_weight_types types;
} mb_weight_share;

mb_weight_share mb_weight_share_all(const mb_config *config);

/* What happens to the bytes of a part on their way from the file to the block. */
typedef enum mb_part_kind {
    MB_PART_COPY,    /* they stay as they are */
    MB_PART_CONVERT, /* they get another dtype; fp8 is multiplied by its scales first */
    MB_PART_SCALES,  /* block scales become fp32; a row of them is repeated for each scale_rows weight rows */
    /* They become fp8, and the blocks' scales are made. A block is 128x128 values of one matrix as the file
     * has it, also where only some of its rows or columns are taken. */
    MB_PART_QUANTIZE,
} mb_part_kind;

/* A rectangle of one tensor and its place in the block, where its rows follow one another. A tensor is
 * seen as a matrix: its last dimension gives the columns, all others together the rows. A vector has one
 * column. */
typedef struct mb_weight_part {
    mb_part_kind kind;
    const mb_tensor *tensor;
    const mb_tensor *scale; /* MB_PART_CONVERT of fp8: of 128x128 blocks; else NULL */
    mb_range rows, cols;    /* of the tensor; MB_PART_SCALES: of the weight that it scales */
    int64_t width;          /* columns in the block; those behind cols are 0 */
    mb_dtype dtype;         /* in the block */
    int32_t scale_rows; /* MB_PART_SCALES, _QUANTIZE: weight rows for each row of scales in the block of all
                           weights, a divisor of 128 */
    uint64_t offset;    /* in the block */
    mb_range matrix;    /* MB_PART_QUANTIZE only: the rows of the tensor that are one matrix */
    uint64_t scale_offset; /* MB_PART_QUANTIZE only: of the scales, in the block */
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
    int has_gaps;          /* rows of the block belong to no part: it must be 0 before it is read */
} mb_weight_plan;

/* Finds every tensor that the share needs, checks its shape and dtype, and fills weights' layers and all
 * fields of its mb_weights but the pointers; weights->layers was allocated. Tensors that are merged and
 * have different dtypes get the widest one. A weight that is one aligned stretch of a mapped file
 * (mb_checkpoint_map) stays there. Tensors that the model does not use give a warning. On failure the
 * plan is empty. */
mb_status mb_weight_plan_make(const mb_checkpoint *checkpoint, const mb_config *config,
                              const mb_weight_share *share, mb_weights *weights, mb_weight_plan *plan);
void mb_weight_plan_free(mb_weight_plan *plan);

/* Sets the pointers of all weights, now that the block is known. */
void mb_weight_plan_place(const mb_weight_plan *plan, void *memory);

/* Bytes of one of the part's rows in the block, without scales that are made; how many rows that are. */
uint64_t mb_weight_part_row_bytes(const mb_weight_part *part);
int64_t mb_weight_part_n_rows(const mb_weight_part *part);

/* A tensor as a matrix. */
int64_t mb_tensor_cols(const mb_tensor *tensor);
uint64_t mb_tensor_row_bytes(const mb_tensor *tensor);

#endif
