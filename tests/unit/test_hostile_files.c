/* Broken safetensors files, indexes and directories: each case must give its own status and sentence. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/weights/checkpoint.h"
#include "support/tiny_checkpoint.h"

/* ---- One file ----------------------------------------------------------------------------------------- */

typedef struct header_case {
    const char *header;
    size_t data_bytes; /* that follow the header */
    const char *sentence;
} header_case;

#define ENTRY(name, dtype, shape, offsets) \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":[" shape "],\"data_offsets\":[" offsets "]}"
#define TENSOR(dtype, shape, offsets) "{" ENTRY("a", dtype, shape, offsets) "}"
#define BAD_DIMENSION "has a dimension that is not an integer >= 0"
#define TOO_LARGE "has a shape whose product does not fit in 64 bits"
#define NO_OFFSETS "has no \"data_offsets\" of two integers"

/* All of them are MB_ERR_FORMAT. */
static const header_case header_cases[] = {
    /* not a header */
    {"", 0, "does not begin with '{'"},
    {" {}", 0, "does not begin with '{'"},
    {"[]", 0, "does not begin with '{'"},
    {"\xEF\xBB\xBF{}", 0, "does not begin with '{'"},
    {"{", 0, "not valid JSON"},
    {"{}x", 0, "not valid JSON"},
    {"{'a': 1}", 0, "not valid JSON"},
    {"{\"\xC3\x28\": 1}", 0, "unable to decode byte 0xc3"},
    {"{\"\xED\xA0\x80\": 1}", 0, "unable to decode byte 0xed"},
    {"{\"a\\u0000\": 1}", 0, "\\u0000"},
    {"{\"__metadata__\":{\"a\":{\"b\":1}}}", 0, "must hold strings only, but \"a\" does not"},
    {"{\"__metadata__\":{\"step\":3}}", 0, "must hold strings only, but \"step\" does not"},
    {"{\"__metadata__\":[\"a\"]}", 0, "\"__metadata__\" must be an object"},
    {"{\"__metadata__\":{\"a\":\"b\",\"a\":\"c\"}}", 0, "duplicate object key"},
    /* not an entry */
    {"{\"a\":17}", 0, "tensor \"a\" is not described by an object"},
    {"{\"a\":[]}", 0, "tensor \"a\" is not described by an object"},
    {"{\"a\":null}", 0, "tensor \"a\" is not described by an object"},
    {"{\"a\":{}}", 0, "tensor \"a\" has no \"dtype\" string"},
    {"{\"a\":{\"dtype\":4,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "has no \"dtype\" string"},
    {"{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "has no \"shape\" array"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":1,\"data_offsets\":[0,4]}}", 4, "has no \"shape\" array"},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, NO_OFFSETS},
    {"{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"shape\":[2],\"data_offsets\":[0,4]}}", 4,
     "duplicate object key"},
    {"{" ENTRY("a", "F32", "1", "0,4") "," ENTRY("a", "F32", "1", "4,8") "}", 8, "duplicate object key"},
    /* dtypes */
    {TENSOR("F33", "1", "0,4"), 4, "has the dtype \"F33\", which safetensors does not know"},
    {TENSOR("f32", "1", "0,4"), 4, "has the dtype \"f32\""},
    {TENSOR("", "1", "0,4"), 4, "has the dtype \"\""},
    {TENSOR("F4", "3", "0,2"), 2, "does not end on a whole byte"},
    {TENSOR("F6_E2M3", "1", "0,1"), 1, "does not end on a whole byte"},
    {TENSOR("BF16", "4", "0,16"), 16, "has 16 bytes by its \"data_offsets\", but [4] of BF16 is 8"},
    {TENSOR("F8_E4M3", "4", "0,16"), 16, "but [4] of F8_E4M3 is 4"},
    {TENSOR("F64", "2", "0,8"), 8, "but [2] of F64 is 16"},
    /* shapes */
    {TENSOR("F32", "-1", "0,4"), 4, BAD_DIMENSION},
    {TENSOR("F32", "1.5", "0,6"), 6, BAD_DIMENSION},
    {TENSOR("F32", "1.0", "0,4"), 4, BAD_DIMENSION},
    {TENSOR("F32", "\"1\"", "0,4"), 4, BAD_DIMENSION},
    {TENSOR("F32", "[1]", "0,4"), 4, BAD_DIMENSION},
    {TENSOR("F32", "null", "0,4"), 4, BAD_DIMENSION},
    {TENSOR("F32", "4294967296,4294967296", "0,0"), 0, TOO_LARGE},
    {TENSOR("F32", "9223372036854775807,9223372036854775807,0", "0,0"), 0, TOO_LARGE},
    {TENSOR("F32", "4611686018427387904", "0,0"), 0, TOO_LARGE},
    {TENSOR("F32", "4294967296,4294967296,4", "0,0"), 0, TOO_LARGE},
    {TENSOR("F32", "9223372036854775808", "0,0"), 0, BAD_DIMENSION},
    {TENSOR("F32", "18446744073709551617", "0,4"), 4, BAD_DIMENSION},
    {TENSOR("F32", "2,3", "0,20"), 20, "but [2, 3] of F32 is 24"},
    {TENSOR("F32", "1,1,1,1,2", "0,4"), 4, "but [1, 1, 1, 1, ...] of F32 is 8"},
    {TENSOR("F32", "0", "0,4"), 4, "but [0] of F32 is 0"},
    {TENSOR("F32", "", "0,0"), 0, "but [] of F32 is 4"},
    /* offsets */
    {TENSOR("F32", "1", ""), 4, NO_OFFSETS},
    {TENSOR("F32", "1", "0"), 4, NO_OFFSETS},
    {TENSOR("F32", "1", "0,4,8"), 4, NO_OFFSETS},
    {TENSOR("F32", "1", "0,4.0"), 4, NO_OFFSETS},
    {TENSOR("F32", "1", "-4,0"), 4, "negative or end before they start"},
    {TENSOR("F32", "1", "4,0"), 4, "negative or end before they start"},
    {TENSOR("F32", "0", "9223372036854775807,9223372036854775807"), 0, "leave holes"},
    {TENSOR("F32", "1", "9223372036854775803,9223372036854775807"), 4, "leave holes"},
    {TENSOR("U8", "9223372036854775807", "0,9223372036854775807"), 0, TOO_LARGE},
    {TENSOR("U8", "1152921504606846976", "0,1152921504606846976"), 0, "ends behind the end of the file"},
    {TENSOR("F32", "1", "4,8"), 8, "leave holes"},
    {TENSOR("F32", "1", "0,4"), 3, "ends behind the end of the file"},
    {TENSOR("F32", "1", "0,4"), 0, "ends behind the end of the file"},
    {TENSOR("F32", "1", "0,4"), 5, "1 bytes follow the last tensor"},
    {"{}", 1, "1 bytes follow the last tensor"},
    {"{" ENTRY("a", "F32", "2", "0,8") "," ENTRY("b", "F32", "2", "4,12") "}", 12, "must not overlap"},
    {"{" ENTRY("a", "F32", "2", "0,8") "," ENTRY("b", "F32", "2", "0,8") "}", 8, "must not overlap"},
    {"{" ENTRY("a", "F32", "2", "0,8") "," ENTRY("b", "F32", "2", "12,20") "}", 20, "leave holes"},
    {"{" ENTRY("a", "F32", "2", "0,8") "," ENTRY("b", "U8", "0", "4,4") "}", 8, "must not overlap"},
    {"{" ENTRY("b", "F32", "2", "8,16") "," ENTRY("a", "F32", "3", "0,12") "}", 16, "must not overlap"},
};

