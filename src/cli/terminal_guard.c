#include "cli/terminal_guard.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <termios.h>
#include <unistd.h>

static struct termios modes_before;
static volatile sig_atomic_t line_is_edited;

static void catch_signal(int number, void (*handler)(int)) {
    struct sigaction action = {.sa_handler = handler,
                               .sa_flags = (int)(SA_RESETHAND | SA_NODEFER | SA_RESTART)};
    sigemptyset(&action.sa_mask);
    sigaction(number, &action, NULL);
}

/* A program in the background leaves the terminal to whose it is now. */
static void put_back(void) {
    if (line_is_edited && tcgetpgrp(STDIN_FILENO) == getpgrp()) {
        (void)!write(STDOUT_FILENO, CLI_PASTE_MODE_OFF "\n", sizeof CLI_PASTE_MODE_OFF);
        tcsetattr(STDIN_FILENO, TCSANOW, &modes_before);
    }
}

/* The handler is taken away when it begins (SA_RESETHAND), so the signal that it raises ends the program. */
static void on_end(int signal_number) {
    put_back();
    raise(signal_number);
}

/* The same for a stop: the signal is not blocked here (SA_NODEFER), so the program stops within raise(). */
static void on_stop(int signal_number) {
    int error = errno;
    put_back();
    raise(signal_number);
    catch_signal(signal_number, on_stop);
    errno = error;
}

void cli_terminal_guard_open(void) {
    static const int signals[] = {SIGTERM, SIGHUP, SIGQUIT, SIGTSTP};
    if (tcgetattr(STDIN_FILENO, &modes_before) != 0)
        return;
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        struct sigaction before;
        if (sigaction(signals[i], NULL, &before) == 0 && before.sa_handler == SIG_DFL) /* not with nohup */
            catch_signal(signals[i], signals[i] == SIGTSTP ? on_stop : on_end);
    }
}

void cli_terminal_guard_line_begins(void) {
    line_is_edited = 1;
}

void cli_terminal_guard_line_ends(void) {
    line_is_edited = 0;
}
