/*
 * qwen3_moe.h - the one forward pass, over any device's op table.
 */
#ifndef MB_MODEL_QWEN3_MOE_H
#define MB_MODEL_QWEN3_MOE_H

#include "base/arena.h"
#include "device/device.h"
#include "model/config.h"
#include "model/kv_layout.h"
#include "model/weights/weights.h"

/* Largest batch that a forward's scratch memory is made for. */
typedef struct mb_forward_limits {
    int32_t max_tokens, max_sequences, max_logits; /* rows of logits wanted at once */
    int32_t max_blocks;                            /* KV blocks of one sequence */
    mb_dtype kv_dtype;                             /* of the KV cache */
} mb_forward_limits;

/* What to do when a session's buffers do not fit: its options, and those of the command line. */
#define MB_LOWER_LIMITS \
    "lower max_sequences (--max-batch), max_step_tokens (--max-step-tokens) or max_context (--max-context)"

/* Paged KV memory of all layers. */
typedef struct mb_kv_memory {
    void *memory; /* [n_blocks, layout.block_bytes] */
    mb_kv_layout layout;
    int32_t n_blocks;
    const float *scales; /* of an fp8 cache (kv_scales.h): [n_layers, K and V, Hkv]; NULL: 1 */
} mb_kv_memory;

/* Enqueues a part of a step: calls work(context, stream), or enqueues what that call enqueued when the part
 * was the same before. */
typedef mb_status (*mb_enqueue_part)(void *user, int layer, mb_device_work work, const void *context,
                                     mb_stream stream);

/* One step's batch. Pointers are device memory, which the step reads until it has run; ints are known on the
 * host. */
typedef struct mb_batch {
    const int32_t *ids, *positions; /* [n_tokens] */
    /* Counted in pieces of a layer (kv_layout.h). The first layer has its own where its pieces are larger. */
    const int32_t *slots, *first_slots;             /* [n_tokens] */
    const int32_t *block_table, *first_block_table; /* [n_sequences, max_blocks] */
    /* Tokens that the sampler has drawn (embed.h): [n_tokens] places in draws. NULL: all are in ids. */
    const int32_t *draw_of, *draws;
    const int32_t *q_start;    /* [n_sequences + 1] */
    const int32_t *kv_len;     /* [n_sequences] */
    const int32_t *span_start; /* [n_sequences + 1] (decode_attention.h) */
    const int32_t *logit_rows; /* [n_logits] token rows whose logits are wanted */
    float *logits;             /* [n_logits, V] fp32 out */
    /* Through this goes each layer's attention block: all in front of the MLP or the experts. NULL: it is
     * called. */
    mb_enqueue_part enqueue_attention;
    void *enqueue_attention_user;
    int32_t n_tokens, n_sequences, n_logits, max_blocks, max_q_len, max_kv_len;
} mb_batch;

typedef struct mb_forward {
    const mb_config *config;
    const mb_weights *weights;
    mb_device *device;
    const mb_ops *ops; /* the device's, or a table around it */
    mb_dtype dtype;    /* activations */
    mb_forward_limits limits;
    /* scratch, cut from one device block */
    void *memory;
    size_t memory_bytes;
    mb_arena arena;
    float *inv_freq;
    /* The residual stream: x is one of rows_of_x, [max_tokens, H] each. A MoE block that is one call has
     * its sum made in the other one, which is NULL where the device has no moe_block. */
    void *x, *rows_of_x[2];
    void *normed, *qkv, *q, *attended, *gate_up, *activated;
    float *router_logits, *route_weights;
    int32_t *route_ids;
    void *x8; /* normed rows in fp8: [max_tokens, H] e4m3; where no layer wants them there is no room */
    float *x8_scale;
    int32_t *attention_counters; /* (decode_attention.h) */
    void *workspace;
    size_t workspace_bytes;
} mb_forward;

/* MB_ERR_UNSUPPORTED when the device lacks operators; the sentence names them. */
mb_status mb_forward_check_device(const mb_device *device);

/* Allocates the scratch memory of a forward pass on the device, and fills what is constant in it on `stream`.
 * Checks the device. */
mb_status mb_forward_init(mb_forward *forward, const mb_config *config, const mb_weights *weights,
                          mb_device *device, mb_dtype dtype, const mb_forward_limits *limits,
                          mb_stream stream);
void mb_forward_free(mb_forward *forward);

/* Enqueues one step on the stream: embeds, runs all layers, stores K and V, and leaves the logits of
 * batch->logit_rows in batch->logits. A row's logits do not depend on the rest of the batch, bit for bit.
 * Steps of one forward share its scratch memory, so they all go to the same stream. */
mb_status mb_forward_run(mb_forward *forward, const mb_kv_memory *kv, const mb_batch *batch,
                         mb_stream stream);

#endif
