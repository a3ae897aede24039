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
    struct sigaction action = {.sa_handler = on_interrupt}; /* without SA_RESTART: a read returns EINTR */
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
