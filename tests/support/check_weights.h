/* check_weights.h - loaded weights compared, element by element, with the tensors that were
 * written to the files. */
#ifndef TESTS_SUPPORT_CHECK_WEIGHTS_H
#define TESTS_SUPPORT_CHECK_WEIGHTS_H

#include <pthread.h>

#include "model/weights/weight_plan.h"
#include "support/tiny_checkpoint.h"

/* The configuration of a tiny checkpoint, parsed. */
void tiny_config_parse(const tiny_checkpoint *options, mb_config *config);

/* Gives a tensor another dtype and other random values; scales of a former fp8 tensor go. */
void tiny_tensor_retype(tiny_tensors *tensors, const char *name, const char *dtype);

typedef struct progress_log {
    uint64_t done, total;
    int calls;
    pthread_t owner;
} progress_log;

/* An mb_progress_fn: calls must come from the owner, and the bytes must grow. user: a progress_log. */
void log_progress(void *user, uint64_t done, uint64_t total);

/* Element i of a tensor as it is in the file, without its scale. */
float tiny_tensor_value(const tiny_tensor *tensor, size_t i);

/* The rectangle of a tensor (seen as a matrix) must be rows [at, at + rows.count) of matrix `matrix`. */
void check_rectangle(const tiny_tensors *tensors, const char *name, const mb_weight *weight, int64_t matrix,
                     int64_t at, mb_range rows, mb_range cols);
/* All of a tensor, of so many rows. */
void check_rows(const tiny_tensors *tensors, const char *name, const mb_weight *weight, int64_t matrix,
                int64_t first, int64_t rows);
void check_vector(const tiny_tensors *tensors, const char *name, const mb_weight *weight);
void check_layer(const tiny_checkpoint *o, const tiny_tensors *tensors, int layer, int is_moe,
                 const mb_layer_weights *w);

/* Loads the directory, which holds these tensors, onto a fake device and compares everything. */
void check_load(const tiny_checkpoint *o, const tiny_tensors *tensors, const char *directory, int host_memory,
                int n_threads);

#endif
