/* time.c - mb_device_time: the times of one piece of work, the same way on every device. */
#include "base/status.h"
#include "device/device.h"

enum { WARM_UPS = 3, FLUSH_BYTES = 256 << 20 /* several times the L2 cache */ };

/* All that timing holds; zeroed, every part may be closed. */
typedef struct stopwatch {
    mb_device *device;
    mb_device_work work;
    const void *context;
    mb_stream stream;
    mb_event *start, *stop;
    mb_graph *graph; /* NULL: the device has no graphs, the work is enqueued plainly */
    void *flush;     /* NULL: not a GPU */
} stopwatch;

static mb_status set_up(stopwatch *s) {
    mb_device *device = s->device;
    MB_TRY(device->stream_open(device, &s->stream));
    MB_TRY(device->event_open(device, 1, &s->start));
    MB_TRY(device->event_open(device, 1, &s->stop));
    if (device->n_sms > 0)
        MB_TRY(device->allocate(device, FLUSH_BYTES, &s->flush));
    /* Once plainly: kernels that are loaded on first use cannot be captured before. */
    MB_TRY(s->work(s->context, s->stream));
    MB_TRY(device->synchronize(device, s->stream));
    /* Without graphs run_once enqueues the work itself. */
    mb_status status = mb_device_capture(device, s->work, s->context, s->stream, &s->graph);
    return status == MB_ERR_UNSUPPORTED ? MB_OK : status;
}

static mb_status run_once(const stopwatch *s, double *us) {
    mb_device *device = s->device;
    const unsigned char pattern = 0x5a;
    if (s->flush)
        MB_TRY(device->fill(device, s->flush, FLUSH_BYTES, &pattern, 1, s->stream));
    MB_TRY(device->event_record(device, s->start, s->stream));
    MB_TRY(s->graph ? device->replay(device, s->graph, s->stream) : s->work(s->context, s->stream));
    MB_TRY(device->event_record(device, s->stop, s->stream));
    MB_TRY(device->event_synchronize(device, s->stop));
    return device->event_elapsed(device, s->start, s->stop, us);
}

static void tear_down(const stopwatch *s) {
    mb_device *device = s->device;
    device->graph_close(device, s->graph);
    device->free(device, s->flush);
    device->event_close(device, s->stop);
    device->event_close(device, s->start);
    device->stream_close(device, s->stream);
}

mb_status mb_device_time(mb_device *device, mb_device_work work, const void *context, int n_repeats,
                         double *times) {
    stopwatch s = {.device = device, .work = work, .context = context};
    int n_warm_ups = device->n_sms > 0 ? WARM_UPS : 0; /* set_up has run it once */
    double unused;
    mb_status status = set_up(&s);
    for (int i = -n_warm_ups; i < n_repeats && status == MB_OK; i++)
        status = run_once(&s, i < 0 ? &unused : &times[i]);
    tear_down(&s);
    return status;
}
