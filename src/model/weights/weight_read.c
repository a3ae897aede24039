#include "model/weights/weight_read.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "base/alloc.h"
#include "model/weights/weight_quantize.h"
#include "ops/common/dtype.h"

enum { PIECE_BYTES = 8 << 20, MAX_THREADS = 16, MAX_BUFFERS = 2 * MAX_THREADS };

/* All of the host's memory that a load into a GPU takes, besides the plan: whatever the model's size. */
_Static_assert((PIECE_BYTES >> 20) * MAX_BUFFERS < 2048, "staging stays below 2 GiB");

/* What one thread reads at a time: rows of a part, at most PIECE_BYTES of them in the block and in the file.
 * config.h bounds the widths, so one row always fits. */
typedef struct piece {
    const mb_weight_part *part;
    int64_t first_row, n_rows; /* of the part, as it is in the block */
    uint64_t offset;           /* in the block */
    size_t n_bytes;            /* there */
    uint64_t scale_offset;     /* of the scales that are made, in the block */
    size_t scale_bytes;        /* there; 0: none are made */
    uint64_t read_bytes;       /* of the files, for the progress */
    int buffer;                /* staging buffer that holds it */
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
    int64_t next;  /* ... at this row */
    int free_buffers[MAX_BUFFERS], n_free;
    piece ready[MAX_BUFFERS];
    int n_ready;
    uint64_t done_bytes;
    int n_running, stop;
    mb_status status;
    char error[1024]; /* of the worker that failed: sentences are per thread */
} weight_reader;

/* ---- Pieces ------------------------------------------------------------------------------------------- */

