/*
 * What a device refuses or fails at, call by call: every allocation of memory, stream, event and graph, every
 * copy, launch and wait of a life of a model, from opening to closing, fails once. Each time there must be a
 * sentence, no crash, and nothing of the device left.
 *
 * MOEBIUS_TEST_DEVICE says on which device; "cuda" also runs into a true fault of the GPU. The functions of the
 * device that the model opens are replaced by ones that count (the linker's --wrap).
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/status.h"
#include "engine/session.h"
#include "model/model.h"
#include "support/generation.h"

enum { VOCAB = 64, POISONED = 13, N = 3, N_NEW = 6 };

static char directory[TINY_PATH];
static const char *device_name;

/* ---- The device that fails ------------------------------------------------------------------------- */

typedef enum { NOTHING, MAKING, WORK } fault_kind;

static mb_device real; /* its functions, as they were */
static fault_kind kind;
static int64_t fail_at; /* the call of that kind, from 1 */
static int goes_on;     /* so do all after it, as behind a fault of a GPU */
static atomic_llong n_calls, n_live;
static atomic_int has_failed;

static int fails(fault_kind of) {
    if (of != kind)
        return 0;
    const int64_t call = atomic_fetch_add(&n_calls, 1) + 1;
    const int now = call == fail_at || (goes_on && call > fail_at);
    if (now)
        atomic_store(&has_failed, 1);
    return now;
}

static mb_status refused(void) {
    return mb_fail(MB_ERR_MEMORY, "a failing device: refused");
}

static mb_status failed(void) {
    return mb_fail(MB_ERR_DEVICE, "a failing device: it failed");
}

static mb_status made(mb_status status) {
    if (status == MB_OK)
        atomic_fetch_add(&n_live, 1);
    return status;
}

#define MAKE(name, parameters, out, call)              \
    static mb_status name parameters {                 \
        *(out) = NULL;                                 \
        return fails(MAKING) ? refused() : made(call); \
    }
#define UNMAKE(name, type, call)                       \
    static void name(mb_device *device, type object) { \
        if (object)                                    \
            atomic_fetch_sub(&n_live, 1);              \
        call(device, object);                          \
    }
#define DO(name, parameters, call)              \
    static mb_status name parameters {          \
        const mb_status status = call;          \
        return fails(WORK) ? failed() : status; \
    }

MAKE(f_allocate, (mb_device * device, size_t n_bytes, void **pointer), pointer,
     real.allocate(device, n_bytes, pointer))
MAKE(f_allocate_pinned, (mb_device * device, size_t n_bytes, void **pointer), pointer,
     real.allocate_pinned(device, n_bytes, pointer))
MAKE(f_stream_open, (mb_device * device, mb_stream *stream), stream, real.stream_open(device, stream))
MAKE(f_event_open, (mb_device * device, int is_timed, mb_event **event), event,
     real.event_open(device, is_timed, event))
UNMAKE(f_free, void *, real.free)
UNMAKE(f_free_pinned, void *, real.free_pinned)
UNMAKE(f_event_close, mb_event *, real.event_close)
UNMAKE(f_graph_close, mb_graph *, real.graph_close)
DO(f_synchronize, (mb_device * device, mb_stream stream), real.synchronize(device, stream))
DO(f_upload, (mb_device * device, void *to, const void *from, size_t n_bytes, mb_stream stream),
   real.upload(device, to, from, n_bytes, stream))
DO(f_download, (mb_device * device, void *to, const void *from, size_t n_bytes, mb_stream stream),
   real.download(device, to, from, n_bytes, stream))
DO(f_fill,
   (mb_device * device, void *to, size_t n_bytes, const void *block, size_t block_bytes, mb_stream stream),
   real.fill(device, to, n_bytes, block, block_bytes, stream))
DO(f_event_record, (mb_device * device, mb_event *event, mb_stream stream),
   real.event_record(device, event, stream))
DO(f_event_wait, (mb_device * device, mb_event *event, mb_stream stream),
   real.event_wait(device, event, stream))
