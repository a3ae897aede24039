#define _GNU_SOURCE /* ppoll */
#include "cli/interrupt.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stddef.h>
#include <unistd.h>

#include "cli/options.h"

static volatile sig_atomic_t interrupted, second_interrupt_ends, resized, continued;

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

static void on_resize(int signal_number) {
    (void)signal_number;
    resized = 1;
}

void cli_resize_catch(void) {
    struct sigaction action = {.sa_handler = on_resize, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGWINCH, &action, NULL);
}

static void on_continue(int signal_number) {
    (void)signal_number;
    continued = 1;
}

void cli_continue_catch(void) {
    struct sigaction action = {.sa_handler = on_continue, .sa_flags = SA_RESTART};
    sigemptyset(&action.sa_mask);
    sigaction(SIGCONT, &action, NULL);
}

static int clear(volatile sig_atomic_t *mark) {
    int was_set = *mark;
    *mark = 0;
    return was_set;
}

/* The signals are blocked but for the wait itself: between the look at a mark and a plain read() one
 * would set the mark, and the read would go on waiting. */
cli_wait cli_interrupt_wait(int file) {
    struct pollfd poll_file = {.fd = file, .events = POLLIN};
    sigset_t signals, before;
    int ready = 0;
    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGWINCH);
    sigaddset(&signals, SIGCONT);
    sigprocmask(SIG_BLOCK, &signals, &before);
    while (!interrupted && !resized && !continued && !ready)
        ready =
            ppoll(&poll_file, 1, NULL, &before) >= 0 || errno != EINTR; /* other errors: read() tells them */
    cli_wait result = CLI_WAIT_READY;
    if (clear(&interrupted))
        result = CLI_WAIT_INTERRUPTED;
    else if (clear(&continued))
        result = CLI_WAIT_CONTINUED;
    else if (clear(&resized))
        result = CLI_WAIT_RESIZED;
    sigprocmask(SIG_SETMASK, &before, NULL);
    return result;
}
