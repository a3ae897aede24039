#define _GNU_SOURCE /* ppoll */
#include "cli/interrupt.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <unistd.h>

#include "cli/options.h"

static volatile sig_atomic_t interrupted, second_interrupt_ends;

static void on_interrupt(int signal_number) {
    (void)signal_number;
    if (interrupted && second_interrupt_ends)
        _exit(CLI_INTERRUPTED);
    interrupted = 1;
}

void cli_interrupt_catch(int second_ends) {
    /* SA_RESTART: stdio loses what it holds when a write to stdout is interrupted. */
    struct sigaction action = {.sa_handler = on_interrupt, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    second_interrupt_ends = second_ends;
    sigaction(SIGINT, &action, NULL);
}

int cli_interrupted(void) {
    return interrupted;
}

void cli_interrupt_clear(void) {
    interrupted = 0;
}

/* The signal is blocked but for the wait itself: between the look at the mark and a plain read() it
 * would set the mark, and the read would go on waiting. */
int cli_interrupt_wait(int file) {
    struct pollfd poll_file = {.fd = file, .events = POLLIN};
    sigset_t interrupt, before;
    int ready = 0;
    sigemptyset(&interrupt);
    sigaddset(&interrupt, SIGINT);
    sigprocmask(SIG_BLOCK, &interrupt, &before);
    while (!interrupted && !ready)
        ready =
            ppoll(&poll_file, 1, NULL, &before) >= 0 || errno != EINTR; /* other errors: read() tells them */
    interrupted = 0;
    sigprocmask(SIG_SETMASK, &before, NULL);
    return ready;
}