DO(f_event_synchronize, (mb_device * device, mb_event *event), real.event_synchronize(device, event))
DO(f_event_query, (mb_device * device, mb_event *event, int *was_reached),
   real.event_query(device, event, was_reached))
DO(f_replay, (mb_device * device, mb_graph *graph, mb_stream stream), real.replay(device, graph, stream))

/* stream_close takes NULL, as after an open that failed: that closes no stream, and counts as none. */
static void f_stream_close(mb_device *device, mb_stream stream) {
    if (stream)
        atomic_fetch_sub(&n_live, 1);
    real.stream_close(device, stream);
}

/* The capture ends in any case. */
static mb_status f_capture_end(mb_device *device, mb_stream stream, mb_graph **graph) {
    mb_status status = real.capture_end(device, stream, graph);
    if (!fails(MAKING))
        return *graph ? made(status) : status;
    real.graph_close(device, *graph);
    *graph = NULL;
    return refused();
}

static void f_close(mb_device *device) {
    atomic_fetch_sub(&n_live, 1);
    real.close(device);
}

static mb_status with_faults(mb_status opened, mb_device **device) {
    if (opened != MB_OK)
        return opened;
    mb_device *d = *device;
    real = *d;
    d->allocate = f_allocate, d->free = f_free;
    d->allocate_pinned = f_allocate_pinned, d->free_pinned = f_free_pinned;
    d->stream_open = f_stream_open, d->stream_close = f_stream_close;
    d->synchronize = f_synchronize;
    d->upload = f_upload, d->download = f_download, d->fill = f_fill;
    d->event_open = f_event_open, d->event_close = f_event_close;
    d->event_record = f_event_record, d->event_wait = f_event_wait;
    d->event_synchronize = f_event_synchronize, d->event_query = f_event_query;
    d->capture_end = f_capture_end, d->replay = f_replay, d->graph_close = f_graph_close;
    d->close = f_close;
    return made(MB_OK);
}

mb_status __real_mb_device_open_cpu(int n_threads, mb_device **device);
mb_status __wrap_mb_device_open_cpu(int n_threads, mb_device **device);
mb_status __wrap_mb_device_open_cpu(int n_threads, mb_device **device) {
    return with_faults(__real_mb_device_open_cpu(n_threads, device), device);
}

#ifdef MOEBIUS_WITH_CUDA
mb_status __real_mb_device_open_cuda(int ordinal, mb_device **device);
mb_status __wrap_mb_device_open_cuda(int ordinal, mb_device **device);
mb_status __wrap_mb_device_open_cuda(int ordinal, mb_device **device) {
    return with_faults(__real_mb_device_open_cuda(ordinal, device), device);
}
#endif

/* ---- A life ---------------------------------------------------------------------------------------- */

typedef struct life {
    mb_status status; /* of the first call that failed */
    char sentence[300];
    int has_ended; /* all sequences have ended well */
    generation g[N];
} life;

static mb_status keep(life *l, mb_status status) {
    if (status != MB_OK && l->status == MB_OK) {
        l->status = status;
        snprintf(l->sentence, sizeof l->sentence, "%s", mb_last_error());
    }
    return status;
}

static mb_status open_model(mb_model **model) {
    return mb_model_open(
        directory, &(mb_model_options){.device = device_name, .kv_dtype = "fp8", .n_threads = 1}, model);
}

static mb_status open_session(mb_model *model, mb_session **session) {
    mb_session_options options;
    mb_session_options_init(&options);
    options.max_sequences = N;
    options.max_step_tokens = 32;
    options.prefill_chunk = 16;
    options.kv_tokens = 384;
    return mb_session_open(model, &options, session);
}

/* Of every kind: penalties, which count tokens on the device, log-probabilities, greedy. */
static void submit(generation *g, int i, mb_model *model, mb_session *session) {
    generation_init_random(g, model, (uint64_t)i + 1, VOCAB, POISONED, 20, N_NEW);
    if (i == 0)
        g->request.sampling.repetition_penalty = 1.2f;
    if (i == 1)
        generation_keep_logprobs(g, 1);
    generation_submit(g, session);
}

