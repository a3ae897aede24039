/* Buckets of decode steps, and graphs that are made once and kept, on a device that counts. */
#include "engine/decode_graph.h"

#include "base/status.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>

#include <cmocka.h>

static void test_buckets(void **state) {
    (void)state;
    static const int32_t mosts[] = {1, 3, 64, 100, 256, 1000};
    for (size_t m = 0; m < sizeof mosts / sizeof *mosts; m++) {
        int32_t former = 0, n_buckets = 0;
        for (int32_t n = 1; n <= mosts[m]; n++) {
            int32_t bucket = mb_decode_bucket_sequences(n, mosts[m]);
            assert_in_range(bucket, n, mosts[m]);
            assert_true(bucket >= former);
            assert_int_equal(mb_decode_bucket_sequences(bucket, mosts[m]), bucket);
            assert_true(n <= 8 ? bucket < 2 * n : bucket <= n + (n <= 64 ? 7 : n <= 256 ? 31 : 127));
            n_buckets += bucket != former;
            former = bucket;
        }
        assert_true(n_buckets <= 26);
        former = 0;
        for (int32_t n = 1; n <= mosts[m]; n++) {
            int32_t bucket = mb_decode_bucket_blocks(n, mosts[m]);
            assert_in_range(bucket, n, mosts[m]);
            assert_true(bucket >= former && (bucket < 2 * n || bucket <= 16));
            former = bucket;
        }
    }
}

/* ---- A device whose graphs are numbers */

typedef struct counting_device {
    mb_device base;
    int n_begun, n_ended, n_replayed, n_open, fail_end;
} counting_device;

static mb_status begin(mb_device *device, mb_stream stream) {
    (void)stream;
    ((counting_device *)device)->n_begun++;
    return MB_OK;
}

static mb_status end(mb_device *device, mb_stream stream, mb_graph **graph) {
    counting_device *d = (counting_device *)device;
    (void)stream;
    d->n_ended++;
    *graph = NULL;
    if (d->fail_end)
        return mb_fail(MB_ERR_DEVICE, "no graph today");
    *graph = malloc(1);
    d->n_open++;
    return MB_OK;
}

static mb_status replay(mb_device *device, mb_graph *graph, mb_stream stream) {
    (void)stream;
    assert_non_null(graph);
    ((counting_device *)device)->n_replayed++;
    return MB_OK;
}

static void close_graph(mb_device *device, mb_graph *graph) {
    ((counting_device *)device)->n_open -= graph != NULL;
    free(graph);
}

typedef struct counted_work {
    int n_enqueued, fail_at; /* the call that fails, counted from 1; 0: none */
} counted_work;

static mb_status enqueue(const void *context, mb_stream stream) {
    counted_work *work = (counted_work *)context;
    (void)stream;
    work->n_enqueued++;
    return work->n_enqueued == work->fail_at ? mb_fail(MB_ERR_ARGUMENT, "the work fails") : MB_OK;
}

static counting_device counting(void) {
    return (counting_device){
        .base = {.capture_begin = begin, .capture_end = end, .replay = replay, .graph_close = close_graph}};
}

static void test_each_bucket_is_captured_once(void **state) {
    (void)state;
    counting_device d = counting();
    counted_work work = {0};
    mb_decode_graphs graphs = {0};
    for (int round = 0; round < 3; round++)
        for (int32_t n = 1; n <= 4; n++)
            assert_int_equal(
                mb_decode_graphs_run(&graphs, &d.base, n, 16 * (n % 2 + 1), enqueue, &work, NULL), MB_OK);
    assert_int_equal(work.n_enqueued, 8); /* plainly and for the capture */
    assert_int_equal(d.n_begun, 4);
    assert_int_equal(d.n_replayed, 8);
    assert_int_equal(mb_decode_graphs_run(&graphs, &d.base, 1, 64, enqueue, &work, NULL), MB_OK);
    assert_int_equal(work.n_enqueued, 10); /* another context is another bucket */
    mb_decode_graphs_close(&graphs, &d.base);
    assert_int_equal(d.n_open, 0);
}

static void test_more_buckets_than_graphs(void **state) {
    (void)state;
    counting_device d = counting();
    counted_work work = {0};
    mb_decode_graphs graphs = {0};
    for (int32_t n = 1; n <= MB_MAX_DECODE_GRAPHS + 5; n++)
        assert_int_equal(mb_decode_graphs_run(&graphs, &d.base, n, 16, enqueue, &work, NULL), MB_OK);
    assert_int_equal(d.n_begun, MB_MAX_DECODE_GRAPHS);
    assert_int_equal(work.n_enqueued, 2 * MB_MAX_DECODE_GRAPHS + 5); /* the last five ran plainly alone */
    mb_decode_graphs_close(&graphs, &d.base);
    assert_int_equal(d.n_open, 0);
}

static void test_failures_end_the_capture(void **state) {
    (void)state;
    counting_device d = counting();
    counted_work work = {.fail_at = 1};
    mb_decode_graphs graphs = {0};
    assert_int_equal(mb_decode_graphs_run(&graphs, &d.base, 1, 16, enqueue, &work, NULL), MB_ERR_ARGUMENT);
    assert_int_equal(d.n_begun, 0);
    work.fail_at = 3;
    d.fail_end = 1; /* as a capture ends on a GPU whose launch failed */
    assert_int_equal(mb_decode_graphs_run(&graphs, &d.base, 1, 16, enqueue, &work, NULL), MB_ERR_ARGUMENT);
    assert_string_equal(mb_last_error(), "the work fails");
    work.fail_at = 5;
    d.fail_end = 0;
    assert_int_equal(mb_decode_graphs_run(&graphs, &d.base, 1, 16, enqueue, &work, NULL), MB_ERR_ARGUMENT);
    assert_int_equal(d.n_ended, 2);
    assert_int_equal(d.n_open, 0);
    d.fail_end = 1;
    assert_int_equal(mb_decode_graphs_run(&graphs, &d.base, 1, 16, enqueue, &work, NULL), MB_ERR_DEVICE);
    d.fail_end = 0;
    for (int i = 0; i < 2; i++)
        assert_int_equal(mb_decode_graphs_run(&graphs, &d.base, 1, 16, enqueue, &work, NULL), MB_OK);
    assert_int_equal(d.n_replayed, 1);
    mb_decode_graphs_close(&graphs, &d.base);
    assert_int_equal(d.n_open, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_buckets),
        cmocka_unit_test(test_each_bucket_is_captured_once),
        cmocka_unit_test(test_more_buckets_than_graphs),
        cmocka_unit_test(test_failures_end_the_capture),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
