#include "model/tokenizer/added_tokens.h"

#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"

static int compare_matches(const mb_added_token *a, const mb_added_token *b) {
    size_t n = a->n_match < b->n_match ? a->n_match : b->n_match;
    int order = memcmp(a->match, b->match, n);
    return order ? order : (a->n_match > b->n_match) - (a->n_match < b->n_match);
}

static int compare(const void *a, const void *b) {
    return compare_matches(*(const mb_added_token *const *)a, *(const mb_added_token *const *)b);
}

mb_status mb_added_matcher_init(mb_added_matcher *matcher, const mb_added_token *tokens, size_t n_tokens,
                                int is_normalized) {
    *matcher = (mb_added_matcher){0};
    matcher->sorted = mb_malloc_array(n_tokens, sizeof *matcher->sorted);
    if (!matcher->sorted)
        return mb_fail(MB_ERR_MEMORY, "no memory for %zu added tokens", n_tokens);
    for (size_t i = 0; i < n_tokens; i++)
        if (tokens[i].is_normalized == is_normalized)
            matcher->sorted[matcher->n_tokens++] = &tokens[i];
    qsort(matcher->sorted, matcher->n_tokens, sizeof *matcher->sorted, compare);
    for (size_t i = 0; i < matcher->n_tokens; i++)
        matcher->bucket[(unsigned char)matcher->sorted[i]->match[0] + 1]++;
    for (size_t b = 0; b < 256; b++)
        matcher->bucket[b + 1] += matcher->bucket[b];
    return MB_OK;
}

void mb_added_matcher_free(mb_added_matcher *matcher) {
    mb_free(matcher->sorted);
    *matcher = (mb_added_matcher){0};
}

const mb_added_token *mb_added_matcher_duplicate(const mb_added_matcher *matcher) {
    for (size_t i = 1; i < matcher->n_tokens; i++)
        if (compare_matches(matcher->sorted[i - 1], matcher->sorted[i]) == 0)
            return matcher->sorted[i];
    return NULL;
}

/* The tokens sorted[low, high) agree in their first `depth` bytes, and all are longer. Returns the first of
 * them whose next byte is at least `byte`. */
static size_t lower_bound(const mb_added_matcher *matcher, size_t low, size_t high, size_t depth,
                          unsigned byte) {
    while (low < high) {
        size_t middle = (low + high) / 2;
        if ((unsigned char)matcher->sorted[middle]->match[depth] < byte)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* The longest token at the start of the text. */
static const mb_added_token *longest_match(const mb_added_matcher *matcher, const char *text,
                                           size_t n_bytes) {
    const mb_added_token *longest = NULL;
    unsigned char first = (unsigned char)text[0];
    size_t low = matcher->bucket[first], high = matcher->bucket[first + 1];
    for (size_t depth = 1; low < high; depth++) {
        /* A token that ends here sorts before the longer tokens that begin with it. */
        if (matcher->sorted[low]->n_match == depth)
            longest = matcher->sorted[low++];
        if (depth == n_bytes)
            break;
        unsigned byte = (unsigned char)text[depth];
        low = lower_bound(matcher, low, high, depth, byte);
        high = lower_bound(matcher, low, high, depth, byte + 1);
    }
    return longest;
}

const mb_added_token *mb_added_matcher_find(const mb_added_matcher *matcher, const char *text, size_t n_bytes,
                                            size_t from, size_t *start) {
    if (matcher->n_tokens == 0)
        return NULL;
    for (size_t i = from; i < n_bytes; i++) {
        unsigned char first = (unsigned char)text[i];
        if (matcher->bucket[first] == matcher->bucket[first + 1])
            continue;
        const mb_added_token *token = longest_match(matcher, text + i, n_bytes - i);
        if (token) {
            *start = i;
            return token;
        }
    }
    return NULL;
}
