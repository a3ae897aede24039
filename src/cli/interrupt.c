#include "cli/interrupt.h"

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

void cli_interrupt_ends_reads(int ends) {
    struct sigaction action;
    sigaction(SIGINT, NULL, &action);
    action.sa_flags = ends ? action.sa_flags & ~SA_RESTART : action.sa_flags | SA_RESTART;
    sigaction(SIGINT, &action, NULL);
}

int cli_interrupted(void) {
    return interrupted;
}

void cli_interrupt_clear(void) {
    interrupted = 0;
}
