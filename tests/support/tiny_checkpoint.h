/*
 * tiny_checkpoint.h - writes small random Qwen3-MoE checkpoints for tests, valid or broken on purpose.
 *
 * The short way:
 *     char directory[TINY_PATH];
 *     tiny_checkpoint options;
 *     tiny_directory_make(directory);
 *     tiny_checkpoint_init(&options);          // 2 layers, 4 experts, fp32
 *     options.dtype = "BF16";
 *     tiny_checkpoint_write(&options, directory);
 *     ...
 *     tiny_directory_remove(directory);
 * The long way makes the list of tensors first, lets the test change it, and writes that. Nothing here goes
 * through the library's allocator; a helper that fails (disk full, no memory) ends the test program.
 */
#ifndef TESTS_SUPPORT_TINY_CHECKPOINT_H
#define TESTS_SUPPORT_TINY_CHECKPOINT_H

#include <stddef.h>
#include <stdint.h>

enum { TINY_PATH = 512, TINY_NAME = 160 };

/* ---- Directories and files ---------------------------------------------------------------------------- */

/* Makes a fresh directory below $TMPDIR (or /tmp). */
void tiny_directory_make(char directory[TINY_PATH]);
void tiny_directory_remove(const char *directory); /* with everything in it */
void tiny_file_write(const char *directory, const char *name, const void *bytes, size_t n_bytes);
void tiny_text_write(const char *directory, const char *name, const char *text);
/* The whole file, zero-terminated; free() it. */
char *tiny_file_read(const char *directory, const char *name, size_t *n_bytes);

/* ---- Tensors ------------------------------------------------------------------------------------------ */

typedef struct tiny_tensor {
    char name[TINY_NAME];
    const char *dtype; /* as safetensors spells it: "F32", "BF16", "F16", "F8_E4M3", ... */
    int rank;
    int64_t shape[4];
    void *data;
    size_t n_bytes;
} tiny_tensor;

typedef struct tiny_tensors {
    tiny_tensor *items;
    size_t count, capacity;
} tiny_tensors;

/* Appends a zeroed tensor; data may then be filled in. */
tiny_tensor *tiny_tensors_add(tiny_tensors *tensors, const char *name, const char *dtype, int rank,
                              const int64_t *shape);
tiny_tensor *tiny_tensors_find(const tiny_tensors *tensors, const char *name); /* NULL: there is none */
void tiny_tensors_remove(tiny_tensors *tensors, const char *name);
void tiny_tensors_free(tiny_tensors *tensors);

/* One safetensors file of tensors [first, first + count). */
void tiny_safetensors_write(const tiny_tensors *tensors, size_t first, size_t count, const char *directory,
                            const char *name);

/* ---- Checkpoints -------------------------------------------------------------------------------------- */

typedef struct tiny_checkpoint {
    int hidden, n_layers, n_heads, n_kv_heads, head_dim, vocab, max_positions;
    int n_experts, top_k, moe_intermediate;
    int intermediate;           /* of dense layers */
    int decoder_sparse_step;    /* 1: every layer is MoE */
    const int *mlp_only_layers; /* [n_mlp_only_layers] layers that are dense */
    int n_mlp_only_layers;
    int norm_topk_prob, attention_bias, tied;
    const char *dtype;       /* "F32", "BF16", "F16", or "F8_E4M3": attention and expert matrices in fp8 with
                                128x128 block scales, the rest BF16 */
    const char *scale_dtype; /* of the block scales: "F32", "BF16", "F16", "F8_E8M0" */
    const char *scale_name;  /* "weight_scale_inv", or "weight_scale" as compressed-tensors has them */
    int merged_experts;      /* mlp.experts.gate_up_proj and down_proj instead of one tensor per expert */
    int new_spelling;        /* config.json with num_local_experts, rope_parameters, dtype */
    int n_shards;            /* 0: model.safetensors; else that many shards and an index */
    float std;               /* standard deviation of the matrices */
    uint64_t seed;
    const char *extra_config; /* further members of config.json, e.g. "\"eos_token_id\": 3", or NULL */
} tiny_checkpoint;

void tiny_checkpoint_init(tiny_checkpoint *options);

/* The tensors of such a model, values random. Free with tiny_tensors_free. */
void tiny_checkpoint_tensors(const tiny_checkpoint *options, tiny_tensors *tensors);
/* config.json's text; free() it. */
char *tiny_checkpoint_config(const tiny_checkpoint *options);

/* Writes config.json, the safetensors files and, when sharded, the index. */
void tiny_checkpoint_write(const tiny_checkpoint *options, const char *directory);
void tiny_checkpoint_write_tensors(const tiny_checkpoint *options, const tiny_tensors *tensors,
                                   const char *directory);

/* mb_random: the next number of a stream; for reproducible random inputs. */
uint64_t tiny_random(uint64_t *state);
/* Uniform in [-1, 1). */
float tiny_random_float(uint64_t *state);

#endif
