/* base/alloc.h: the hook sees every call, products that overflow are refused, growth and alignment hold. */
#include "base/alloc.h"

#include "moebius/moebius.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

typedef struct hook_record {
    int n_calls, n_live, fail;
} hook_record;

static void *recording_allocate(void *user, void *pointer, size_t n_bytes) {
    hook_record *record = user;
    record->n_calls++;
    if (n_bytes == 0) {
        record->n_live--;
        free(pointer);
        return NULL;
    }
    if (record->fail)
        return NULL;
    record->n_live += pointer == NULL;
    return realloc(pointer, n_bytes);
}

static int restore_allocator(void **state) {
    (void)state;
    mb_set_allocator(NULL, NULL);
    return 0;
}

static void test_hook_sees_every_call(void **state) {
    (void)state;
    hook_record record = {0};
    mb_set_allocator(recording_allocate, &record);
    void *pointers[] = {mb_malloc(10), mb_malloc(0), mb_calloc(3, 5), mb_malloc_array(7, 9),
                        mb_strdup("text")};
    void *aligned = mb_malloc_aligned(100);
    assert_int_equal(record.n_live, 6);
    pointers[0] = mb_realloc(pointers[0], 1000);
    assert_int_equal(record.n_live, 6);
    assert_int_equal(record.n_calls, 7);
    for (size_t i = 0; i < sizeof pointers / sizeof *pointers; i++) {
        assert_non_null(pointers[i]);
        mb_free(pointers[i]);
    }
    mb_free_aligned(aligned);
    mb_free(NULL);
    mb_free_aligned(NULL);
    assert_int_equal(record.n_live, 0);
    mb_set_allocator(NULL, NULL);
    mb_free(mb_malloc(1));
    assert_int_equal(record.n_calls, 13);
}

static void test_failure_is_null(void **state) {
    (void)state;
    hook_record record = {.fail = 1};
    mb_set_allocator(recording_allocate, &record);
    assert_null(mb_malloc(1));
    assert_null(mb_calloc(1, 1));
    assert_null(mb_malloc_array(1, 1));
    assert_null(mb_malloc_aligned(1));
    assert_null(mb_strdup(""));
    int storage = 5;
    void *items = &storage;
    size_t capacity = 1;
    assert_int_equal(mb_grow(&items, &capacity, 2, sizeof storage), -1);
    assert_ptr_equal(items, &storage);
    assert_int_equal(capacity, 1);
}

static void test_overflowing_products(void **state) {
    (void)state;
    hook_record record = {0};
    mb_set_allocator(recording_allocate, &record);
    assert_null(mb_malloc_array(SIZE_MAX / 2, 3));
    assert_null(mb_malloc_array(3, SIZE_MAX / 2));
    assert_null(mb_calloc(SIZE_MAX, 2));
    assert_null(mb_malloc_aligned(SIZE_MAX));
    assert_null(mb_malloc_aligned(SIZE_MAX - 64));
    void *items = NULL;
    size_t capacity = 0;
    assert_int_equal(mb_grow(&items, &capacity, SIZE_MAX, 1), -1);
    assert_int_equal(mb_grow(&items, &capacity, SIZE_MAX / 4, 16), -1);
    assert_int_equal(record.n_calls, 0); /* refused before the system is asked */
}

static void test_calloc_zeroes(void **state) {
    (void)state;
    static const char zeroes[64];
    for (int i = 0; i < 20; i++) {
        char *dirty = mb_malloc(64);
        memset(dirty, 0x5A, 64);
        mb_free(dirty);
        char *clean = mb_calloc(8, 8);
        assert_memory_equal(clean, zeroes, 64);
        mb_free(clean);
    }
}

static void test_grow_keeps_contents(void **state) {
    (void)state;
    int *items = NULL;
    size_t capacity = 0;
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(mb_grow((void **)&items, &capacity, (size_t)i + 1, sizeof *items), 0);
        items[i] = i * 7;
    }
    assert_in_range(capacity, 1000, 2000);
    for (int i = 0; i < 1000; i++)
        assert_int_equal(items[i], i * 7);
    mb_free(items);
}

static void test_alignment(void **state) {
    (void)state;
    for (size_t n = 0; n < 300; n++) {
        char *pointer = mb_malloc_aligned(n);
        assert_int_equal((uintptr_t)pointer % 64, 0);
        memset(pointer, 0xA5, n);
        mb_free_aligned(pointer);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_hook_sees_every_call, restore_allocator),
        cmocka_unit_test_teardown(test_failure_is_null, restore_allocator),
        cmocka_unit_test_teardown(test_overflowing_products, restore_allocator),
        cmocka_unit_test(test_calloc_zeroes),
        cmocka_unit_test(test_grow_keeps_contents),
        cmocka_unit_test(test_alignment),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
