/*
 * Devices: how they are named, which one is the best, and what all of them must do. The same checks run on
 * the CPU and, where there is one, on the GPU.
 */
#include "base/alloc.h"
#include "base/status.h"
#include "device/device.h"
#include "moebius/moebius.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static void test_names(void **state) {
    (void)state;
    static const char *const unknown[] = {
        "", "gpu", "CPU", "cuda:", "cuda:x", "cuda:1x", "cuda:-1", "cuda:99999999"};
    mb_device *device;
    for (size_t i = 0; i < sizeof unknown / sizeof unknown[0]; i++) {
        assert_int_equal(mb_device_open(unknown[i], 0, NULL, &device), MB_ERR_ARGUMENT);
        assert_null(device);
        assert_non_null(strstr(mb_last_error(), "\"cpu\", \"cuda\""));
    }
    assert_int_equal(mb_device_open(NULL, 0, NULL, &device), MB_OK); /* there is always one */
    mb_device_close(device);
    mb_device_close(NULL);
    assert_int_equal(mb_device_open("cpu", -1, NULL, &device), MB_ERR_ARGUMENT);
}

/* ---- What every device does ------------------------------------------------------------------------ */

static void check_memory(mb_device *device, mb_stream stream) {
    uint64_t total = 0, left = 0;
    assert_int_equal(device->memory(device, &total, &left), MB_OK);
    assert_true(left > 0 && left <= total);
    static const size_t sizes[] = {0, 1, 255, 256, 100000};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        void *pointer, *pinned;
        char *host = malloc(sizes[i] + 1), *back = malloc(sizes[i] + 1);
        assert_int_equal(device->allocate(device, sizes[i], &pointer), MB_OK);
        assert_int_equal(device->allocate_pinned(device, sizes[i], &pinned), MB_OK);
        assert_int_equal((uintptr_t)pointer % 256, 0);
        memset(host, 0x5c, sizes[i]);
        assert_int_equal(device->upload(device, pointer, host, sizes[i], stream), MB_OK);
        assert_int_equal(device->download(device, back, pointer, sizes[i], stream), MB_OK);
        assert_int_equal(device->synchronize(device, stream), MB_OK);
        assert_memory_equal(host, back, sizes[i]);
        device->free(device, pointer);
        device->free_pinned(device, pinned);
        free(host);
        free(back);
    }
    device->free(device, NULL);
    device->free_pinned(device, NULL);
    void *pointer = &pointer;
    assert_int_equal(device->allocate(device, SIZE_MAX - 8, &pointer), MB_ERR_MEMORY);
    assert_null(pointer);
}

static void check_fill(mb_device *device, mb_stream stream) {
    enum { N = 1000 };
    static const char block[] = "abcdefg";
    static const size_t lengths[] = {7, 3, 1, 7}, counts[] = {N, N - 1, N, 5};
    char back[N];
    void *pointer;
    assert_int_equal(device->allocate(device, N, &pointer), MB_OK);
    for (int i = 0; i < 4; i++) {
        assert_int_equal(device->fill(device, pointer, counts[i], block, lengths[i], stream), MB_OK);
        assert_int_equal(device->download(device, back, pointer, counts[i], stream), MB_OK);
        assert_int_equal(device->synchronize(device, stream), MB_OK);
        for (size_t j = 0; j < counts[i]; j++)
            assert_int_equal(back[j], block[j % lengths[i]]);
    }
    device->free(device, pointer);
}

