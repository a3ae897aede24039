/*
 * alloc.h - every host allocation of the library goes through here.
 *
 * One hook (public: mb_set_allocator) replaces the system allocator for the whole process; the tests use it
 * to make the k-th allocation fail. Libraries that take an allocator (jansson, pcre2) are given this one.
 */
#ifndef MB_BASE_ALLOC_H
#define MB_BASE_ALLOC_H

#include <stddef.h>

void *mb_malloc(size_t n_bytes);
void *mb_calloc(size_t count, size_t n_bytes); /* zeroed; NULL when the product overflows */
void *mb_realloc(void *pointer, size_t n_bytes);
void mb_free(void *pointer);
char *mb_strdup(const char *text);

/* count * n_bytes bytes, uninitialised; NULL when the product overflows. */
void *mb_malloc_array(size_t count, size_t n_bytes);

/* Makes room for `count` items of `item_bytes` in *items, doubling *capacity. Returns 0, or -1 when
 * memory ran out; then *items is unchanged. */
int mb_grow(void **items, size_t *capacity, size_t count, size_t item_bytes);

/* 64-byte aligned, for tensors that vector code and direct reads touch; free with mb_free_aligned. */
void *mb_malloc_aligned(size_t n_bytes);
void mb_free_aligned(void *pointer);

#endif