static void check(mb_status status, const char *what, mb_status wanted, const char *sentence) {
    if (status != wanted || !strstr(mb_last_error(), sentence))
        fail_msg("%s\n  gave   %s: %s\n  wanted %s: ...%s...", what, mb_status_name(status), mb_last_error(),
                 mb_status_name(wanted), sentence);
}

/* Opens a directory that must be refused. */
static void expect(const char *directory, const char *what, mb_status wanted, const char *sentence) {
    mb_checkpoint checkpoint;
    mb_status status = mb_checkpoint_open(directory, &checkpoint);
    check(status, what, wanted, sentence);
    assert_null(checkpoint.tensors); /* nothing is left to close */
    if (!strstr(mb_last_error(), directory))
        fail_msg("%s: the sentence does not say where: %s", what, mb_last_error());
}

static void write_file(const char *directory, const char *name, uint64_t length, const char *header,
                       size_t header_bytes, size_t data_bytes) {
    size_t n = 8 + header_bytes + data_bytes;
    char *bytes = calloc(n, 1);
    assert_non_null(bytes);
    memcpy(bytes, &length, 8);
    memcpy(bytes + 8, header, header_bytes);
    tiny_file_write(directory, name, bytes, n);
    free(bytes);
}

static void test_headers(void **state) {
    const char *directory = *state;
    for (size_t i = 0; i < sizeof header_cases / sizeof *header_cases; i++) {
        const header_case *c = &header_cases[i];
        size_t n = strlen(c->header);
        write_file(directory, "model.safetensors", n, c->header, n, c->data_bytes);
        expect(directory, c->header, MB_ERR_FORMAT, c->sentence);
    }
    print_message("%zu broken headers\n", sizeof header_cases / sizeof *header_cases);
}

