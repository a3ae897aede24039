#include "server/blocks.h"

#include <stdio.h>

#include "base/alloc.h"
#include "server/run.h"

void server_blocks_free(server_blocks *blocks) {
    mb_free(blocks->name);
    server_text_free(&blocks->text);
    server_text_free(&blocks->done);
}

static void end(server_run *run, const server_block_writer *writer, server_text *out) {
    server_blocks *blocks = &run->blocks;
    if (!blocks->is_open)
        return;
    writer->end(run, out);
    blocks->is_open = 0;
    blocks->index++;
}

static void begin(server_run *run, const server_part *part, const server_block_writer *writer,
                  server_text *out) {
    server_blocks *blocks = &run->blocks;
    blocks->is_open = 1;
    blocks->kind = part->kind;
    blocks->call = part->call;
    server_text_clear(&blocks->text);
    mb_free(blocks->name);
    blocks->name = NULL;
    if (part->kind == SERVER_CALL) {
        snprintf(blocks->id, sizeof blocks->id, "%s", part->id);
        blocks->name = mb_strdup(part->name);
        out->failed |= blocks->name == NULL;
    }
    if (!out->failed)
        writer->begin(run, out);
}

void server_blocks_write(server_run *run, const server_answer *answer, const server_block_writer *writer,
                         server_text *out) {
    server_blocks *blocks = &run->blocks;
    for (size_t i = 0; i < answer->n_parts && !out->failed; i++) {
        const server_part *part = &answer->parts[i];
        int goes_on = blocks->is_open && blocks->kind == part->kind && !part->begins &&
                      (part->kind != SERVER_CALL || blocks->call == part->call);
        if (!goes_on) {
            end(run, writer, out);
            begin(run, part, writer, out);
        }
        if (part->text.n_bytes > 0 && !out->failed) {
            server_text_put(&blocks->text, part->text.bytes, part->text.n_bytes);
            out->failed |= blocks->text.failed;
            writer->grow(run, &part->text, out);
        }
        if (part->ends && !out->failed)
            end(run, writer, out);
    }
    if (answer->finish != NULL && !out->failed)
        end(run, writer, out);
}