static void check_events(mb_device *device, mb_stream stream) {
    mb_stream other;
    mb_event *first, *second, *plain;
    assert_int_equal(device->stream_open(device, &other), MB_OK);
    assert_int_equal(device->event_open(device, 1, &first), MB_OK);
    assert_int_equal(device->event_open(device, 1, &second), MB_OK);
    assert_int_equal(device->event_open(device, 0, &plain), MB_OK);
    enum { N_BYTES = 8 << 20 };
    const char one = 1, two = 2;
    char *back = calloc(N_BYTES, 1);
    void *pointer;
    assert_int_equal(device->allocate(device, N_BYTES, &pointer), MB_OK);
    for (int i = 0; i < 20; i++) { /* the other stream writes behind the first one's work */
        assert_int_equal(device->event_record(device, first, stream), MB_OK);
        assert_int_equal(device->fill(device, pointer, N_BYTES, &one, 1, stream), MB_OK);
        assert_int_equal(device->event_record(device, plain, stream), MB_OK);
        assert_int_equal(device->event_wait(device, plain, other), MB_OK);
        assert_int_equal(device->fill(device, pointer, N_BYTES, &two, 1, other), MB_OK);
        assert_int_equal(device->download(device, back, pointer, N_BYTES, other), MB_OK);
        assert_int_equal(device->event_record(device, second, other), MB_OK);
        assert_int_equal(device->event_synchronize(device, second), MB_OK);
        int was_reached = 0;
        assert_int_equal(device->event_query(device, second, &was_reached), MB_OK);
        assert_true(was_reached);
        assert_int_equal(back[0], 2);
        assert_int_equal(back[N_BYTES - 1], 2);
        double us = -1;
        assert_int_equal(device->event_elapsed(device, first, second, &us), MB_OK);
        assert_true(us > 0 && us < 60e6);
    }
    device->free(device, pointer);
    free(back);
    device->event_close(device, first);
    device->event_close(device, second);
    device->event_close(device, plain);
    device->event_close(device, NULL);
    device->stream_close(device, other);
    device->stream_close(device, NULL);
}

/* What is captured does not run before it is replayed, and then each time. */
static void check_graphs(mb_device *device, mb_stream stream) {
    mb_graph *graph = (mb_graph *)1;
    const char one = 1, two = 2;
    char back = 0;
    void *pointer;
    device->graph_close(device, NULL);
    if (device->n_sms == 0) {
        assert_int_equal(device->capture_begin(device, stream), MB_ERR_UNSUPPORTED);
        assert_int_equal(device->capture_end(device, stream, &graph), MB_ERR_UNSUPPORTED);
        assert_null(graph);
        assert_int_equal(device->replay(device, NULL, stream), MB_ERR_UNSUPPORTED);
        return;
    }
    assert_int_equal(device->allocate(device, 256, &pointer), MB_OK);
    assert_int_equal(device->fill(device, pointer, 256, &one, 1, stream), MB_OK);
    assert_int_equal(device->capture_begin(device, stream), MB_OK);
    assert_int_equal(device->fill(device, pointer, 256, &two, 1, stream), MB_OK);
    assert_int_equal(device->capture_end(device, stream, &graph), MB_OK);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(device->download(device, &back, pointer, 1, stream), MB_OK);
        assert_int_equal(device->synchronize(device, stream), MB_OK);
        assert_int_equal(back, i == 0 ? 1 : 2);
        assert_int_equal(device->replay(device, graph, stream), MB_OK);
    }
    assert_int_equal(device->synchronize(device, stream), MB_OK);
    device->graph_close(device, graph);
    device->free(device, pointer);
}

typedef struct branch {
    mb_device *device;
    void *source, *filled;
    size_t n_filled;
    int32_t *back; /* pinned */
    mb_stream other;
    mb_event *forked, *copied, *joined;
} branch;

/* A copy on a branch, beside a fill that takes long. */
static mb_status copy_beside_fill(const void *context, mb_stream stream) {
    const branch *b = context;
    mb_device *device = b->device;
    const char one = 1;
    MB_TRY(device->event_record(device, b->forked, stream));
    MB_TRY(device->event_wait(device, b->forked, b->other));
    MB_TRY(device->download(device, b->back, b->source, sizeof *b->back, b->other));
    MB_TRY(device->event_mark(device, b->copied, b->other));
    MB_TRY(device->fill(device, b->filled, b->n_filled, &one, 1, stream));
    MB_TRY(device->event_record(device, b->joined, b->other));
    return device->event_wait(device, b->joined, stream);
}

