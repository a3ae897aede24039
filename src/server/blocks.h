/*
 * blocks.h - streams of APIs whose answers are blocks, one after the other: each begins, grows and ends.
 * The parts of an answer become blocks; of one run there is one answer.
 */
#ifndef MB_SERVER_BLOCKS_H
#define MB_SERVER_BLOCKS_H

#include "server/answer.h"

/* The open block of a run's stream. */
typedef struct server_blocks {
    int32_t index; /* of the open block, or of the next */
    int is_open;
    server_part_kind kind;
    int32_t call; /* of a call: its number, id and name */
    char id[40];
    char *name;
    server_text text; /* so far, of the open block */
    server_text done; /* for the writer: what it keeps of blocks that ended */
    int64_t n_events; /* for the writer */
} server_blocks;

void server_blocks_free(server_blocks *blocks);

typedef struct server_block_writer {
    void (*begin)(server_run *run, server_text *out);
    void (*grow)(server_run *run, const server_text *more, server_text *out); /* not empty */
    void (*end)(server_run *run, server_text *out);
} server_block_writer;

/* A writer's `news`: the answer's parts as events. The open block ends with the answer. */
void server_blocks_write(server_run *run, const server_answer *answer, const server_block_writer *writer,
                         server_text *out);

#endif
