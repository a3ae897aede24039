/*
 * kv_layout.h - where each layer's K and V lie in the KV cache.
 *
 * A block is all that the cache has of 64 positions of a sequence: [layer, K and V, Hkv, 64, D]. It is one
 * range of bytes, which one copy can move. A piece is [Hkv, 64, D]: a block's K, or V, of one layer.
 *
 * An operator sees one layer. Its k_cache is the layer's K in the first block, its v_cache the piece after
 * that, and its block table and slots count pieces of the layer's size from there on. A block is as large
 * as `pieces` of them, so block b is the layer's piece b * pieces.
 *
 * An fp8 cache has all layers in e4m3 but the first, whose K and V stay in the type of the activations.
 * They follow from token and position alone, so an error there repeats wherever the token stands, and
 * attention does not average it out: on the demo model that layer made more of the divergence than all
 * others (docs/findings/fp8.md). Its pieces are larger, so a block is fewer of them, and the layer has a
 * block table and slots of its own.
 */
#ifndef MB_MODEL_KV_LAYOUT_H
#define MB_MODEL_KV_LAYOUT_H

#include <stddef.h>

#include "model/config.h"
#include "moebius/ops.h"

typedef struct mb_kv_layout {
    mb_dtype first_dtype, dtype;           /* of the first layer, and of all others */
    size_t first_piece_bytes, piece_bytes; /* multiples of 128 */
    int32_t first_pieces, pieces;          /* that a block is as large as */
    size_t block_bytes;
} mb_kv_layout;

/* One layer's part. */
typedef struct mb_kv_layer {
    mb_dtype dtype;
    size_t k_offset, v_offset; /* of the first block, in bytes from the start of the cache */
} mb_kv_layer;

/* dtype: of the activations; kv_dtype: the same, or MB_F8_E4M3. */
mb_kv_layout mb_kv_layout_make(const mb_config *config, mb_dtype dtype, mb_dtype kv_dtype);

mb_kv_layer mb_kv_layout_layer(const mb_kv_layout *layout, int32_t layer);

/* The place of a position among a layer's pieces. slot: its place among blocks, block * 64 + offset. */
int32_t mb_kv_layout_slot(int32_t slot, int32_t pieces);

/* Whether the first layer's pieces are larger, so that it has a block table and slots of its own. */
int mb_kv_layout_first_differs(const mb_kv_layout *layout);

/* Bytes of K plus V that one token takes over all layers. */
uint64_t mb_kv_layout_token_bytes(const mb_kv_layout *layout);

#endif
