#include "base/arena.h"

#include <string.h>

#ifdef NDEBUG
enum { RED_ZONE = 0 };
#else
enum { RED_ZONE = 64 };
#endif
enum { RED_BYTE = 0xA5 };

/* In debug builds each piece is followed by: RED_ZONE bytes of RED_BYTE, then padding. The zones' places are
 * found again from the back: the last 16 bytes of each slot hold the slot's and the piece's length. */

void mb_arena_init(mb_arena *arena, void *base, size_t capacity, int host) {
    *arena = (mb_arena){.base = base, .capacity = capacity, .host = host};
}

void mb_arena_measure(mb_arena *arena) {
    mb_arena_init(arena, NULL, SIZE_MAX, 0);
}

void *mb_arena_push(mb_arena *arena, size_t count, size_t item_bytes) {
    size_t room = arena->capacity - arena->used;
    if (item_bytes != 0 && count > (SIZE_MAX - RED_ZONE - MB_ARENA_ALIGNMENT) / item_bytes) {
        arena->overflowed = 1;
        return NULL;
    }
    size_t n_bytes = count * item_bytes + RED_ZONE;
    n_bytes += (MB_ARENA_ALIGNMENT - n_bytes % MB_ARENA_ALIGNMENT) % MB_ARENA_ALIGNMENT;
    if (n_bytes > room) {
        arena->overflowed = 1;
        return NULL;
    }
    size_t start = arena->used;
    arena->used += n_bytes;
    if (!arena->base)
        return NULL;
    if (RED_ZONE > 0 && arena->host) {
        char *zone = arena->base + start + count * item_bytes;
        memset(zone, RED_BYTE, (size_t)(arena->base + arena->used - zone));
        /* The piece's length, at the very end of its slot, lets the checker walk from the back. */
        uint64_t slot[2] = {n_bytes, count * item_bytes};
        memcpy(arena->base + arena->used - sizeof slot, slot, sizeof slot);
    }
    return arena->base + start;
}

void mb_arena_pop_to(mb_arena *arena, size_t used) {
    if (used <= arena->used)
        arena->used = used;
}

size_t mb_arena_check(const mb_arena *arena) {
    if (RED_ZONE == 0 || !arena->host || !arena->base)
        return 0;
    size_t end = arena->used;
    while (end > 0) {
        uint64_t slot[2];
        memcpy(slot, arena->base + end - sizeof slot, sizeof slot);
        if (slot[0] == 0 || slot[0] % MB_ARENA_ALIGNMENT != 0 || slot[0] > end || slot[1] > slot[0])
            return end; /* the record itself was overwritten */
        size_t piece_end = end - slot[0] + slot[1];
        for (size_t i = piece_end; i < end - sizeof slot; i++)
            if ((unsigned char)arena->base[i] != RED_BYTE)
                return piece_end ? piece_end : 1;
        end -= slot[0];
    }
    return 0;
}
