#include "support/fake_device.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static fake_device *self(mb_device *device) {
    fake_device *fake = (fake_device *)(void *)device;
    assert_true(pthread_equal(fake->owner, pthread_self()));
    return fake;
}

static mb_status fake_allocate(mb_device *device, size_t n_bytes, void **pointer) {
    self(device)->n_allocations++;
    *pointer = aligned_alloc(256, (n_bytes + 255) / 256 * 256);
    assert_non_null(*pointer);
    memset(*pointer, 0xAB, n_bytes);
    return MB_OK;
}

static void fake_free(mb_device *device, void *pointer) {
    self(device)->n_allocations--;
    free(pointer);
}

static mb_status fake_upload(mb_device *device, void *to, const void *from, size_t n_bytes,
                             mb_stream stream) {
    fake_device *fake = self(device);
    assert_ptr_equal(stream, fake);
    if (fake->uploads_before_failure == 0)
        return MB_ERR_DEVICE;
    if (fake->uploads_before_failure > 0)
        fake->uploads_before_failure--;
    assert_true(fake->n_pending < 64);
    fake->pending[fake->n_pending].to = to;
    fake->pending[fake->n_pending].from = from;
    fake->pending[fake->n_pending++].n_bytes = n_bytes;
    return MB_OK;
}

static mb_status fake_fill(mb_device *device, void *to, size_t n_bytes, const void *block, size_t block_bytes,
                           mb_stream stream) {
    assert_ptr_equal(stream, self(device));
    for (size_t at = 0; at < n_bytes; at += block_bytes)
        memcpy((char *)to + at, block, n_bytes - at < block_bytes ? n_bytes - at : block_bytes);
    return MB_OK;
}

static mb_status fake_stream_open(mb_device *device, mb_stream *stream) {
    fake_device *fake = self(device);
    fake->n_streams++;
    *stream = fake;
    return MB_OK;
}

static void fake_stream_close(mb_device *device, mb_stream stream) {
    fake_device *fake = self(device);
    assert_ptr_equal(stream, fake);
    assert_int_equal(fake->n_pending, 0);
    fake->n_streams--;
}

static mb_status fake_synchronize(mb_device *device, mb_stream stream) {
    fake_device *fake = self(device);
    assert_ptr_equal(stream, fake);
    for (int i = 0; i < fake->n_pending; i++)
        memcpy(fake->pending[i].to, fake->pending[i].from, fake->pending[i].n_bytes);
    fake->n_pending = 0;
    return MB_OK;
}

static mb_status fake_memory(mb_device *device, uint64_t *total_bytes, uint64_t *free_bytes) {
    *total_bytes = UINT64_C(64) << 30;
    *free_bytes = self(device)->free_bytes;
    return MB_OK;
}

fake_device fake_device_make(int host_memory) {
    return (fake_device){.device = {.name = "fake",
                                    .host_memory = host_memory,
                                    .allocate = fake_allocate,
                                    .free = fake_free,
                                    .allocate_pinned = fake_allocate,
                                    .free_pinned = fake_free,
                                    .stream_open = fake_stream_open,
                                    .stream_close = fake_stream_close,
                                    .upload = fake_upload,
                                    .fill = fake_fill,
                                    .synchronize = fake_synchronize,
                                    .memory = fake_memory},
                         .free_bytes = UINT64_C(32) << 30,
                         .uploads_before_failure = -1,
                         .owner = pthread_self()};
}
