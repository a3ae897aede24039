/* Weights and their files: what is mapped, what is copied, what is only measured, and
 * when there is no room. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "support/check_weights.h"
#include "support/fake_device.h"

/* A tensor of one byte in front: nothing behind it is aligned, so nothing with larger elements is mapped. */
static void test_unaligned_tensors_are_copied(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    tiny_tensors first = {0}, tensors;
    tiny_tensors_add(&first, "odd", "U8", 1, (int64_t[]){1});
    tiny_checkpoint_tensors(&options, &tensors);
    for (size_t i = 0; i < tensors.count; i++) {
        const tiny_tensor *tensor = &tensors.items[i];
        memcpy(tiny_tensors_add(&first, tensor->name, tensor->dtype, tensor->rank, tensor->shape)->data,
               tensor->data, tensor->n_bytes);
    }
    char directory[TINY_PATH];
    tiny_directory_make(directory);
    tiny_checkpoint_write_tensors(&options, &first, directory);
    fake_device fake = fake_device_make(1);
    mb_config config;
    mb_weights w;
    tiny_config_parse(&options, &config);
    assert_int_equal(
        mb_weights_load(directory, &config, &fake.device, (mb_weight_types){0}, 1, NULL, NULL, &w), MB_OK);
    assert_int_equal(w.n_maps, 0);
    assert_int_equal((uintptr_t)w.lm_head.data % 256, 0);
    check_rows(&tensors, "lm_head.weight", &w.lm_head, 0, 0, options.vocab);
    check_layer(&options, &tensors, 1, 1, &w.layers[1]);
    mb_weights_free(&w);
    tiny_tensors_free(&first);
    tiny_tensors_free(&tensors);
    tiny_directory_remove(directory);
}

/* A mapped weight is the file: what another program writes there shows. */
static void test_mapped_weights_are_the_file(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    char directory[TINY_PATH], path[TINY_PATH + 64];
    tiny_directory_make(directory);
    tiny_checkpoint_write(&options, directory);
    fake_device fake = fake_device_make(1);
    mb_config config;
    mb_weights w;
    tiny_config_parse(&options, &config);
    assert_int_equal(
        mb_weights_load(directory, &config, &fake.device, (mb_weight_types){0}, 1, NULL, NULL, &w), MB_OK);
    assert_int_equal(w.n_maps, 1);
    float before = *(const float *)w.embedding.data, after = before + 1;
    mb_checkpoint checkpoint;
    assert_int_equal(mb_checkpoint_open(directory, &checkpoint), MB_OK);
    const mb_tensor *tensor = mb_checkpoint_find(&checkpoint, "model.embed_tokens.weight");
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    int fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, &after, sizeof after, (off_t)tensor->offset), sizeof after);
    close(fd);
    assert_true(*(const volatile float *)w.embedding.data == after);
    mb_checkpoint_close(&checkpoint);
    mb_weights_free(&w);
    tiny_directory_remove(directory);
}

/* A file that becomes shorter between its header and its map is refused while nobody reads it. */
static void test_file_that_shrinks_is_not_mapped(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    char directory[TINY_PATH], path[TINY_PATH + 64], byte;
    tiny_directory_make(directory);
    tiny_checkpoint_write(&options, directory);
    mb_checkpoint checkpoint;
    assert_int_equal(mb_checkpoint_open(directory, &checkpoint), MB_OK);
    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    assert_int_equal(truncate(path, (off_t)checkpoint.shards[0].n_bytes - 1), 0);
    assert_int_equal(mb_checkpoint_map(&checkpoint), MB_ERR_IO);
    assert_non_null(strstr(mb_last_error(), "size changed"));
    const mb_tensor *last = mb_checkpoint_find(&checkpoint, "lm_head.weight");
    assert_int_equal(mb_checkpoint_read(&checkpoint, last, last->n_bytes - 1, &byte, 1), MB_ERR_IO);
    mb_checkpoint_close(&checkpoint);
    tiny_directory_remove(directory);
}

static void test_too_little_memory(void **state) {
    (void)state;
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    options.vocab = 40000;
    char directory[TINY_PATH];
    tiny_directory_make(directory);
    tiny_checkpoint_write(&options, directory);
    for (int host_memory = 0; host_memory < 2; host_memory++) {
        fake_device fake = fake_device_make(host_memory);
        mb_config config;
        mb_weights w;
        tiny_config_parse(&options, &config);
        fake.free_bytes = 60000; /* on the CPU the embedding and lm_head are mapped, the rest is some 80 kB */
        assert_int_equal(
            mb_weights_load(directory, &config, &fake.device, (mb_weight_types){0}, 1, NULL, NULL, &w),
            MB_ERR_MEMORY);
        assert_int_equal(fake.n_allocations, 0);
        const char *const words[] = {directory,
                                     "the weights need ",
                                     " GB of memory",
                                     "68.7 GB here (fake)",
                                     "6e-05 GB are free",
                                     host_memory ? "more memory" : "GPU with more memory",
                                     "fp8"};
        for (size_t i = 0; i < sizeof words / sizeof *words; i++)
            if (!strstr(mb_last_error(), words[i]))
                fail_msg("\"%s\" does not say \"%s\"", mb_last_error(), words[i]);
        fake.free_bytes = 1000000; /* enough for what is copied on the CPU */
        mb_status status =
            mb_weights_load(directory, &config, &fake.device, (mb_weight_types){0}, 1, NULL, NULL, &w);
        assert_int_equal(status, host_memory ? MB_OK : MB_ERR_MEMORY);
        mb_weights_free(&w);
    }
    tiny_directory_remove(directory);
}

/* Headers alone tell the same as loading. */
static void test_measure(void **state) {
    (void)state;
    static const char *const dtypes[] = {"BF16", "F8_E4M3"};
    for (int i = 0; i < 4; i++) {
        tiny_checkpoint options;
        tiny_checkpoint_init(&options);
        options.dtype = dtypes[i % 2];
        options.tied = i / 2;
        char directory[TINY_PATH];
        tiny_directory_make(directory);
        tiny_checkpoint_write(&options, directory);
        fake_device fake = fake_device_make(0);
        mb_config config;
        mb_weights loaded, measured;
        tiny_config_parse(&options, &config);
        assert_int_equal(
            mb_weights_load(directory, &config, &fake.device, (mb_weight_types){0}, 1, NULL, NULL, &loaded),
            MB_OK);
        assert_int_equal(mb_weights_measure(directory, &config, (mb_weight_types){0}, &measured), MB_OK);
        assert_int_equal(measured.n_bytes, loaded.n_bytes);
        assert_int_equal(measured.n_parameters, loaded.n_parameters);
        assert_int_equal(measured.n_active_parameters, loaded.n_active_parameters);
        assert_string_equal(measured.dtype_name, loaded.dtype_name);
        assert_int_equal(measured.is_tied, options.tied);
        assert_null(measured.memory);
        assert_null(measured.layers[0].qkv.data);
        assert_null(measured.lm_head.data);
        mb_weights_free(&loaded);
        mb_weights_free(&measured);
        tiny_directory_remove(directory);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_unaligned_tensors_are_copied),
        cmocka_unit_test(test_mapped_weights_are_the_file),
        cmocka_unit_test(test_file_that_shrinks_is_not_mapped),
        cmocka_unit_test(test_too_little_memory),
        cmocka_unit_test(test_measure),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