static void test_header_lengths(void **state) {
    const char *directory = *state;
    static const struct {
        uint64_t length;
        const char *sentence;
    } cases[] = {
        {3, "the header's length is 3 bytes but the file has only"}, /* the file has 8 + 2 */
        {100000000, "the header's length is 100000000 bytes but the file has only 10"},
        {100000001, "more than the format's limit of 100000000"},
        {UINT64_C(1) << 32, "more than the format's limit"},
        {UINT64_MAX, "the header's length is 18446744073709551615 bytes, more than"},
        {UINT64_MAX - 7, "more than the format's limit"}, /* 8 + n wraps to 0 */
        {1, "not valid JSON"},
        {0, "does not begin with '{'"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        write_file(directory, "model.safetensors", cases[i].length, "{}", 2, 0);
        expect(directory, "header length", MB_ERR_FORMAT, cases[i].sentence);
    }
    static const char zeros[8] = {0};
    for (size_t n = 0; n < 8; n++) {
        tiny_file_write(directory, "model.safetensors", zeros, n);
        expect(directory, "short file", MB_ERR_FORMAT, "too short for a safetensors file");
    }
    char deep[4096];
    memset(deep, '[', sizeof deep);
    memcpy(deep, "{\"a\":", 5);
    write_file(directory, "model.safetensors", sizeof deep, deep, sizeof deep, 0);
    expect(directory, "deep header", MB_ERR_FORMAT, "nested deeper than 100");
}

/* A valid file that is cut off at any byte, or has any more, is refused. */
static void test_every_truncation(void **state) {
    const char *directory = *state;
    tiny_tensors tensors = {0};
    tiny_tensors_add(&tensors, "a", "F32", 2, (int64_t[]){2, 3});
    tiny_tensors_add(&tensors, "b", "BF16", 1, (int64_t[]){5});
    tiny_safetensors_write(&tensors, 0, 2, directory, "model.safetensors");
    tiny_tensors_free(&tensors);
    size_t n;
    char *bytes = tiny_file_read(directory, "model.safetensors", &n);
    for (size_t k = 0; k < n; k++) {
        tiny_file_write(directory, "model.safetensors", bytes, k);
        expect(directory, "truncated file", MB_ERR_FORMAT, "download it again");
    }
    tiny_file_write(directory, "model.safetensors", bytes, n + 1); /* the zero behind it */
    expect(directory, "longer file", MB_ERR_FORMAT, "1 bytes follow the last tensor");
    free(bytes);
}

/* ---- The index ---------------------------------------------------------------------------------------- */

#define INDEX(map) "{\"metadata\": {\"total_size\": 8}, \"weight_map\": {" map "}}"
#define NOT_PLAIN "shards must be plain file names"

/* Beside each index there are one.safetensors with "a", "b" and two.safetensors with "c". */
static const struct index_case {
    const char *text;
    mb_status status;
    const char *sentence;
} index_cases[] = {
    {"", MB_ERR_FORMAT, "model.safetensors.index.json: not valid JSON"},
    {"[]", MB_ERR_FORMAT, "has no \"weight_map\" object"},
    {"{}", MB_ERR_FORMAT, "has no \"weight_map\" object"},
    {"{\"weight_map\": []}", MB_ERR_FORMAT, "has no \"weight_map\" object"},
    {"{\"weight_map\": {}}", MB_ERR_FORMAT, "has no \"weight_map\" object"},
    {INDEX("\"a\": 1"), MB_ERR_FORMAT, "\"weight_map\" gives no file name for \"a\""},
    {INDEX("\"a\": null"), MB_ERR_FORMAT, "\"weight_map\" gives no file name for \"a\""},
    {INDEX("\"a\": \"../one.safetensors\""), MB_ERR_FORMAT, NOT_PLAIN},
    {INDEX("\"a\": \"/etc/one.safetensors\""), MB_ERR_FORMAT, NOT_PLAIN},
    {INDEX("\"a\": \"sub/one.safetensors\""), MB_ERR_FORMAT, NOT_PLAIN},
    {INDEX("\"a\": \"sub\\\\one.safetensors\""), MB_ERR_FORMAT, NOT_PLAIN},
    {INDEX("\"a\": \"..safetensors\""), MB_ERR_FORMAT, NOT_PLAIN},
    {INDEX("\"a\": \".safetensors\""), MB_ERR_FORMAT, NOT_PLAIN},
    {INDEX("\"a\": \"\""), MB_ERR_FORMAT, NOT_PLAIN},
    {INDEX("\"a\": \"/etc/passwd\""), MB_ERR_FORMAT, "puts \"a\" into \"/etc/passwd\""},
    {INDEX("\"a\": \"one.bin\""), MB_ERR_FORMAT, NOT_PLAIN},
    {INDEX("\"a\": \"one\\n.safetensors\""), MB_ERR_FORMAT, "into \"one?.safetensors\""},
    {INDEX("\"a\": \"one\\u0000.safetensors\""), MB_ERR_FORMAT, "\\u0000"},
    {INDEX("\"a\": \"one.safetensors\", \"b\": \"one.safetensors\", \"c\": \"three.safetensors\""), MB_ERR_IO,
     "three.safetensors: this shard is missing, the index puts tensor \"c\" there"},
    {INDEX("\"a\": \"one.safetensors\", \"b\": \"one.safetensors\", \"c\": \"two.safetensors\", "
           "\"e\": \"again.safetensors\""),
     MB_ERR_FORMAT, "tensor \"c\" is also in"},
};

static void write_shards(const char *directory) {
    static const char *const files[] = {"one.safetensors", "two.safetensors", "again.safetensors"};
    static const size_t first[] = {0, 2, 3}, count[] = {2, 1, 2};
    static const char *const names[] = {"a", "b", "c", "c", "e"};
    tiny_tensors tensors = {0};
    for (int i = 0; i < 5; i++)
        tiny_tensors_add(&tensors, names[i], "F32", 1, (int64_t[]){3});
    for (int i = 0; i < 3; i++)
        tiny_safetensors_write(&tensors, first[i], count[i], directory, files[i]);
    tiny_tensors_free(&tensors);
}

static void test_indexes(void **state) {
    const char *directory = *state;
    write_shards(directory);
    for (size_t i = 0; i < sizeof index_cases / sizeof *index_cases; i++) {
        tiny_text_write(directory, "model.safetensors.index.json", index_cases[i].text);
        expect(directory, index_cases[i].text, index_cases[i].status, index_cases[i].sentence);
    }
    print_message("%zu broken indexes\n", sizeof index_cases / sizeof *index_cases);
}

/* The table's valid neighbour, so that the cases above fail for their own reason. */
static void test_good_index(void **state) {
    const char *directory = *state;
    write_shards(directory);
    tiny_text_write(
        directory, "model.safetensors.index.json",
        INDEX("\"a\": \"one.safetensors\", \"b\": \"one.safetensors\", \"c\": \"two.safetensors\""));
    mb_checkpoint checkpoint;
    assert_int_equal(mb_checkpoint_open(directory, &checkpoint), MB_OK);
    assert_int_equal(checkpoint.n_tensors, 3);
    assert_non_null(mb_checkpoint_find(&checkpoint, "c"));
    assert_null(mb_checkpoint_find(&checkpoint, "d"));
    mb_checkpoint_close(&checkpoint);
}

/* As in transformers the shards count where the index says something else of them. */
static void test_indexes_that_disagree(void **state) {
    const char *directory = *state;
    static const char *const texts[] = {
        INDEX("\"a\": \"one.safetensors\", \"c\": \"two.safetensors\""), /* without b */
        INDEX("\"a\": \"one.safetensors\", \"b\": \"two.safetensors\", \"c\": \"two.safetensors\""),
        INDEX("\"a\": \"one.safetensors\", \"b\": \"one.safetensors\", \"c\": \"two.safetensors\", "
              "\"d\": \"two.safetensors\", \"model.rotary_emb.inv_freq\": \"one.safetensors\""),
        INDEX("\"a\": \"two.safetensors\", \"b\": \"one.safetensors\", \"a\": \"one.safetensors\", "
              "\"c\": \"two.safetensors\""), /* the last one counts */
        "{\"metadata\": {\"total_size\": NaN, \"total_parameters\": 1000000000000000000000}, \"weight_map\": "
        "{\"a\": \"one.safetensors\", \"b\": \"one.safetensors\", \"c\": \"two.safetensors\"}}",
    };
    write_shards(directory);
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        mb_checkpoint checkpoint;
        tiny_text_write(directory, "model.safetensors.index.json", texts[i]);
        if (mb_checkpoint_open(directory, &checkpoint) != MB_OK)
            fail_msg("%s: %s", texts[i], mb_last_error());
        assert_int_equal(checkpoint.n_tensors, 3);
        mb_checkpoint_close(&checkpoint);
    }
}

