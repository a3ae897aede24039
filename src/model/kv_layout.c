/* kv_layout.c - see kv_layout.h. */
#include "model/kv_layout.h"

#include "moebius/layers.h"
#include "ops/common/dtype.h"

/* A block is rounded up to whole pieces of the first layer, whose size is a multiple of the others'. */
mb_kv_layout mb_kv_layout_make(const mb_config *config, mb_dtype dtype, mb_dtype kv_dtype) {
    const mb_dtype first_dtype = kv_dtype == MB_F8_E4M3 ? dtype : kv_dtype;
    const size_t n_values = (size_t)config->n_kv_heads * MB_KV_BLOCK * (size_t)config->head_dim;
    const size_t piece = n_values * mb_dtype_bytes(kv_dtype), first = n_values * mb_dtype_bytes(first_dtype);
    const size_t used = 2 * first + 2 * (size_t)(config->n_layers - 1) * piece;
    const size_t first_pieces = (used + first - 1) / first;
    return (mb_kv_layout){.first_dtype = first_dtype,
                          .dtype = kv_dtype,
                          .first_piece_bytes = first,
                          .piece_bytes = piece,
                          .first_pieces = (int32_t)first_pieces,
                          .pieces = (int32_t)(first_pieces * (first / piece)),
                          .block_bytes = first_pieces * first};
}

mb_kv_layer mb_kv_layout_layer(const mb_kv_layout *layout, int32_t layer) {
    if (layer == 0)
        return (mb_kv_layer){.dtype = layout->first_dtype, .v_offset = layout->first_piece_bytes};
    const size_t k_offset = 2 * layout->first_piece_bytes + 2 * (size_t)(layer - 1) * layout->piece_bytes;
    return (mb_kv_layer){
        .dtype = layout->dtype, .k_offset = k_offset, .v_offset = k_offset + layout->piece_bytes};
}

int32_t mb_kv_layout_slot(int32_t slot, int32_t pieces) {
    return slot / MB_KV_BLOCK * pieces * MB_KV_BLOCK + slot % MB_KV_BLOCK;
}

int mb_kv_layout_first_differs(const mb_kv_layout *layout) {
    return layout->first_pieces != layout->pieces;
}

uint64_t mb_kv_layout_token_bytes(const mb_kv_layout *layout) {
    return layout->block_bytes / MB_KV_BLOCK;
}
