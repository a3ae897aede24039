/* Safetensors headers that are legal, and the cost of large ones. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "model/weights/safetensors.h"

static void parse(const char *header, uint64_t data_bytes, mb_safetensors *file) {
    size_t n = strlen(header);
    if (mb_safetensors_parse("file", header, n, 8 + n + data_bytes, file) != MB_OK)
        fail_msg("%s\n%s", header, mb_last_error());
}

static void test_tensors(void **state) {
    (void)state;
    mb_safetensors file;
    const char *header = "{\"__metadata__\":{\"format\":\"pt\",\"note\":\"\xC3\xA4\"},"
                         "\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[4,16]},"
                         "\"a \xE2\x82\xAC\":{\"data_offsets\":[0,4],\"shape\":[1],\"dtype\":\"F32\"}}  ";
    parse(header, 16, &file);
    assert_int_equal(file.n_tensors, 2);
    const mb_tensor *a = &file.tensors[0], *b = &file.tensors[1];
    assert_string_equal(a->name, "a \xE2\x82\xAC");
    assert_int_equal(a->dtype, MB_F32);
    assert_int_equal(a->offset, 8 + strlen(header));
    assert_int_equal(a->n_bytes, 4);
    assert_string_equal(b->name, "b");
    assert_int_equal(b->dtype, MB_BF16);
    assert_true(b->is_float);
    assert_string_equal(b->dtype_name, "BF16");
    assert_int_equal(b->rank, 2);
    assert_int_equal(b->shape[0], 2);
    assert_int_equal(b->shape[1], 3);
    assert_int_equal(b->offset, a->offset + 4);
    assert_int_equal(b->n_bytes, 12);
    char shape[32];
    assert_string_equal(mb_tensor_shape(shape, sizeof shape, b), "[2, 3]");
    mb_safetensors_free(&file);
    assert_null(file.tensors);
}

static void test_empty(void **state) {
    (void)state;
    mb_safetensors file;
    parse("{}", 0, &file);
    assert_int_equal(file.n_tensors, 0);
    mb_safetensors_free(&file);
    parse("{\"__metadata__\":{}}", 0, &file);
    assert_int_equal(file.n_tensors, 0);
    mb_safetensors_free(&file);
    parse("{\"__metadata__\":null}", 0, &file); /* the safetensors library reads it as none */
    assert_int_equal(file.n_tensors, 0);
    mb_safetensors_free(&file);
}

/* Scalars have rank 0 and one element; a dimension of 0 makes a tensor of no bytes, anywhere in the file. */
static void test_scalars_and_empty_tensors(void **state) {
    (void)state;
    mb_safetensors file;
    parse("{\"z\":{\"dtype\":\"F32\",\"shape\":[0,7],\"data_offsets\":[8,8]},"
          "\"y\":{\"dtype\":\"F64\",\"shape\":[],\"data_offsets\":[0,8]},"
          "\"x\":{\"dtype\":\"F4\",\"shape\":[0],\"data_offsets\":[0,0]},"
          "\"w\":{\"dtype\":\"F32\",\"shape\":[4611686018427387904,0],\"data_offsets\":[8,8]},"
          "\"v\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,2],\"data_offsets\":[8,10]}}",
          10, &file);
    assert_int_equal(file.n_tensors, 5);
    assert_string_equal(file.tensors[0].name, "x");
    assert_string_equal(file.tensors[1].name, "y");
    assert_int_equal(file.tensors[1].rank, 0);
    assert_int_equal(file.tensors[1].is_float, 0);
    assert_string_equal(file.tensors[4].name, "v");
    assert_int_equal(file.tensors[4].rank, 6);
    char shape[32];
    assert_string_equal(mb_tensor_shape(shape, sizeof shape, &file.tensors[4]), "[1, 1, 1, 1, ...]");
    assert_string_equal(mb_tensor_shape(shape, sizeof shape, &file.tensors[1]), "[]");
    mb_safetensors_free(&file);
}

static void test_every_dtype(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int bits; /* of one element */
        int ours;
    } dtypes[] = {{"BOOL", 8, 0}, {"F4", 4, 0},      {"F6_E2M3", 6, 0}, {"F6_E3M2", 6, 0}, {"U8", 8, 0},
                  {"I8", 8, 0},   {"F8_E5M2", 8, 0}, {"F8_E4M3", 8, 1}, {"F8_E8M0", 8, 1}, {"I16", 16, 0},
                  {"U16", 16, 0}, {"F16", 16, 1},    {"BF16", 16, 1},   {"I32", 32, 0},    {"U32", 32, 0},
                  {"F32", 32, 1}, {"C64", 64, 0},    {"F64", 64, 0},    {"I64", 64, 0},    {"U64", 64, 0}};
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        char header[256];
        mb_safetensors file;
        int n_bytes = dtypes[i].bits; /* 8 elements */
        snprintf(header, sizeof header, "{\"a\":{\"dtype\":\"%s\",\"shape\":[8],\"data_offsets\":[0,%d]}}",
                 dtypes[i].name, n_bytes);
        parse(header, (uint64_t)n_bytes, &file);
        assert_int_equal(file.tensors[0].is_float, dtypes[i].ours);
        if (dtypes[i].ours)
            assert_int_equal(mb_dtype_bytes(file.tensors[0].dtype) * 8, (size_t)dtypes[i].bits);
        mb_safetensors_free(&file);
    }
}

/* A header of n one-byte tensors in an order that offsets do not follow; free() it. */
static char *many_tensors(size_t n) {
    char *text;
    size_t n_bytes;
    FILE *f = open_memstream(&text, &n_bytes);
    assert_non_null(f);
    for (size_t i = 0; i < n; i++) {
        size_t at = (i * 7919 + 13) % n; /* 7919 is prime and divides no n used here */
        fprintf(f,
                "%c\"model.layers.%zu.weight\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[%zu,%zu]}",
                i ? ',' : '{', at, at, at + 1);
    }
    fprintf(f, "}");
    assert_int_equal(fclose(f), 0);
    return text;
}

static double seconds_to_parse(size_t n_tensors) {
    char *header = many_tensors(n_tensors);
    struct timespec start, end;
    mb_safetensors file;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &start);
    parse(header, n_tensors, &file);
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &end);
    assert_int_equal(file.n_tensors, n_tensors);
    for (size_t i = 1; i < n_tensors; i++)
        assert_true(file.tensors[i].offset == file.tensors[i - 1].offset + 1);
    mb_safetensors_free(&file);
    free(header);
    return (double)(end.tv_sec - start.tv_sec) + 1e-9 * (double)(end.tv_nsec - start.tv_nsec);
}

/* Quadratic work would take 16 times as long for 4 times the tensors, and minutes for 100 000. */
static void test_many_tensors(void **state) {
    (void)state;
    double few = seconds_to_parse(25000), many = seconds_to_parse(100000);
    print_message("25 000 tensors: %.3f s, 100 000: %.3f s\n", few, many);
    assert_true(many < 10 * few + 0.1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_tensors),
        cmocka_unit_test(test_empty),
        cmocka_unit_test(test_scalars_and_empty_tensors),
        cmocka_unit_test(test_every_dtype),
        cmocka_unit_test(test_many_tensors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