/* An event of the branch is reached anew by each replay, and not before what lies in front of the graph. */
static void check_branches(mb_device *device, mb_stream stream) {
    branch b = {.device = device, .n_filled = device->host_memory ? 1 << 16 : 256 << 20};
    mb_graph *graph = NULL;
    assert_int_equal(device->allocate(device, sizeof *b.back, &b.source), MB_OK);
    assert_int_equal(device->allocate(device, b.n_filled, &b.filled), MB_OK);
    assert_int_equal(device->allocate_pinned(device, sizeof *b.back, (void **)&b.back), MB_OK);
    assert_int_equal(device->stream_open(device, &b.other), MB_OK);
    assert_int_equal(device->event_open(device, 0, &b.forked), MB_OK);
    assert_int_equal(device->event_open(device, 0, &b.copied), MB_OK);
    assert_int_equal(device->event_open(device, 0, &b.joined), MB_OK);
    if (device->n_sms > 0)
        assert_int_equal(mb_device_capture(device, copy_beside_fill, &b, stream, &graph), MB_OK);
    for (int32_t i = 1; i <= 10; i++) {
        const char zero = 0;
        assert_int_equal(device->fill(device, b.filled, b.n_filled, &zero, 1, stream), MB_OK);
        assert_int_equal(device->fill(device, b.source, sizeof i, &i, sizeof i, stream), MB_OK);
        assert_int_equal(
            graph && i > 1 ? device->replay(device, graph, stream) : copy_beside_fill(&b, stream), MB_OK);
        assert_int_equal(device->event_synchronize(device, b.copied), MB_OK);
        assert_int_equal(*b.back, i);
    }
    assert_int_equal(device->synchronize(device, stream), MB_OK);
    device->graph_close(device, graph);
    device->event_close(device, b.forked);
    device->event_close(device, b.copied);
    device->event_close(device, b.joined);
    device->stream_close(device, b.other);
    device->free_pinned(device, b.back);
    device->free(device, b.filled);
    device->free(device, b.source);
}

typedef struct timed {
    mb_device *device;
    void *pointer;
    int *n_calls, fails_at;
} timed;

static mb_status fill_once(const void *context, mb_stream stream) {
    const timed *t = context;
    const char one = 1;
    if (++*t->n_calls == t->fails_at)
        return MB_ERR_CAPACITY;
    return t->device->fill(t->device, t->pointer, 1 << 20, &one, 1, stream);
}

static void check_time(mb_device *device) {
    enum { N = 4 };
    int n_calls = 0;
    timed t = {.device = device, .n_calls = &n_calls};
    double times[N] = {0};
    assert_int_equal(device->allocate(device, 1 << 20, &t.pointer), MB_OK);
    assert_int_equal(mb_device_time(device, fill_once, &t, N, times), MB_OK);
    for (int i = 0; i < N; i++)
        assert_true(times[i] > 0 && times[i] < 60e6);
    assert_int_equal(n_calls, device->n_sms > 0 ? 2 : N + 1); /* a GPU's is called once and captured once */
    for (t.fails_at = 1; t.fails_at <= 2; t.fails_at++) {
        n_calls = 0;
        assert_int_equal(mb_device_time(device, fill_once, &t, N, times), MB_ERR_CAPACITY);
        assert_int_equal(n_calls, t.fails_at);
    }
    device->free(device, t.pointer);
}

typedef struct marked {
    mb_device *device;
    void *pointer;
    mb_event *begin, *end;
} marked;

static mb_status fill_between_marks(const void *context, mb_stream stream) {
    const marked *m = context;
    const char one = 1;
    MB_TRY(m->device->event_mark(m->device, m->begin, stream));
    MB_TRY(m->device->fill(m->device, m->pointer, 8 << 20, &one, 1, stream));
    return m->device->event_mark(m->device, m->end, stream);
}

