#include "model/weights/weight_read.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "ops/common/dtype.h"

enum { PIECE_BYTES = 8 << 20, MAX_THREADS = 16, MAX_BUFFERS = 2 * MAX_THREADS };

/* What one thread reads at a time: at most PIECE_BYTES of the block. */
typedef struct piece {
    const mb_weight_part *part;
    uint64_t start, end; /* bytes of the tensor; for scales rows of the merged scale */
    uint64_t offset;     /* in the block */
    uint64_t read_bytes; /* of the file, for the progress */
    size_t n_bytes;      /* in the block */
    int buffer;          /* staging buffer that holds it */
} piece;

typedef struct weight_reader {
    const mb_weight_plan *plan;
    const mb_checkpoint *checkpoint;
    char *memory;     /* the block, when the CPU can write it; else NULL */
    char *staging;    /* n_buffers * PIECE_BYTES of pinned memory */
    mb_stream stream; /* of the uploads, when staging */

    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t buffer_free, piece_ready;
    size_t i_part; /* the next piece begins in this part, ... */
    uint64_t next; /* ... at this byte or scale row */
    int free_buffers[MAX_BUFFERS], n_free;
    piece ready[MAX_BUFFERS];
    int n_ready;
    uint64_t done_bytes;
    int n_running, stop;
    mb_status status;
    char error[1024]; /* of the worker that failed: sentences are per thread */
} weight_reader;

/* ---- Pieces ------------------------------------------------------------------------------------------- */

static uint64_t scale_row_bytes(const mb_weight_part *part) {
    return part->tensor->shape[1] * sizeof(float);
}

/* Cuts the next piece off the list of parts. 0: there is none. */
static int next_piece(weight_reader *r, piece *p) {
    const mb_weight_plan *plan = r->plan;
    for (; r->i_part < plan->n_parts; r->i_part++, r->next = 0) {
        const mb_weight_part *part = &plan->parts[r->i_part];
        int is_scale = part->scale_rows > 0;
        uint64_t unit = is_scale ? scale_row_bytes(part) : 1;
        uint64_t end = is_scale ? (uint64_t)part->n_rows : part->tensor->n_bytes;
        uint64_t most = PIECE_BYTES / unit > 0 ? PIECE_BYTES / unit : 1;
        if (r->next >= end)
            continue;
        *p = (piece){.part = part, .start = r->next, .end = end - r->next > most ? r->next + most : end};
        p->offset = part->offset + p->start * unit;
        p->n_bytes = (size_t)((p->end - p->start) * unit);
        p->read_bytes = is_scale ? (p->end == end ? part->tensor->n_bytes : 0) : p->n_bytes;
        r->next = p->end;
        return 1;
    }
    return 0;
}

/* Rows of a merged scale: row j is the checkpoint's row j * scale_rows / 128, in fp32. */
static mb_status read_scale(const weight_reader *r, const piece *p, float *to) {
    const mb_weight_part *part = p->part;
    const mb_tensor *tensor = part->tensor;
    uint64_t repeat = (uint64_t)(MB_F8_BLOCK / part->scale_rows), cols = tensor->shape[1];
    uint64_t first = p->start / repeat, last = (p->end - 1) / repeat;
    size_t row_bytes = mb_dtype_row_bytes(tensor->dtype, (int64_t)cols);
    char *rows = mb_malloc((size_t)(last - first + 1) * row_bytes);
    if (!rows)
        return mb_fail(MB_ERR_MEMORY, "no memory for the scales of tensor \"%s\"", tensor->name);
    mb_status status = mb_checkpoint_read(r->checkpoint, tensor, first * row_bytes, rows,
                                          (size_t)(last - first + 1) * row_bytes);
    for (uint64_t j = p->start; status == MB_OK && j < p->end; j++) {
        const char *from = rows + (j / repeat - first) * row_bytes;
        mb_load_f32(tensor->dtype, from, 0, (int64_t)cols, to);
        for (uint64_t c = 0; c < cols; c++, to++) {
            if (!isfinite(*to))
                status = mb_fail(
                    MB_ERR_FORMAT,
                    "%s: tensor \"%s\" holds a scale that is not a finite number; the file is damaged, "
                    "download it again",
                    mb_checkpoint_path(r->checkpoint, tensor), tensor->name);
        }
    }
    mb_free(rows);
    return status;
}

static mb_status read_piece(const weight_reader *r, const piece *p, char *to) {
    if (p->part->scale_rows > 0)
        return read_scale(r, p, (float *)(void *)to);
    return mb_checkpoint_read(r->checkpoint, p->part->tensor, p->start, to, p->n_bytes);
}

/* ---- Workers ------------------------------------------------------------------------------------------ */

/* The next piece and, when staging, a buffer for it. 0: nothing is left to do. Called with the lock held. */
static int take_work(weight_reader *r, piece *p) {
    while (r->staging && r->n_free == 0 && !r->stop)
        pthread_cond_wait(&r->buffer_free, &r->lock);
    if (r->stop || !next_piece(r, p))
        return 0;
    if (r->staging)
        p->buffer = r->free_buffers[--r->n_free];
    return 1;
}