static void test_lfs_pointers(void **state) {
    const char *directory = *state;
    static const char pointer[] =
        "version https://git-lfs.github.com/spec/v1\n"
        "oid sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\n"
        "size 4000000000\n";
    tiny_text_write(directory, "model.safetensors", pointer);
    expect(
        directory, "LFS pointer", MB_ERR_FORMAT,
        "model.safetensors: this is a Git LFS pointer, the file itself was not fetched; run \"git lfs pull\"");
    tiny_text_write(directory, "model.safetensors.index.json", pointer);
    expect(directory, "LFS pointer", MB_ERR_FORMAT, "index.json: this is a Git LFS pointer");
    tiny_text_write(directory, "model.safetensors.index.json", "version https://git-lfs.github.com/spec");
    expect(directory, "nearly a pointer", MB_ERR_FORMAT, "not valid JSON");
}

/* ---- Directories -------------------------------------------------------------------------------------- */

static void path_of(char path[TINY_PATH + 64], const char *directory, const char *name) {
    snprintf(path, TINY_PATH + 64, "%s/%s", directory, name);
}

static void test_no_directory(void **state) {
    char path[TINY_PATH + 64];
    path_of(path, *state, "nowhere");
    expect(path, "no directory", MB_ERR_IO, "cannot be listed: No such file or directory");
}

