/* interrupt.h - Ctrl-C as a question that loops ask, not as a death. */
#ifndef MB_CLI_INTERRUPT_H
#define MB_CLI_INTERRUPT_H

/* From now on Ctrl-C only sets a mark. With second_ends, a second one before cli_interrupt_clear ends the
 * program, for when a long step does not look. */
void cli_interrupt_catch(int second_ends);

/* Whether Ctrl-C makes a read() that waits return EINTR (at a prompt) or go on waiting. */
void cli_interrupt_ends_reads(int ends);

int cli_interrupted(void);
void cli_interrupt_clear(void);

#endif
