/*
 * weight_tensors.h - looks up the tensors that a model needs in a checkpoint. Each tensor is checked against
 * config.json. At the end a warning lists the tensors that were not needed.
 */
#ifndef MB_MODEL_WEIGHT_TENSORS_H
#define MB_MODEL_WEIGHT_TENSORS_H

#include "model/config.h"
#include "model/weights/checkpoint.h"

typedef struct mb_weight_tensors {
    const mb_checkpoint *checkpoint;
    const mb_config *config;
    unsigned char *is_used; /* [n_tensors] of the checkpoint */
} mb_weight_tensors;

mb_status mb_weight_tensors_init(mb_weight_tensors *tensors, const mb_checkpoint *checkpoint,
                                 const mb_config *config);
void mb_weight_tensors_free(mb_weight_tensors *tensors);

/* Finds a tensor that must be there with this shape. MB_ERR_CONFIG: missing (the sentence says what is
 * there in its place: names under another prefix, packed integers), or of another shape. */
mb_status mb_weight_tensors_take(mb_weight_tensors *tensors, const char *name, int rank, const int64_t *shape,
                                 const mb_tensor **found);

/* A weight's dtype must be one that can be loaded; fp8 only where it may be and where config.json says so. */
mb_status mb_weight_tensors_check_dtype(const mb_weight_tensors *tensors, const mb_tensor *tensor,
                                        int may_be_fp8);

/* The block scales of an fp8 weight of rows x cols: NAME_scale_inv, or NAME_scale as llm-compressor
 * writes it. */
mb_status mb_weight_tensors_take_scale(mb_weight_tensors *tensors, const mb_tensor *weight, int64_t rows,
                                       int64_t cols, const mb_tensor **scale);

/* 1 when both have the same dtype, shape and bytes. */
mb_status mb_weight_tensors_compare(const mb_weight_tensors *tensors, const mb_tensor *a, const mb_tensor *b,
                                    int *are_equal);

/* Tensors that were not taken are no error, as in transformers: a warning lists them. */
void mb_weight_tensors_warn_unused(const mb_weight_tensors *tensors);

#endif