static void *work(void *argument) {
    weight_reader *r = argument;
    piece p;
    pthread_mutex_lock(&r->lock);
    while (take_work(r, &p)) {
        pthread_mutex_unlock(&r->lock);
        char *to = r->staging ? r->staging + (size_t)p.buffer * PIECE_BYTES : r->memory + p.offset;
        mb_status status = read_piece(r, &p, to);
        pthread_mutex_lock(&r->lock);
        if (status != MB_OK && r->status == MB_OK) {
            r->status = status;
            snprintf(r->error, sizeof r->error, "%s", mb_last_error());
        }
        if (status != MB_OK)
            r->stop = 1;
        else if (r->staging)
            r->ready[r->n_ready++] = p;
        else
            r->done_bytes += p.read_bytes;
        pthread_cond_signal(&r->piece_ready);
    }
    r->n_running--;
    pthread_cond_broadcast(&r->buffer_free);
    pthread_cond_signal(&r->piece_ready);
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

/* ---- The calling thread ------------------------------------------------------------------------------- */

static mb_status upload(const weight_reader *r, mb_device *device, char *block, const piece *pieces,
                        int count) {
    mb_status status = MB_OK;
    for (int i = 0; i < count && status == MB_OK; i++)
        status =
            device->upload(device, block + pieces[i].offset,
                           r->staging + (size_t)pieces[i].buffer * PIECE_BYTES, pieces[i].n_bytes, r->stream);
    /* Also behind a failure: the copies before it still read their buffers. */
    mb_status finished = count > 0 ? device->synchronize(device, r->stream) : MB_OK;
    return status != MB_OK ? status : finished;
}

/* Uploads and reports until the workers are through. */
static mb_status collect(weight_reader *r, mb_device *device, char *block, mb_progress_fn progress,
                         void *user) {
    piece taken[MAX_BUFFERS];
    uint64_t reported = UINT64_MAX;
    pthread_mutex_lock(&r->lock);
    for (;;) {
        while (r->n_ready == 0 && r->done_bytes == reported && r->n_running > 0)
            pthread_cond_wait(&r->piece_ready, &r->lock);
        int count = r->n_ready, finished = r->n_running == 0;
        uint64_t done = r->done_bytes;
        memcpy(taken, r->ready, (size_t)count * sizeof *taken);
        r->n_ready = 0;
        pthread_mutex_unlock(&r->lock);

        mb_status status = upload(r, device, block, taken, count);
        for (int i = 0; i < count; i++)
            done += taken[i].read_bytes;
        if (status == MB_OK && progress && done != reported)
            progress(user, done, r->plan->read_bytes);
        reported = done;

        pthread_mutex_lock(&r->lock);
        for (int i = 0; i < count; i++) {
            r->free_buffers[r->n_free++] = taken[i].buffer;
            r->done_bytes += taken[i].read_bytes;
        }
        if (status != MB_OK)
            r->stop = 1;
        pthread_cond_broadcast(&r->buffer_free);
        if (status != MB_OK || finished) {
            pthread_mutex_unlock(&r->lock);
            return status;
        }
    }
}

static mb_status run_workers(weight_reader *r, mb_device *device, char *block, int n_threads,
                             mb_progress_fn progress, void *user) {
    pthread_t threads[MAX_THREADS];
    int n_started = 0;
    r->n_running = n_threads;
    while (n_started < n_threads && pthread_create(&threads[n_started], NULL, work, r) == 0)
        n_started++;
    pthread_mutex_lock(&r->lock);
    r->n_running -= n_threads - n_started;
    pthread_mutex_unlock(&r->lock);
    mb_status status;
    if (n_started == 0)
        status = mb_fail(MB_ERR_MEMORY, "no thread could be started to read the weights");
    else
        status = collect(r, device, block, progress, user);
    for (int i = 0; i < n_started; i++)
        pthread_join(threads[i], NULL);
    if (status == MB_OK && r->status != MB_OK)
        status = mb_fail(r->status, "%s", r->error);
    return status;
}

static int clamp_threads(int n_threads) {
    long n = n_threads > 0 ? n_threads : sysconf(_SC_NPROCESSORS_ONLN);
    return n < 1 ? 1 : n > MAX_THREADS ? MAX_THREADS : (int)n;
}

mb_status mb_weight_plan_read(const mb_weight_plan *plan, const mb_checkpoint *checkpoint, mb_device *device,
                              void *memory, int n_threads, mb_progress_fn progress, void *progress_user) {
    weight_reader r = {.plan = plan,
                       .checkpoint = checkpoint,
                       .lock = PTHREAD_MUTEX_INITIALIZER,
                       .buffer_free = PTHREAD_COND_INITIALIZER,
                       .piece_ready = PTHREAD_COND_INITIALIZER};
    n_threads = clamp_threads(n_threads);
    if (device->host_memory) {
        r.memory = memory;
    } else {
        void *staging;
        r.n_free = 2 * n_threads;
        MB_TRY(device->stream_open(device, &r.stream));
        mb_status allocated = device->allocate_pinned(device, (size_t)r.n_free * PIECE_BYTES, &staging);
        if (allocated != MB_OK) {
            device->stream_close(device, r.stream);
            return allocated;
        }
        r.staging = staging;
        for (int i = 0; i < r.n_free; i++)
            r.free_buffers[i] = i;
    }
    mb_status status = run_workers(&r, device, memory, n_threads, progress, progress_user);
    if (r.staging) {
        device->free_pinned(device, r.staging);
        device->stream_close(device, r.stream);
    }
    return status;
}
