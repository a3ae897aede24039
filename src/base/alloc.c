#include "base/alloc.h"

#include "moebius/moebius.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void *system_reallocate(void *user, void *pointer, size_t n_bytes) {
    (void)user;
    if (n_bytes == 0) {
        free(pointer);
        return NULL;
    }
    return realloc(pointer, n_bytes);
}

static struct {
    mb_allocate_fn allocate;
    void *user;
} hook = {system_reallocate, NULL};

void mb_set_allocator(mb_allocate_fn allocate, void *user) {
    hook.allocate = allocate ? allocate : system_reallocate;
    hook.user = allocate ? user : NULL;
}

void *mb_malloc(size_t n_bytes) {
    return hook.allocate(hook.user, NULL, n_bytes ? n_bytes : 1);
}

void *mb_malloc_array(size_t count, size_t n_bytes) {
    if (n_bytes != 0 && count > SIZE_MAX / n_bytes)
        return NULL;
    return mb_malloc(count * n_bytes);
}

void *mb_calloc(size_t count, size_t n_bytes) {
    void *pointer = mb_malloc_array(count, n_bytes);
    if (pointer)
        memset(pointer, 0, count * n_bytes);
    return pointer;
}

void *mb_realloc(void *pointer, size_t n_bytes) {
    return hook.allocate(hook.user, pointer, n_bytes ? n_bytes : 1);
}

void mb_free(void *pointer) {
    if (pointer)
        hook.allocate(hook.user, pointer, 0);
}

char *mb_strdup(const char *text) {
    size_t n = strlen(text) + 1;
    char *copy = mb_malloc(n);
    if (copy)
        memcpy(copy, text, n);
    return copy;
}

int mb_grow(void **items, size_t *capacity, size_t count, size_t item_bytes) {
    if (count <= *capacity)
        return 0;
    size_t wanted = *capacity < 8 ? 8 : *capacity;
    while (wanted < count) {
        if (wanted > SIZE_MAX / 2)
            return -1;
        wanted *= 2;
    }
    if (wanted > SIZE_MAX / item_bytes)
        return -1;
    void *grown = mb_realloc(*items, wanted * item_bytes);
    if (!grown)
        return -1;
    *items = grown;
    *capacity = wanted;
    return 0;
}

/* The hook knows only malloc's alignment. So the block's true start is kept below the aligned address. */
enum { ALIGNMENT = 64 };

void *mb_malloc_aligned(size_t n_bytes) {
    if (n_bytes > SIZE_MAX - ALIGNMENT - sizeof(void *))
        return NULL;
    char *block = mb_malloc(n_bytes + ALIGNMENT + sizeof(void *));
    if (!block)
        return NULL;
    uintptr_t start = (uintptr_t)block + sizeof(void *);
    char *aligned = block + sizeof(void *) + (ALIGNMENT - start % ALIGNMENT) % ALIGNMENT;
    memcpy(aligned - sizeof(void *), &block, sizeof block);
    return aligned;
}

void mb_free_aligned(void *pointer) {
    if (!pointer)
        return;
    void *block;
    memcpy(&block, (char *)pointer - sizeof block, sizeof block);
    mb_free(block);
}
