/* history_file.h - what a person typed into moebius chat, kept from one chat to the next. */
#ifndef MB_CLI_HISTORY_FILE_H
#define MB_CLI_HISTORY_FILE_H

#include <stddef.h>

typedef struct cli_history_file cli_history_file;

/* The file is $MOEBIUS_HISTORY (empty: there is none), else moebius/chat_history in $XDG_STATE_HOME or
 * ~/.local/state. Nobody else may read it. It keeps the last 1000 entries, at most 1 MiB of them; entries of
 * more than 16 KiB are not kept. Where it cannot be read or written there is no history, and no fuss about
 * it. Calls `take` for each entry, the oldest first. NULL: no history. */
cli_history_file *cli_history_file_open(void (*take)(void *user, const char *entry), void *user);
void cli_history_file_close(cli_history_file *file); /* NULL allowed */

/* Appends an entry, which may have several lines. NULL allowed. */
void cli_history_file_add(cli_history_file *file, const char *entry);

#endif
