#include "model/trace.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "base/log.h"
#include "ops/common/dtype.h"

static atomic_int step_number, failure_reported;

static const char *directory; /* NULL: tracing is off */
static pthread_once_t directory_once = PTHREAD_ONCE_INIT;

static void read_environment(void) {
    const char *value = getenv("MOEBIUS_TRACE");
    directory = value && value[0] ? value : NULL;
}

int mb_trace_is_on(void) {
    pthread_once(&directory_once, read_environment);
    return directory != NULL;
}

void mb_trace_step(void) {
    pthread_once(&directory_once, read_environment);
    atomic_fetch_add(&step_number, 1);
}

/* NumPy's format, version 1.0: magic, length of a padded header, the header, the data. */
static int write_npy(FILE *file, const float *values, int64_t rows, int64_t cols) {
    char dictionary[128], header[128];
    int n = snprintf(dictionary, sizeof dictionary,
                     "{'descr': '<f4', 'fortran_order': False, 'shape': (%lld, %lld), }", (long long)rows,
                     (long long)cols);
    const int prefix = 10, total = 128;
    memset(header, ' ', sizeof header);
    memcpy(header, "\x93NUMPY\x01\x00", 8);
    header[8] = (char)(total - prefix);
    header[9] = 0;
    memcpy(header + prefix, dictionary, (size_t)n);
    header[total - 1] = '\n';
    size_t count = (size_t)(rows * cols);
    return fwrite(header, 1, sizeof header, file) == sizeof header &&
           fwrite(values, sizeof(float), count, file) == count;
}

void mb_trace(mb_device *device, mb_stream stream, int layer, const char *name, const void *data,
              mb_dtype dtype, int64_t rows, int64_t cols) {
    if (!directory)
        return;
    char path[4096];
    if (layer >= 0)
        snprintf(path, sizeof path, "%s/%06d-%02d-%s.npy", directory, atomic_load(&step_number), layer, name);
    else
        snprintf(path, sizeof path, "%s/%06d-%s.npy", directory, atomic_load(&step_number), name);

    size_t count = (size_t)(rows * cols);
    void *raw = mb_malloc_array(count, mb_dtype_bytes(dtype));
    float *values = mb_malloc_array(count, sizeof(float));
    FILE *file = NULL;
    int written = 0;
    if (raw && values &&
        device->download(device, raw, data, count * mb_dtype_bytes(dtype), stream) == MB_OK &&
        device->synchronize(device, stream) == MB_OK && (file = fopen(path, "wb"))) {
        mb_load_f32(dtype, raw, 0, (int64_t)count, values);
        written = write_npy(file, values, rows, cols);
    }
    if (file && fclose(file) != 0)
        written = 0;
    if (!written && !atomic_exchange(&failure_reported, 1)) /* once: the next would say the same */
        mb_log(MB_LOG_WARN, "trace: %s could not be written; is MOEBIUS_TRACE a directory?", path);
    mb_free(raw);
    mb_free(values);
}
