/*
 * weights.h - the tensors of a model on its device, in the layout that the operators want: q, k, v merged
 * into one matrix, gate and up of all experts merged into w13 [E, 2I, H], down projections into
 * w2 [E, H, I].
 *
 * Matrices keep the checkpoint's dtype (bf16, fp16, fp32, fp8 with block scales) unless the kernels or the
 * user want another. Matrices that are merged and have different dtypes get the widest one. No second
 * copy is made: each tensor is read from the file straight to its final place (CPU) or through a small
 * pinned buffer (GPU).
 *
 * On the CPU, a tensor whose layout needs no change is not read: its file is mapped, read-only and shared
 * with other programs. The operating system ends a program (SIGBUS) that reads a mapped file behind an end
 * that was moved forward. So a checkpoint that is in use must be replaced by new files that are renamed,
 * never written into.
 */
#ifndef MB_MODEL_WEIGHTS_H
#define MB_MODEL_WEIGHTS_H

#include "device/device.h"
#include "model/config.h"
#include "model/weights/checkpoint.h"
#include "moebius/moebius.h"

typedef struct mb_layer_weights {
    mb_weight input_norm, post_norm; /* [1, 1, H] */
    mb_weight qkv;                   /* [1, (Hq + 2 Hkv) D, H] */
    mb_weight qkv_bias;              /* [1, 1, (Hq + 2 Hkv) D], data NULL without attention_bias */
    mb_weight q_norm, k_norm;        /* [1, 1, D] */
    mb_weight o, o_bias;             /* [1, H, Hq D], [1, 1, H] */
    mb_weight router;                /* MoE layers: [1, E, H] */
    /* MoE: [E, 2I, H], [E, H, I], where I may be padded (inner_multiple); dense layers: the same with one
     * matrix */
    mb_weight w13, w2;
} mb_layer_weights;

typedef struct mb_weights {
    mb_weight embedding;  /* [1, V, H] */
    mb_weight final_norm; /* [1, 1, H] */
    mb_weight lm_head;    /* [1, V, H]; the same data as embedding when tied */
    mb_layer_weights *layers;
    int32_t n_layers;
    int is_tied; /* lm_head is the embedding */
    uint64_t n_parameters, n_active_parameters;
    uint64_t n_bytes;    /* of all weights: the block's and mapped ones */
    char dtype_name[48]; /* for people: "bf16", "fp8_e4m3 (128x128 blocks)", "mixed" */
    mb_device *device;
    void *memory;      /* the device block of all weights that are not mapped */
    mb_file_map *maps; /* files that weights lie in, [n_maps] */
    size_t n_maps;
} mb_weights;

/* In which types weights are held. Norms keep their type. */
typedef struct mb_weight_types {
    /* NULL: matrices keep the type that the files have. Else kernels want the type that is computed
     * with: matrices get it, but fp8 stays fp8 beside 16-bit types, and the router keeps its type. */
    const mb_dtype *matrix_dtype;
    /* 1: the matrices that Qwen's FP8 checkpoints have in fp8 (of attention, experts and dense layers) become
     * fp8 with a scale for each block of 128x128, amax / 448, or 1 where all are 0. */
    int to_fp8;
    /* The experts' intermediate size is held as the next multiple of this, as kernels want; 0: as it is. The
     * rows of w13 and columns of w2 that are added are 0, and add exactly nothing to any sum. A divisor
     * of 128, so that blocks of fp8 scales stay what they are. */
    int32_t inner_multiple;
} mb_weight_types;

/* An intermediate size of experts, as it is held. */
int64_t mb_held_inner(int64_t inner, mb_weight_types types);

/* Reads all tensors that `config` needs from the checkpoint directory. Every needed tensor must be
 * present exactly once with the right shape and a supported dtype; a warning lists those that are not
 * needed. MB_ERR_MEMORY before anything is read when the device has not enough free memory. progress may
 * be NULL. On failure everything is released. */
mb_status mb_weights_load(const char *directory, const mb_config *config, mb_device *device,
                          mb_weight_types types, int n_threads, mb_progress_fn progress, void *progress_user,
                          mb_weights *weights);

/* Weights that no file has, for measuring speed: random, of the config's shape, in the types that a
 * checkpoint of the config would be held in (weights_random.c). */
mb_status mb_weights_random(const mb_config *config, mb_device *device, mb_weight_types types,
                            mb_weights *weights);

/* The checks of mb_weights_load on the files' headers alone: sizes, dtypes and counts are known, every
 * pointer is NULL. MB_ERR_NOT_FOUND: the directory has no weights. */
mb_status mb_weights_measure(const char *directory, const mb_config *config, mb_weight_types types,
                             mb_weights *weights);

/* Sizes, dtypes and counts as the config alone gives them; every pointer is NULL. */
mb_status mb_weights_of_config(const mb_config *config, mb_weight_types types, mb_weights *weights);

void mb_weights_free(mb_weights *weights);

/* Ties lm_head, counts parameters, names the dtype: all that follows from the weights. */
void mb_weights_describe(const mb_config *config, mb_weights *weights);

#endif
