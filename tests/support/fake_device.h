/*
 * fake_device.h - a device that is memory only, for tests of what loads onto devices.
 *
 * Uploads happen when the device is synchronized, as late as a GPU's may: a buffer that is reused too early
 * shows. Fresh memory is poisoned. Calls from another thread than the maker's fail the test.
 */
#ifndef TESTS_SUPPORT_FAKE_DEVICE_H
#define TESTS_SUPPORT_FAKE_DEVICE_H

#include <pthread.h>

#include "device/device.h"

typedef struct fake_device {
    mb_device device;
    struct {
        void *to;
        const void *from;
        size_t n_bytes;
    } pending[64];
    int n_pending, n_allocations, n_streams;
    int uploads_before_failure; /* -1: never fails */
    uint64_t free_bytes;        /* what its memory says */
    pthread_t owner;            /* the only thread that may call */
} fake_device;

/* host_memory 0: everything must come through uploads. It has no operators. */
fake_device fake_device_make(int host_memory);

#endif
