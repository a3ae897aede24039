#include "engine/decode_graph.h"

#include "base/status.h"

static int32_t round_up(int32_t n, int32_t step) {
    return (n + step - 1) / step * step;
}

int32_t mb_decode_bucket_sequences(int32_t n, int32_t most) {
    int32_t bucket = 1;
    if (n > 8)
        bucket = round_up(n, n <= 64 ? 8 : n <= 256 ? 32 : 128);
    else
        while (bucket < n)
            bucket *= 2;
    return bucket < most ? bucket : most;
}

int32_t mb_decode_bucket_blocks(int32_t n, int32_t most) {
    int32_t bucket = 16;
    while (bucket < n && bucket < most)
        bucket *= 2;
    return bucket < most ? bucket : most;
}

static mb_graph *find(const mb_decode_graphs *graphs, int32_t n_sequences, int32_t max_blocks) {
    for (int32_t i = 0; i < graphs->n_kept; i++)
        if (graphs->kept[i].n_sequences == n_sequences && graphs->kept[i].max_blocks == max_blocks)
            return graphs->kept[i].graph;
    return NULL;
}

int mb_decode_graphs_has(const mb_decode_graphs *graphs, int32_t n_sequences, int32_t max_blocks) {
    return find(graphs, n_sequences, max_blocks) != NULL;
}

mb_status mb_decode_graphs_run(mb_decode_graphs *graphs, mb_device *device, int32_t n_sequences,
                               int32_t max_blocks, mb_device_work work, const void *context,
                               mb_stream stream) {
    mb_graph *kept = find(graphs, n_sequences, max_blocks);
    if (kept)
        return device->replay(device, kept, stream);
    if (graphs->n_kept == MB_MAX_DECODE_GRAPHS)
        return work(context, stream);
    /* Once plainly: kernels that are loaded on first use cannot be captured before. The device works
     * meanwhile. */
    MB_TRY(work(context, stream));
    mb_graph *graph;
    MB_TRY(mb_device_capture(device, work, context, stream, &graph));
    graphs->kept[graphs->n_kept++] = (mb_decode_graph){n_sequences, max_blocks, graph};
    return MB_OK;
}

void mb_decode_graphs_close(mb_decode_graphs *graphs, mb_device *device) {
    for (int32_t i = 0; i < graphs->n_kept; i++)
        device->graph_close(device, graphs->kept[i].graph);
    graphs->n_kept = 0;
}
