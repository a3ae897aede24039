/* interrupt.h - Ctrl-C as a mark that loops look at: it ends an answer or a line, and not the program. */
#ifndef MB_CLI_INTERRUPT_H
#define MB_CLI_INTERRUPT_H

/* From now on Ctrl-C only sets the mark. With second_ends, a second one before the mark is cleared ends
 * the program: a long step does not look at the mark. */
void cli_interrupt_catch(int second_ends);

int cli_interrupted(void);
void cli_interrupt_clear(void);

/* From now on a change of the terminal's size sets a mark of its own. */
void cli_resize_catch(void);

/* And so does that the program goes on after it was stopped (Ctrl-Z and fg). */
void cli_continue_catch(void);

typedef enum cli_wait { CLI_WAIT_READY, CLI_WAIT_INTERRUPTED, CLI_WAIT_RESIZED, CLI_WAIT_CONTINUED } cli_wait;

/* Waits until `file` can be read (or has ended), or one of the marks is set, at the call or while this
 * function waits: no Ctrl-C is lost in between. The mark that is told is cleared. */
cli_wait cli_interrupt_wait(int file);

#endif