static void test_empty_directory(void **state) {
    expect(*state, "empty directory", MB_ERR_NOT_FOUND, "there are no weights");
}

static void test_directory_in_place_of_a_file(void **state) {
    char path[TINY_PATH + 64];
    path_of(path, *state, "model.safetensors");
    assert_int_equal(mkdir(path, 0700), 0);
    expect(*state, "directory", MB_ERR_FORMAT, "model.safetensors: not a regular file");
}

static void test_pipe_in_place_of_a_file(void **state) {
    char path[TINY_PATH + 64];
    path_of(path, *state, "model.safetensors");
    assert_int_equal(mkfifo(path, 0600), 0);
    expect(*state, "named pipe", MB_ERR_FORMAT, "model.safetensors: not a regular file");
}

static void test_pipe_in_place_of_the_index(void **state) {
    char path[TINY_PATH + 64];
    path_of(path, *state, "model.safetensors.index.json");
    assert_int_equal(mkfifo(path, 0600), 0);
    expect(*state, "named pipe", MB_ERR_FORMAT, "model.safetensors.index.json: not a regular file");
}

static void test_dangling_link(void **state) {
    char path[TINY_PATH + 64];
    path_of(path, *state, "model-1.safetensors");
    assert_int_equal(symlink("gone", path), 0);
    expect(*state, "dangling link", MB_ERR_IO,
           "model-1.safetensors: it is a link to a file that is not there");
}

