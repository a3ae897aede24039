/* candidates.h - what the Tab key offers: the ways in which the word that is being typed can go on. */
#ifndef MB_CLI_CANDIDATES_H
#define MB_CLI_CANDIDATES_H

#include <stddef.h>

typedef struct cli_candidates {
    char **items; /* whole words; a folder ends with a slash */
    size_t count, capacity;
    size_t n_typed; /* how many of the bytes before the cursor are the beginning of each of them */
} cli_candidates;

void cli_candidates_free(cli_candidates *candidates);

/* Adds a copy of `word` when it begins with typed[0, n_typed). Without memory nothing is added. */
void cli_candidates_offer(cli_candidates *candidates, const char *typed, const char *word);

/* Adds the files and folders whose path begins with `typed`; a leading ~/ stands for the home folder. Sets
 * n_typed. */
void cli_candidates_offer_paths(cli_candidates *candidates, const char *typed);

/* The bytes that all candidates begin with; at least n_typed. */
size_t cli_candidates_common(const cli_candidates *candidates);

#endif