static int64_t smaller(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* How many of the part's rows the next piece has. Where fp8 scales are made, a piece ends with a block. */
static int64_t piece_rows(const mb_weight_part *part, int64_t next) {
    uint64_t row_bytes = mb_weight_part_row_bytes(part), file_bytes = mb_tensor_row_bytes(part->tensor);
    int64_t most = (int64_t)(PIECE_BYTES / (row_bytes > file_bytes ? row_bytes : file_bytes));
    if (part->kind == MB_PART_QUANTIZE) {
        int64_t blocks = most / 2 / MB_F8_BLOCK; /* half: with many scales a block of rows still fits */
        int64_t into_block = (part->rows.first + next - part->matrix.first) % MB_F8_BLOCK;
        most = (blocks > 0 ? blocks : 1) * MB_F8_BLOCK - into_block;
    }
    return smaller(mb_weight_part_n_rows(part) - next, most);
}

/* Cuts the next piece off the list of parts. 0: there is none. */
static int next_piece(weight_reader *r, piece *p) {
    const mb_weight_plan *plan = r->plan;
    for (; r->i_part < plan->n_parts; r->i_part++, r->next = 0) {
        const mb_weight_part *part = &plan->parts[r->i_part];
        int is_scale = part->kind == MB_PART_SCALES;
        int64_t end = mb_weight_part_n_rows(part);
        if (r->next >= end)
            continue;
        uint64_t row_bytes = mb_weight_part_row_bytes(part);
        *p = (piece){.part = part, .first_row = r->next, .n_rows = piece_rows(part, r->next)};
        p->offset = part->offset + (uint64_t)p->first_row * row_bytes;
        p->n_bytes = (size_t)p->n_rows * row_bytes;
        p->read_bytes = is_scale ? 0 : (uint64_t)p->n_rows * mb_tensor_row_bytes(part->tensor);
        if (part->kind == MB_PART_QUANTIZE) {
            size_t scale_row = mb_dtype_row_bytes(MB_F32, mb_f8_blocks(part->cols.count));
            p->scale_offset = part->scale_offset + (uint64_t)(p->first_row / part->scale_rows) * scale_row;
            p->scale_bytes = (size_t)mb_ceil_div(p->n_rows, part->scale_rows) * scale_row;
        }
        r->next += p->n_rows;
        if (r->next == end) /* scales are counted once */
            p->read_bytes += is_scale ? part->tensor->n_bytes : part->scale ? part->scale->n_bytes : 0;
        return 1;
    }
    return 0;
}

/* Rows [first, first + count) of a tensor, whole; mb_free. */
static mb_status read_rows(const weight_reader *r, const mb_tensor *tensor, int64_t first, int64_t count,
                           char **rows) {
    uint64_t row_bytes = mb_tensor_row_bytes(tensor);
    *rows = mb_malloc_array((size_t)count, (size_t)row_bytes);
    if (!*rows)
        return mb_fail(MB_ERR_MEMORY, "no memory for %lld rows of tensor \"%s\"", (long long)count,
                       tensor->name);
    mb_status status = mb_checkpoint_read(r->checkpoint, tensor, (uint64_t)first * row_bytes, *rows,
                                          (size_t)((uint64_t)count * row_bytes));
    if (status != MB_OK) {
        mb_free(*rows);
        *rows = NULL;
    }
    return status;
}

/* The scales of all blocks that weight rows [first, first + count) lie in, in fp32: [blocks, cols of the
 * tensor]; mb_free. */
static mb_status read_scales(const weight_reader *r, const mb_tensor *tensor, int64_t first, int64_t count,
                             float **scales) {
    int64_t first_block = first / MB_F8_BLOCK, n_blocks = (first + count - 1) / MB_F8_BLOCK - first_block + 1;
    int64_t n = n_blocks * mb_tensor_cols(tensor);
    char *stored;
    MB_TRY(read_rows(r, tensor, first_block, n_blocks, &stored));
    mb_status status = MB_OK;
    float *values = *scales = mb_malloc_array((size_t)n, sizeof *values);
    if (values)
        mb_load_f32(tensor->dtype, stored, 0, n, values);
    else
        status = mb_fail(MB_ERR_MEMORY, "no memory for the scales of tensor \"%s\"", tensor->name);
    mb_free(stored);
    for (int64_t i = 0; status == MB_OK && i < n; i++)
        if (!isfinite(values[i]))
            status =
                mb_fail(MB_ERR_FORMAT,
                        "%s: tensor \"%s\" holds a scale that is not a finite number; the file is damaged, "
                        "download it again",
                        mb_checkpoint_path(r->checkpoint, tensor), tensor->name);
    if (status != MB_OK) {
        mb_free(values);
        *scales = NULL;
    }
    return status;
}

/* Rows of a merged scale: each is the one of the block that its first weight row lies in. */
static mb_status put_scales(const weight_reader *r, const piece *p, char *to) {
    const mb_weight_part *part = p->part;
    int64_t first = part->rows.first + p->first_row * part->scale_rows, cols = mb_tensor_cols(part->tensor);
    int64_t n_rows = (p->n_rows - 1) * part->scale_rows + 1; /* up to the last group's first row */
    float *scales;
    MB_TRY(read_scales(r, part->tensor, first, n_rows, &scales));
    size_t row_bytes = (size_t)mb_weight_part_row_bytes(part);
    for (int64_t i = 0; i < p->n_rows; i++) {
        int64_t block = (first + i * part->scale_rows) / MB_F8_BLOCK - first / MB_F8_BLOCK;
        memcpy(to + (size_t)i * row_bytes, scales + block * cols + part->cols.first / MB_F8_BLOCK, row_bytes);
    }
    mb_free(scales);
    return MB_OK;
}

/* One row as fp32: columns part->cols of what `stored` holds, times the row's scales if there are any. */
static void load_row(const mb_weight_part *part, const char *stored, const float *scales, float *values) {
    mb_load_f32(part->tensor->dtype, stored, part->cols.first, part->cols.count, values);
    for (int64_t c = 0; scales && c < part->cols.count; c++)
        values[c] *= scales[(part->cols.first + c) / MB_F8_BLOCK];
}

/* Columns of rows, or rows of another dtype. */
static mb_status put_rows(const weight_reader *r, const piece *p, char *to) {
    const mb_weight_part *part = p->part;
    int64_t first = part->rows.first + p->first_row;
    size_t from_bytes = (size_t)mb_tensor_row_bytes(part->tensor),
           to_bytes = (size_t)mb_weight_part_row_bytes(part);
    size_t skipped = (size_t)mb_dtype_row_bytes(part->tensor->dtype, part->cols.first),
           taken = (size_t)mb_dtype_row_bytes(part->tensor->dtype, part->cols.count);
    char *rows = NULL;
    float *scales = NULL, *values = NULL;
    mb_status status = read_rows(r, part->tensor, first, p->n_rows, &rows);
    if (status == MB_OK && part->scale)
        status = read_scales(r, part->scale, first, p->n_rows, &scales);
    if (status == MB_OK && !(values = mb_malloc_array((size_t)part->cols.count, sizeof *values)))
        status = mb_fail(MB_ERR_MEMORY, "no memory for a row of tensor \"%s\"", part->tensor->name);
    if (part->width > part->cols.count)
        memset(to, 0, (size_t)p->n_rows * to_bytes);
    for (int64_t i = 0; status == MB_OK && i < p->n_rows; i++) {
        const char *row = rows + (size_t)i * from_bytes;
        if (part->kind == MB_PART_COPY) {
            memcpy(to + (size_t)i * to_bytes, row + skipped, taken);
            continue;
        }
        int64_t block = (first + i) / MB_F8_BLOCK - first / MB_F8_BLOCK;
        load_row(part, row, scales ? scales + block * mb_tensor_cols(part->scale) : NULL, values);
        mb_store_f32(part->dtype, to + (size_t)i * to_bytes, 0, part->cols.count, values);
    }
    mb_free(values);
    mb_free(scales);
    mb_free(rows);
    return status;
}

static mb_status read_piece(const weight_reader *r, const piece *p, char *to, char *to_scales) {
    const mb_weight_part *part = p->part;
    if (part->kind == MB_PART_QUANTIZE)
        return mb_weight_quantize(r->checkpoint, part, p->first_row, p->n_rows, to,
                                  (float *)(void *)to_scales);
    if (part->kind == MB_PART_SCALES)
        return put_scales(r, p, to);
    if (part->kind == MB_PART_CONVERT || part->cols.count != mb_tensor_cols(part->tensor) ||
        part->width != part->cols.count)
        return put_rows(r, p, to);
    uint64_t offset = (uint64_t)(part->rows.first + p->first_row) * mb_tensor_row_bytes(part->tensor);
    return mb_checkpoint_read(r->checkpoint, part->tensor, offset, to, p->n_bytes);
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

/* In a staging buffer the scales follow the piece's bytes. */
static size_t scales_in_buffer(const piece *p) {
    return (p->n_bytes + sizeof(float) - 1) / sizeof(float) * sizeof(float);
}

static void *work(void *argument) {
    weight_reader *r = argument;
    piece p;
    pthread_mutex_lock(&r->lock);
    while (take_work(r, &p)) {
        pthread_mutex_unlock(&r->lock);
        char *to = r->staging ? r->staging + (size_t)p.buffer * PIECE_BYTES : r->memory + p.offset;
        char *to_scales = r->staging ? to + scales_in_buffer(&p) : r->memory + p.scale_offset;
        mb_status status = read_piece(r, &p, to, to_scales);
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

static mb_status upload_piece(const weight_reader *r, mb_device *device, char *block, const piece *p) {
    const char *buffer = r->staging + (size_t)p->buffer * PIECE_BYTES;
    MB_TRY(device->upload(device, block + p->offset, buffer, p->n_bytes, r->stream));
    if (p->scale_bytes == 0)
        return MB_OK;
    return device->upload(device, block + p->scale_offset, buffer + scales_in_buffer(p), p->scale_bytes,
                          r->stream);
}

static mb_status upload(const weight_reader *r, mb_device *device, char *block, const piece *pieces,
                        int count) {
    mb_status status = MB_OK;
    for (int i = 0; i < count && status == MB_OK; i++)
        status = upload_piece(r, device, block, &pieces[i]);
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

/* Rows that no part has are 0. */
static mb_status clear(const mb_weight_plan *plan, mb_device *device, void *memory) {
    static const int32_t zero = 0;
    mb_stream stream;
    MB_TRY(device->stream_open(device, &stream));
    mb_status status = device->fill(device, memory, (size_t)plan->n_bytes, &zero, sizeof zero, stream);
    if (status == MB_OK)
        status = device->synchronize(device, stream);
    device->stream_close(device, stream);
    return status;
}

mb_status mb_weight_plan_read(const mb_weight_plan *plan, const mb_checkpoint *checkpoint, mb_device *device,
                              void *memory, int n_threads, mb_progress_fn progress, void *progress_user) {
    weight_reader r = {.plan = plan,
                       .checkpoint = checkpoint,
                       .lock = PTHREAD_MUTEX_INITIALIZER,
                       .buffer_free = PTHREAD_COND_INITIALIZER,
                       .piece_ready = PTHREAD_COND_INITIALIZER};
    n_threads = clamp_threads(n_threads);
    if (plan->has_gaps)
        MB_TRY(clear(plan, device, memory));
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
