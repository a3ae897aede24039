/*
 * decode_graph.h - decode steps as graphs of the device, one for each bucket of shapes.
 *
 * A step in which every sequence has one token and draws is a decode step. Its counts are rounded up to a
 * bucket; rows beyond the batch are padding. So the arrays of two steps of a bucket lie at the same
 * addresses, and the work that was captured for the first one serves all. A graph is made when its bucket
 * is first met, and kept.
 *
 * Padding changes no result: a row's bits do not depend on the rows beside it.
 */
#ifndef MB_ENGINE_DECODE_GRAPH_H
#define MB_ENGINE_DECODE_GRAPH_H

#include "device/device.h"

enum { MB_MAX_DECODE_GRAPHS = 48 }; /* what meets more buckets than these is launched plainly */

typedef struct mb_decode_graph {
    int32_t n_sequences, max_blocks; /* the bucket */
    mb_graph *graph;
} mb_decode_graph;

typedef struct mb_decode_graphs {
    mb_decode_graph kept[MB_MAX_DECODE_GRAPHS];
    int32_t n_kept;
} mb_decode_graphs;

/* Sequences rounded up: 1, 2, 4, 8, then multiples of 8 to 64, of 32 to 256, of 128 above; at most
 * `most`, which is at least n. */
int32_t mb_decode_bucket_sequences(int32_t n, int32_t most);

/* KV blocks of the longest sequence rounded up: 16 (1024 positions), then powers of two; at most `most`. */
int32_t mb_decode_bucket_blocks(int32_t n, int32_t most);

int mb_decode_graphs_has(const mb_decode_graphs *graphs, int32_t n_sequences, int32_t max_blocks);

/* Enqueues the work of a bucket: the first time by `work`, which is then captured too; from then on as
 * its graph. */
mb_status mb_decode_graphs_run(mb_decode_graphs *graphs, mb_device *device, int32_t n_sequences,
                               int32_t max_blocks, mb_device_work work, const void *context,
                               mb_stream stream);

void mb_decode_graphs_close(mb_decode_graphs *graphs, mb_device *device); /* zeroed ones are allowed */

#endif
