/*
 * place.h - for the public operators: where the memory of a call is, and so which op table runs it.
 *
 * The first data pointer of the arguments that is not NULL decides; without any, there is nothing to do,
 * which the CPU does. A GPU's pointer makes that GPU the thread's current one for the time of the call: so a
 * NULL stream is its default stream, and any other stream must be one of its own. Asking costs
 * 0.1 to 0.2 us; in builds with CUDA a process that has not used it yet waits for its start (0.1 s on an
 * H100) at the first call.
 */
#ifndef MB_DEVICE_PLACE_H
#define MB_DEVICE_PLACE_H

#include "device/device.h"

typedef struct mb_place {
    const mb_ops *ops;
    int former; /* the current GPU before the call, when ops is a GPU's */
} mb_place;

mb_status mb_place_enter(const void *const *pointers, int n_pointers, mb_place *where);
#define MB_PLACE_ENTER(where, ...)                     \
    mb_place_enter((const void *const[]){__VA_ARGS__}, \
                   (int)(sizeof((const void *const[]){__VA_ARGS__}) / sizeof(void *)), where)

/* Ends what mb_place_enter began and passes `status` on: `return mb_place_leave(&where, call)`. */
mb_status mb_place_leave(const mb_place *where, mb_status status);

/* Workspaces are 256-byte aligned everywhere. `op` begins the error sentence. */
mb_status mb_place_check_workspace(const char *op, const void *workspace);

#endif
