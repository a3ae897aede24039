/* interrupt.h - Ctrl-C as a mark that loops look at: it ends an answer or a line, and not the program. */
#ifndef MB_CLI_INTERRUPT_H
#define MB_CLI_INTERRUPT_H

/* From now on Ctrl-C only sets the mark. With second_ends, a second one before the mark is cleared ends
 * the program: a long step does not look at the mark. */
void cli_interrupt_catch(int second_ends);

int cli_interrupted(void);
void cli_interrupt_clear(void);

/* Waits until `file` can be read (or has ended) and returns 1. Returns 0 and clears the mark when it is
 * set, at the call or while this function waits: no Ctrl-C is lost in between. */
int cli_interrupt_wait(int file);

#endif
