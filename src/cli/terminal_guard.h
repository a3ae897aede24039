/* terminal_guard.h - a program that a signal ends or stops while a line is edited leaves the terminal as it was. */
#ifndef MB_CLI_TERMINAL_GUARD_H
#define MB_CLI_TERMINAL_GUARD_H

/* Notes the modes of the terminal at standard input. From now on SIGTERM, SIGHUP and SIGQUIT, where they would
 * end the program, put these modes back before they do, and so does SIGTSTP (Ctrl-Z) before it stops the program.
 * For a program with one terminal: call it once. */
void cli_terminal_guard_open(void);

/* Around each line that is edited: only then are the modes others, and is there something to put back. */
void cli_terminal_guard_line_begins(void);
void cli_terminal_guard_line_ends(void);

/* A terminal that knows bracketed paste puts pasted text between two marks, while the mode is on. */
#define CLI_PASTE_MODE_ON "\033[?2004h"
#define CLI_PASTE_MODE_OFF "\033[?2004l"

#endif