static void live(life *l) {
    *l = (life){0};
    atomic_store(&n_calls, 0);
    atomic_store(&has_failed, 0);
    mb_model *model = NULL;
    mb_session *session = NULL;
    if (keep(l, open_model(&model)) == MB_OK && keep(l, open_session(model, &session)) == MB_OK) {
        for (int i = 0; i < N; i++)
            submit(&l->g[i], i, model, session);
        int n_unfinished = 1;
        for (int i = 0; n_unfinished > 0 && i < 1000; i++) /* it goes on behind a step that failed */
            keep(l, mb_step(session, &n_unfinished));
        assert_int_equal(n_unfinished, 0);
        l->has_ended = 1;
        for (int i = 0; i < N; i++) {
            generation_read(&l->g[i], session);
            l->has_ended &= l->g[i].state == MB_FINISHED_LENGTH;
            if (l->g[i].state == MB_FAILED)
                assert_int_not_equal(l->status, MB_OK);
        }
    }
    mb_session_close(session);
    mb_model_close(model);
}

static void free_life(life *l) {
    for (int i = 0; i < N; i++)
        if (l->g[i].request.ids)
            generation_free(&l->g[i]);
}

static void same_answers(const life *l, const life *expected) {
    assert_true(l->has_ended);
    for (int i = 0; i < N; i++)
        assert_true(generation_same_tokens(&l->g[i], &expected->g[i]));
}

static void fail_everywhere(fault_kind of, mb_status status, int all_after, int every) {
    life expected, l;
    kind = NOTHING;
    live(&expected);
    assert_int_equal(expected.status, MB_OK);
    assert_int_equal(atomic_load(&n_live), 0);
    kind = of, goes_on = all_after;
    int n_told = 0;
    fail_at = 1;
    for (;; fail_at += every) {
        live(&l);
        if (!atomic_load(&has_failed))
            break;
        assert_int_equal(atomic_load(&n_live), 0);
        if (l.status == MB_OK) { /* the engine did without: a step without a graph */
            same_answers(&l, &expected);
        } else {
            assert_int_equal(l.status, status);
            assert_string_not_equal(l.sentence, "");
            n_told++;
        }
        free_life(&l);
    }
    assert_int_equal(l.status, MB_OK); /* and all is well when nothing fails */
    same_answers(&l, &expected);
    free_life(&l);
    free_life(&expected);
    kind = NOTHING;
    print_message("%s: %lld calls, %d told\n", device_name, (long long)atomic_load(&n_calls), n_told);
    assert_true(n_told > 0);
}

static void test_every_allocation(void **state) {
    (void)state;
    fail_everywhere(MAKING, MB_ERR_MEMORY, 0, 1);
    fail_everywhere(MAKING, MB_ERR_MEMORY, 1, 1);
}

static void test_every_copy_and_wait(void **state) {
    (void)state;
    fail_everywhere(WORK, MB_ERR_DEVICE, 0, 1);
    fail_everywhere(WORK, MB_ERR_DEVICE, 1, 3);
}

/* ---- NaN ------------------------------------------------------------------------------------------- */

static void test_nan_fails_its_sequence(void **state) {
    (void)state;
    mb_model *model;
    mb_session *session;
    assert_int_equal(open_model(&model), MB_OK);
    assert_int_equal(open_session(model, &session), MB_OK);
    generation alone, all[N];
    submit(&alone, 1, model, session);
    generations_run(&alone, 1, session);
    assert_int_equal(alone.state, MB_FINISHED_LENGTH);
    for (int round = 0; round < 3; round++) { /* blocks with NaN in them are used again */
        for (int i = 0; i < N; i++) {
            generation_init_random(&all[i], model, (uint64_t)i + 1, VOCAB, POISONED, 20, N_NEW);
            if (i == 1)
                generation_keep_logprobs(&all[i], 1);
            else
                ((int32_t *)all[i].request.ids)[i == 0 ? 3 : 19] = POISONED;
            generation_submit(&all[i], session);
        }
        generations_run(all, N, session);
        for (int i = 0; i < N; i++) {
            if (i == 1) {
                assert_true(generation_same_tokens(&all[i], &alone));
            } else {
                assert_int_equal(all[i].state, MB_FAILED);
                assert_int_equal(mb_get_failure(session, all[i].id), MB_ERR_NUMERIC);
                assert_string_not_equal(mb_last_error(), "");
            }
            assert_int_equal(mb_release(session, all[i].id), MB_OK);
            generation_free(&all[i]);
        }
        assert_session_idle(session);
    }
    generation_free(&alone);
    mb_session_close(session);
    mb_model_close(model);
    assert_int_equal(atomic_load(&n_live), 0);
}