/* Marks take the time of plain work, and of a graph's at each replay. */
static void check_marks(mb_device *device, mb_stream stream) {
    marked m = {.device = device};
    mb_graph *graph = NULL;
    mb_event *before;
    double us = -1;
    assert_int_equal(device->allocate(device, 8 << 20, &m.pointer), MB_OK);
    assert_int_equal(device->event_open(device, 1, &before), MB_OK);
    assert_int_equal(device->event_open(device, 1, &m.begin), MB_OK);
    assert_int_equal(device->event_open(device, 1, &m.end), MB_OK);
    if (device->n_sms > 0)
        assert_int_equal(mb_device_capture(device, fill_between_marks, &m, stream, &graph), MB_OK);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(device->event_mark(device, before, stream), MB_OK);
        assert_int_equal(
            graph && i > 0 ? device->replay(device, graph, stream) : fill_between_marks(&m, stream), MB_OK);
        assert_int_equal(device->synchronize(device, stream), MB_OK);
        assert_int_equal(device->event_elapsed(device, m.begin, m.end, &us), MB_OK);
        assert_true(us > 0 && us < 60e6);
        assert_int_equal(device->event_elapsed(device, before, m.begin, &us), MB_OK);
        assert_true(us >= 0 && us < 60e6); /* taken by this round */
    }
    device->graph_close(device, graph);
    device->event_close(device, before);
    device->event_close(device, m.begin);
    device->event_close(device, m.end);
    device->free(device, m.pointer);
}

static void check_device(mb_device *device) {
    mb_stream stream;
    assert_int_equal(device->stream_open(device, &stream), MB_OK);
    check_memory(device, stream);
    check_fill(device, stream);
    check_events(device, stream);
    check_graphs(device, stream);
    check_branches(device, stream);
    check_marks(device, stream);
    check_time(device);
    device->stream_close(device, stream);
}

static void test_cpu(void **state) {
    (void)state;
    mb_device *device;
    assert_int_equal(mb_device_open("cpu", 2, NULL, &device), MB_OK);
    assert_string_equal(device->name, "cpu");
    assert_true(device->host_memory);
    check_device(device);
    mb_device_close(device);
}

/* One that does not open must say what to do. */
static void test_cuda(void **state) {
    (void)state;
    mb_device *device;
    mb_status status = mb_device_open("cuda", 0, NULL, &device);
    if (status == MB_OK) {
        assert_non_null(device->ops->moe_forward);
        assert_false(device->host_memory);
        assert_true(device->n_sms > 0);
        assert_true(device->bytes_per_second > 1e12 && device->bytes_per_second < 1e13);
        print_message("%s: %d SMs, %.3f TB/s\n", device->name, device->n_sms,
                      device->bytes_per_second * 1e-12);
        check_device(device);
        mb_device_close(device);
        return;
    }
    assert_null(device);
    assert_true(status == MB_ERR_NOT_FOUND || status == MB_ERR_UNSUPPORTED);
    assert_non_null(strstr(mb_last_error(), "cpu"));
    print_message("SKIP the GPU: %s\n", mb_last_error());
}

/* ---- The best device ------------------------------------------------------------------------------- */

static mb_status opener_status;
static int n_open, n_closed;

static void count_close(mb_device *device) {
    free(device);
    n_closed++;
}

/* A GPU, as far as choosing goes. */
static mb_status open_fake_gpu(int ordinal, mb_device **device) {
    assert_int_equal(ordinal, 0);
    if (opener_status != MB_OK)
        return opener_status;
    n_open++;
    *device = calloc(1, sizeof **device);
    (*device)->name = "fake GPU";
    (*device)->ops = &mb_cpu_ops;
    (*device)->close = count_close;
    return MB_OK;
}

static mb_status refuse_gpus(const mb_device *device) {
    return strcmp(device->name, "cpu") == 0 ? MB_OK : MB_ERR_UNSUPPORTED;
}

