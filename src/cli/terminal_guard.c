#include "cli/terminal_guard.h"

#include <signal.h>
#include <stddef.h>
#include <termios.h>
#include <unistd.h>

static struct termios modes_before;
static volatile sig_atomic_t line_is_edited;

/* The handler is taken away when it begins (SA_RESETHAND), so the signal that it raises ends the program. A program
 * in the background leaves the terminal to whose it is now. */
static void on_end(int signal_number) {
    if (line_is_edited && tcgetpgrp(STDIN_FILENO) == getpgrp()) {
        (void)!write(STDOUT_FILENO, CLI_PASTE_MODE_OFF "\n", sizeof CLI_PASTE_MODE_OFF);
        tcsetattr(STDIN_FILENO, TCSANOW, &modes_before);
    }
    raise(signal_number);
}

void cli_terminal_guard_open(void) {
    static const int signals[] = {SIGTERM, SIGHUP, SIGQUIT};
    if (tcgetattr(STDIN_FILENO, &modes_before) != 0)
        return;
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        struct sigaction action, before;
        if (sigaction(signals[i], NULL, &before) != 0 || before.sa_handler != SIG_DFL)
            continue; /* nohup */
        action = (struct sigaction){.sa_handler = on_end, .sa_flags = (int)SA_RESETHAND};
        sigemptyset(&action.sa_mask);
        sigaction(signals[i], &action, NULL);
    }
}

void cli_terminal_guard_line_begins(void) {
    line_is_edited = 1;
}

void cli_terminal_guard_line_ends(void) {
    line_is_edited = 0;
}
