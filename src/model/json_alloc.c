#include "model/json_alloc.h"

#include <jansson.h>
#include <pthread.h>
#include <stdatomic.h>

#include "base/alloc.h"

static _Thread_local struct { int inside, out_of_memory; } here;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards n_inside and jansson's pair */
static int n_inside;                                     /* threads */

/* The program's pair, kept after the last thread left: a thread that is not inside may be on its way here. */
static _Atomic(json_malloc_t) program_allocate;
static _Atomic(json_free_t) program_release;

static void *allocate(size_t n_bytes) {
    if (!here.inside)
        return atomic_load(&program_allocate)(n_bytes);
    void *pointer = mb_malloc(n_bytes);
    if (!pointer)
        here.out_of_memory = 1;
    return pointer;
}

static void release(void *pointer) {
    if (here.inside)
        mb_free(pointer);
    else
        atomic_load (&program_release)(pointer);
}

void mb_json_enter(void) {
    pthread_mutex_lock(&lock);
    if (n_inside++ == 0) {
        json_malloc_t theirs_allocate;
        json_free_t theirs_release;
        json_get_alloc_funcs(&theirs_allocate, &theirs_release);
        atomic_store(&program_allocate, theirs_allocate);
        atomic_store(&program_release, theirs_release);
        json_set_alloc_funcs(allocate, release);
    }
    pthread_mutex_unlock(&lock);
    here.inside = 1;
    here.out_of_memory = 0;
}

int mb_json_leave(void) {
    here.inside = 0;
    pthread_mutex_lock(&lock);
    if (--n_inside == 0)
        json_set_alloc_funcs(atomic_load(&program_allocate), atomic_load(&program_release));
    pthread_mutex_unlock(&lock);
    return here.out_of_memory;
}