/* Opens the best device and returns what was written to stderr meanwhile. */
static const char *open_best(mb_device_opener opener, mb_device_check check, mb_device **device) {
    static char text[4096];
    FILE *file = tmpfile();
    int saved = dup(STDERR_FILENO);
    assert_non_null(file);
    fflush(stderr);
    dup2(fileno(file), STDERR_FILENO);
    mb_status status = mb_device_open_best(opener, 1, check, device);
    dup2(saved, STDERR_FILENO);
    close(saved);
    assert_int_equal(status, MB_OK);
    rewind(file);
    text[fread(text, 1, sizeof text - 1, file)] = '\0';
    fclose(file);
    return text;
}

static void test_a_gpu_that_will_do_is_the_best(void **state) {
    (void)state;
    mb_device *device;
    opener_status = MB_OK;
    n_open = n_closed = 0;
    assert_string_equal(open_best(open_fake_gpu, NULL, &device), "");
    assert_string_equal(device->name, "fake GPU");
    mb_device_close(device);
    assert_int_equal(n_open, 1);
    assert_int_equal(n_closed, 1);
}

/* Who has paid for a GPU must learn that it stands idle; who has none must not be bothered. */
static void test_a_gpu_that_is_not_used_is_a_warning(void **state) {
    (void)state;
    static const struct {
        mb_status status;
        int warns;
    } cases[] = {{MB_ERR_NOT_FOUND, 0}, {MB_ERR_UNSUPPORTED, 1}, {MB_ERR_DEVICE, 1}, {MB_ERR_MEMORY, 1}};
    mb_device *device;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        opener_status = cases[i].status;
        const char *said = open_best(open_fake_gpu, NULL, &device);
        assert_string_equal(device->name, "cpu");
        assert_int_equal(strstr(said, "warn: running on the CPU, not on a GPU: ") != NULL, cases[i].warns);
        mb_device_close(device);
    }
    opener_status = MB_OK;
    n_open = n_closed = 0;
    assert_non_null(strstr(open_best(open_fake_gpu, refuse_gpus, &device), "warn: running on the CPU"));
    assert_string_equal(device->name, "cpu");
    mb_device_close(device);
    assert_int_equal(n_open, 1);
    assert_int_equal(n_closed, 1);
    assert_string_equal(open_best(NULL, refuse_gpus, &device), ""); /* a build without CUDA */
    mb_device_close(device);
}

static mb_status refuse_all(const mb_device *device) {
    (void)device;
    return MB_ERR_UNSUPPORTED;
}

static void test_a_check_holds_for_named_devices_too(void **state) {
    (void)state;
    mb_device *device;
    assert_int_equal(mb_device_open("cpu", 1, refuse_all, &device), MB_ERR_UNSUPPORTED);
    assert_null(device);
    assert_int_equal(mb_device_open("cpu", 1, refuse_gpus, &device), MB_OK);
    mb_device_close(device);
}

/* ---- Memory runs out ------------------------------------------------------------------------------- */

static void *refuse(void *user, void *pointer, size_t n_bytes) {
    (void)user;
    if (n_bytes == 0)
        free(pointer);
    return NULL;
}

static void test_out_of_memory(void **state) {
    (void)state;
    mb_device *device;
    mb_set_allocator(refuse, NULL);
    assert_int_equal(mb_device_open("cpu", 0, NULL, &device), MB_ERR_MEMORY);
    mb_set_allocator(NULL, NULL);
    assert_null(device);
    assert_int_equal(mb_device_open("cpu", 0, NULL, &device), MB_OK);
    void *pointer;
    mb_event *event;
    mb_set_allocator(refuse, NULL);
    assert_int_equal(device->allocate(device, 100, &pointer), MB_ERR_MEMORY);
    assert_int_equal(device->event_open(device, 0, &event), MB_ERR_MEMORY);
    mb_set_allocator(NULL, NULL);
    assert_null(pointer);
    assert_null(event);
    mb_device_close(device);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_cpu),
        cmocka_unit_test(test_cuda),
        cmocka_unit_test(test_a_gpu_that_will_do_is_the_best),
        cmocka_unit_test(test_a_gpu_that_is_not_used_is_a_warning),
        cmocka_unit_test(test_a_check_holds_for_named_devices_too),
        cmocka_unit_test(test_out_of_memory),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
