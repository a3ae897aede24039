/* arena.c - memory of a template or of a rendering, freed as a whole; and the bounds of a rendering. */
#include <stdarg.h>
#include <stdio.h>

#include "base/alloc.h"
#include "model/jinja/value.h"

enum { ALIGNMENT = 16, SMALLEST_CHUNK = 4000, LARGEST_CHUNK = 1 << 20 };

struct jinja_chunk {
    jinja_chunk *next;
    size_t used, capacity;
    _Alignas(ALIGNMENT) char bytes[];
};

/* Chunks double, so that a long rendering has few and a short one wastes little. */
static jinja_chunk *add_chunk(jinja_arena *arena, size_t n_bytes) {
    size_t capacity = arena->chunks ? 2 * arena->chunks->capacity : SMALLEST_CHUNK;
    if (capacity > LARGEST_CHUNK)
        capacity = LARGEST_CHUNK;
    if (capacity < n_bytes)
        capacity = n_bytes;
    jinja_chunk *chunk = mb_malloc(sizeof *chunk + capacity);
    if (!chunk)
        return NULL;
    chunk->used = 0;
    chunk->capacity = capacity;
    chunk->next = arena->chunks;
    arena->chunks = chunk;
    return chunk;
}

void *jinja_alloc(jinja_arena *arena, size_t n_bytes) {
    if (n_bytes > arena->max_bytes - arena->n_bytes) {
        arena->is_full = 1;
        return NULL;
    }
    n_bytes = (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    jinja_chunk *chunk = arena->chunks;
    if (!chunk || n_bytes > chunk->capacity - chunk->used)
        chunk = add_chunk(arena, n_bytes);
    if (!chunk)
        return NULL;
    void *piece = chunk->bytes + chunk->used;
    chunk->used += n_bytes;
    arena->n_bytes =
        arena->n_bytes + n_bytes < arena->max_bytes ? arena->n_bytes + n_bytes : arena->max_bytes;
    return piece;
}

void jinja_arena_free(jinja_arena *arena) {
    for (jinja_chunk *chunk = arena->chunks, *next; chunk; chunk = next) {
        next = chunk->next;
        mb_free(chunk);
    }
    arena->chunks = NULL;
}

/* ---- Bounds and sentences ----------------------------------------------------------------------------- */

mb_status jinja_stop(const jinja_run *run, const char *format, ...) {
    char sentence[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sentence, sizeof sentence, format, arguments);
    va_end(arguments);
    return mb_fail(MB_ERR_ARGUMENT, "%s, line %d: %s", run->name, run->line, sentence);
}

mb_status jinja_no_memory(const jinja_run *run) {
    if (run->arena.is_full)
        return jinja_stop(run, "the template makes more than %zu MiB of text and values",
                          run->arena.max_bytes >> 20);
    return mb_fail(MB_ERR_MEMORY, "%s, line %d: no memory beside %zu bytes of text and values", run->name,
                   run->line, run->arena.n_bytes);
}

mb_status jinja_charge(jinja_run *run, uint64_t steps) {
    if (steps <= run->max_steps - run->steps) {
        run->steps += steps;
        return MB_OK;
    }
    run->steps = run->max_steps;
    return jinja_stop(run, "the template takes more than %llu steps", (unsigned long long)run->max_steps);
}

mb_status jinja_charge_bytes(jinja_run *run, size_t n_bytes) {
    enum { BYTES_PER_STEP = 32 };
    return jinja_charge(run, n_bytes / BYTES_PER_STEP);
}

mb_status jinja_enter(jinja_run *run) {
    if (run->depth >= JINJA_MAX_DEPTH)
        return jinja_stop(run, "the template nests deeper than %d levels", JINJA_MAX_DEPTH);
    run->depth++;
    return MB_OK;
}
