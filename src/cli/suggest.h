/* suggest.h - "did you mean ...": the known word that is nearest to a mistyped one. */
#ifndef MB_CLI_SUGGEST_H
#define MB_CLI_SUGGEST_H

#include <stddef.h>

typedef struct cli_suggestion {
    const char *typed;
    size_t length;
    const char *nearest; /* NULL: no known word is near */
    size_t distance;     /* of `nearest`; a farther word is not taken */
} cli_suggestion;

void cli_suggestion_begin(cli_suggestion *suggestion, const char *typed, size_t length);

/* Takes `known` when it is nearer than all words before. */
void cli_suggestion_offer(cli_suggestion *suggestion, const char *known);

#endif
