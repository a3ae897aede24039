/*
 * arena.h - one block of memory per lifetime (model, session, step), handed out piece by piece.
 *
 * The size is computed first. A measuring arena has no memory: make all mb_arena_push calls on it, read
 * .used, allocate that many bytes, and make the same calls on an arena that has them. Debug builds put a
 * red zone after every piece; mb_arena_check() says whether one was overwritten.
 */
#ifndef MB_BASE_ARENA_H
#define MB_BASE_ARENA_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { MB_ARENA_ALIGNMENT = 256 };

typedef struct mb_arena {
    char *base;      /* NULL while measuring */
    size_t capacity; /* bytes at base; SIZE_MAX while measuring */
    size_t used;     /* bytes handed out so far, padding and red zones included */
    int host;        /* base may be touched by the CPU, so red zones are written and checked */
    int overflowed;  /* a push did not fit, or its size overflowed */
} mb_arena;

void mb_arena_init(mb_arena *arena, void *base, size_t capacity, int host);
void mb_arena_measure(mb_arena *arena); /* a measuring arena */

/* A piece of count * item_bytes, aligned to 256 bytes. NULL while measuring, and NULL with .overflowed set
 * when it does not fit. Contents are not initialised. */
void *mb_arena_push(mb_arena *arena, size_t count, size_t item_bytes);

/* Takes back all that was pushed since .used had this value. */
void mb_arena_pop_to(mb_arena *arena, size_t used);

/* 0 when every red zone is whole; else the offset where the first piece that was overrun ends. Release
 * builds have no red zones and return 0. */
size_t mb_arena_check(const mb_arena *arena);

#ifdef __cplusplus
}
#endif

#endif