static void test_link_to_a_device(void **state) {
    char path[TINY_PATH + 64];
    path_of(path, *state, "model.safetensors");
    assert_int_equal(symlink("/dev/zero", path), 0);
    expect(*state, "device", MB_ERR_FORMAT, "model.safetensors: not a regular file");
}

static void test_unreadable_file(void **state) {
    if (geteuid() == 0) {
        print_message("SKIP: root may read every file\n");
        skip();
    }
    const char *directory = *state;
    char path[TINY_PATH + 64];
    tiny_text_write(directory, "model.safetensors", "");
    path_of(path, directory, "model.safetensors");
    assert_int_equal(chmod(path, 0), 0);
    expect(directory, "unreadable", MB_ERR_IO, "cannot be opened: Permission denied");
}

static void test_single_file_beside_an_index(void **state) {
    const char *directory = *state;
    write_shards(directory);
    write_file(directory, "model.safetensors", 2, "{}", 2, 0);
    tiny_text_write(
        directory, "model.safetensors.index.json",
        INDEX("\"a\": \"one.safetensors\", \"b\": \"one.safetensors\", \"c\": \"two.safetensors\""));
    expect(directory, "two sets of weights", MB_ERR_FORMAT, "both model.safetensors and an index");
}

static void test_tensor_in_two_files(void **state) {
    write_shards(*state); /* without an index all three files count, and two of them have "c" */
    expect(*state, "tensor in two files", MB_ERR_FORMAT, "tensor \"c\" is also in");
}

static void test_path_too_long(void **state) {
    (void)state;
    char path[8192];
    memset(path, 'd', sizeof path - 1);
    path[sizeof path - 1] = '\0';
    mb_checkpoint checkpoint;
    check(mb_checkpoint_open(path, &checkpoint), "long path", MB_ERR_ARGUMENT, "path too long");
}

static int setup(void **state) {
    *state = malloc(TINY_PATH);
    if (!*state)
        return -1;
    tiny_directory_make(*state);
    return 0;
}

static int teardown(void **state) {
    tiny_directory_remove(*state);
    free(*state);
    return 0;
}

#define TEST(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_headers),
        TEST(test_header_lengths),
        TEST(test_every_truncation),
        TEST(test_indexes),
        TEST(test_good_index),
        TEST(test_indexes_that_disagree),
        TEST(test_lfs_pointers),
        TEST(test_no_directory),
        TEST(test_empty_directory),
        TEST(test_directory_in_place_of_a_file),
        TEST(test_pipe_in_place_of_a_file),
        TEST(test_pipe_in_place_of_the_index),
        TEST(test_dangling_link),
        TEST(test_link_to_a_device),
        TEST(test_unreadable_file),
        TEST(test_single_file_beside_an_index),
        TEST(test_tensor_in_two_files),
        TEST(test_path_too_long),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
