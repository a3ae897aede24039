#include "cli/suggest.h"

#include <string.h>

enum { MAX_LENGTH = 32 };

static size_t least(size_t a, size_t b) {
    return a < b ? a : b;
}

/* Optimal string alignment: insertions, deletions, replacements and swaps of neighbours, one each. */
static size_t distance(const char *a, size_t n_a, const char *b, size_t n_b) {
    size_t rows[3][MAX_LENGTH + 1]; /* rows i, i - 1, i - 2 of the table, i modulo 3 */
    for (size_t j = 0; j <= n_b; j++)
        rows[0][j] = j;
    for (size_t i = 1; i <= n_a; i++) {
        size_t *row = rows[i % 3], *above = rows[(i + 2) % 3], *two_above = rows[(i + 1) % 3];
        row[0] = i;
        for (size_t j = 1; j <= n_b; j++) {
            row[j] = above[j - 1] + (a[i - 1] != b[j - 1]);
            row[j] = least(row[j], least(above[j], row[j - 1]) + 1);
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1])
                row[j] = least(row[j], two_above[j - 2] + 1);
        }
    }
    return rows[n_a % 3][n_b];
}

/* All letters of `part` are in `whole`, in this order: max-tokens in max-new-tokens. */
static int is_subsequence(const char *part, size_t n_part, const char *whole) {
    size_t n_found = 0;
    for (; *whole != '\0' && n_found < n_part; whole++)
        n_found += *whole == part[n_found];
    return n_found == n_part;
}

/* Two mistakes in five letters are still the same word; four mistakes at most. */
void cli_suggestion_begin(cli_suggestion *suggestion, const char *typed, size_t length) {
    size_t allowed = length < 5 ? 1 : least(length * 2 / 5, 4);
    *suggestion = (cli_suggestion){.typed = typed, .length = length, .distance = allowed + 1};
}

void cli_suggestion_offer(cli_suggestion *suggestion, const char *known) {
    size_t n_known = strlen(known), n_typed = suggestion->length, shorter = least(n_known, n_typed);
    if (n_typed < 2 || n_typed > MAX_LENGTH || n_known > MAX_LENGTH)
        return;
    size_t d = distance(suggestion->typed, n_typed, known, n_known);
    if (shorter >= 3 && memcmp(suggestion->typed, known, shorter) == 0)
        d = 1; /* one is the beginning of the other: --temp, benchmark */
    else if (n_typed >= 5 && is_subsequence(suggestion->typed, n_typed, known))
        d = least(d, (n_known - n_typed + 1) / 2); /* what is left out is half a mistake */
    if (d < suggestion->distance) {
        suggestion->distance = d;
        suggestion->nearest = known;
    }
}
