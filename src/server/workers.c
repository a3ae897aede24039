#include "server/workers.h"

#include <pthread.h>

#include "base/alloc.h"

struct server_workers {
    pthread_t *threads;
    int n_threads;
    pthread_mutex_t lock; /* guards all below */
    pthread_cond_t given;
    server_work *first, **last;
    int is_closing;
};

static server_work *take(server_workers *workers) {
    pthread_mutex_lock(&workers->lock);
    while (workers->first == NULL && !workers->is_closing)
        pthread_cond_wait(&workers->given, &workers->lock);
    server_work *work = workers->first;
    if (work != NULL)
        workers->first = work->next;
    if (workers->first == NULL)
        workers->last = &workers->first;
    pthread_mutex_unlock(&workers->lock);
    return work;
}

static void *work_loop(void *user) {
    server_work *work;
    while ((work = take(user)) != NULL)
        work->run(work);
    return NULL;
}

mb_status server_workers_open(int n_threads, server_workers **workers) {
    server_workers *opened = mb_calloc(1, sizeof *opened);
    *workers = NULL;
    if (opened == NULL)
        return mb_fail(MB_ERR_MEMORY, "no memory for the server");
    opened->last = &opened->first;
    pthread_mutex_init(&opened->lock, NULL);
    pthread_cond_init(&opened->given, NULL);
    opened->threads = mb_malloc_array((size_t)n_threads, sizeof *opened->threads);
    while (opened->threads != NULL && opened->n_threads < n_threads &&
           pthread_create(&opened->threads[opened->n_threads], NULL, work_loop, opened) == 0)
        opened->n_threads++;
    if (opened->n_threads == 0) {
        server_workers_close(opened);
        return mb_fail(MB_ERR_MEMORY, "the system gave no threads for the server");
    }
    *workers = opened;
    return MB_OK;
}

void server_workers_stop(server_workers *workers) {
    if (workers == NULL)
        return;
    pthread_mutex_lock(&workers->lock);
    workers->is_closing = 1;
    pthread_cond_broadcast(&workers->given);
    pthread_mutex_unlock(&workers->lock);
    for (int i = 0; i < workers->n_threads; i++)
        pthread_join(workers->threads[i], NULL);
    workers->n_threads = 0;
}

void server_workers_close(server_workers *workers) {
    if (workers == NULL)
        return;
    server_workers_stop(workers);
    mb_free(workers->threads);
    pthread_cond_destroy(&workers->given);
    pthread_mutex_destroy(&workers->lock);
    mb_free(workers);
}

int server_workers_give(server_workers *workers, server_work *work) {
    work->next = NULL;
    pthread_mutex_lock(&workers->lock);
    int takes = !workers->is_closing;
    if (takes) {
        *workers->last = work;
        workers->last = &work->next;
        pthread_cond_signal(&workers->given);
    }
    pthread_mutex_unlock(&workers->lock);
    return takes ? 0 : -1;
}