/* ---- A fault of the GPU itself, after which the process can use it no more: the last test ------------- */

static void test_fault_of_the_gpu(void **state) {
    (void)state;
    mb_model *model;
    mb_session *session;
    assert_int_equal(open_model(&model), MB_OK);
    assert_int_equal(open_session(model, &session), MB_OK);
    mb_device *device = model->device;
    generation g[N];
    for (int i = 0; i < N; i++)
        submit(&g[i], i, model, session);
    int n_unfinished = 0;
    for (int i = 0; i < 4; i++)
        assert_int_equal(mb_step(session, &n_unfinished), MB_OK);
    assert_true(n_unfinished > 0);
    if (device->n_sms > 0) { /* a table that is not there is read */
        const int32_t zero = 0;
        void *ids, *out;
        mb_stream stream;
        assert_int_equal(real.allocate(device, 256, &ids), MB_OK);
        assert_int_equal(real.allocate(device, 1 << 16, &out), MB_OK);
        assert_int_equal(real.stream_open(device, &stream), MB_OK);
        assert_int_equal(real.fill(device, ids, 256, &zero, 1, stream), MB_OK);
        mb_embed_args args = {.ids = ids, .table = model->weights.embedding, .out = out, .n_tokens = 1};
        args.dtype = model->dtype;
        args.table.data = (void *)(uintptr_t)4096;
        assert_int_equal(device->ops->embed(&args, stream), MB_OK);
        assert_int_equal(real.synchronize(device, stream), MB_ERR_DEVICE);
        mb_status status = MB_OK;
        for (int i = 0; n_unfinished > 0 && i < 100; i++)
            if (mb_step(session, &n_unfinished) != MB_OK && status == MB_OK) {
                status = MB_ERR_DEVICE;
                print_message("a step says: %s\n", mb_last_error());
                assert_non_null(strstr(mb_last_error(), "cuda"));
            }
        assert_int_equal(status, MB_ERR_DEVICE);
        assert_int_equal(n_unfinished, 0);
        for (int i = 0; i < N; i++) {
            generation_read(&g[i], session);
            assert_int_equal(g[i].state, MB_FAILED);
        }
    }
    for (int i = 0; i < N; i++)
        generation_free(&g[i]);
    mb_session_close(session);
    mb_model_close(model);
    assert_int_equal(atomic_load(&n_live), 0);
}

static int write_checkpoint(void **state) {
    (void)state;
    device_name = getenv("MOEBIUS_TEST_DEVICE") ? getenv("MOEBIUS_TEST_DEVICE") : "cpu";
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    options.hidden = 128, options.head_dim = 64, options.n_experts = 4, options.moe_intermediate = 32;
    options.vocab = VOCAB;
    options.dtype = "BF16";
    tiny_tensors tensors;
    tiny_checkpoint_tensors(&options, &tensors);
    uint16_t *row = (uint16_t *)tiny_tensors_find(&tensors, "model.embed_tokens.weight")->data;
    for (int i = 0; i < options.hidden; i++)
        row[(size_t)POISONED * (size_t)options.hidden + (size_t)i] = 0x7fc0;
    tiny_directory_make(directory);
    tiny_checkpoint_write_tensors(&options, &tensors, directory);
    tiny_tensors_free(&tensors);
    return 0;
}

static int remove_checkpoint(void **state) {
    (void)state;
    tiny_directory_remove(directory);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_allocation),
        cmocka_unit_test(test_every_copy_and_wait),
        cmocka_unit_test(test_nan_fails_its_sequence),
        cmocka_unit_test(test_fault_of_the_gpu),
    };
    return cmocka_run_group_tests(tests, write_checkpoint, remove_checkpoint);
}
