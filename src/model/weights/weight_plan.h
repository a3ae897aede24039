/*
 * weight_plan.h - which bytes of a checkpoint go where in the one device block of all weights, decided and
 * checked before anything is read.
 */
#ifndef MB_MODEL_WEIGHT_PLAN_H
#define MB_MODEL_WEIGHT_PLAN_H

#include "model/config.h"
#include "model/weights/checkpoint.h"
#include "model/weights/weights.h"

/* One tensor of the files and its place. Weights are copied as they are. Scales (scale_rows > 0) become fp32,
 * and each of their rows is repeated for as many groups of scale_rows weight rows as it covers. */
typedef struct mb_weight_part {
    const mb_tensor *tensor;
    uint64_t offset; /* in the block */
    int64_t n_rows;  /* scales: rows to write, of tensor->shape[1] floats */
    int32_t scale_rows;
} mb_weight_part;

/* Where one merged matrix begins. */
typedef struct mb_weight_place {
    mb_weight *weight;
    uint64_t data, scale; /* offsets in the block */
    int has_scale;
} mb_weight_place;

typedef struct mb_weight_plan {
    mb_weight_part *parts;
    size_t n_parts, parts_capacity;
    mb_weight_place *places;
    size_t n_places, places_capacity;
    uint64_t n_bytes;    /* of the block */
    uint64_t read_bytes; /* that will be read from files */
} mb_weight_plan;

/* Finds every tensor that `config` needs, checks its shape and dtype, and fills weights' layers and all
 * fields of its mb_weights but the pointers; weights->layers was allocated. Tensors that the model has no use
 * for are errors. On failure the plan is empty. */
mb_status mb_weight_plan_make(const mb_checkpoint *checkpoint, const mb_config *config, mb_weights *weights,
                              mb_weight_plan *plan);
void mb_weight_plan_free(mb_weight_plan *plan);

/* Sets the pointers of all weights, now that the block is known. */
void mb_weight_plan_place(const mb_weight_plan *plan, void *memory);

#endif
