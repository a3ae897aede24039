/* workers.h - threads that do what would hold up the HTTP threads: parsing, rendering, tokenizing. */
#ifndef MB_SERVER_WORKERS_H
#define MB_SERVER_WORKERS_H

#include "base/status.h"

typedef struct server_workers server_workers;

typedef struct server_work {
    void (*run)(struct server_work *work); /* frees it */
    struct server_work *next;
} server_work;

mb_status server_workers_open(int n_threads, server_workers **workers);
/* Ends the threads when all that was given is done. NULL allowed, here and below. */
void server_workers_stop(server_workers *workers);
void server_workers_close(server_workers *workers); /* stops them first; nobody may give afterwards */
/* First come, first served. Returns 0; -1 after server_workers_stop, and then the work
 * is the caller's still. */
int server_workers_give(server_workers *workers, server_work *work);

#endif
