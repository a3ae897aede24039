/*
 * added_tokens.h - tokens that are cut out of the text before anything else happens to the text: the leftmost
 * match first, the longest of those that start together.
 */
#ifndef MB_MODEL_ADDED_TOKENS_H
#define MB_MODEL_ADDED_TOKENS_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

enum { MB_ADDED_TOKEN_MAX_BYTES = 512 }; /* bounds the work at each byte of the text */

typedef struct mb_added_token {
    char *match; /* what is looked for in the text; the content, or its NFC */
    size_t n_match;
    char *content;
    size_t n_content;
    int32_t id;
    uint8_t is_special;
    uint8_t is_normalized;             /* looked for in the normalised text, not in the raw text */
    uint8_t is_single_word;            /* no match where a word goes on at either side */
    uint8_t strips_left, strips_right; /* white space at that side belongs to the match */
} mb_added_token;

/* Finds the tokens that are looked for in the raw text, or the tokens that are looked for in the normalised
 * text. */
typedef struct mb_added_matcher {
    const mb_added_token **sorted; /* by their bytes */
    size_t n_tokens;
    uint32_t bucket[257]; /* tokens whose first byte is b: sorted[bucket[b]] to sorted[bucket[b + 1] - 1] */
} mb_added_matcher;

/* Takes the tokens whose is_normalized is as given. The array must stay where it is. */
mb_status mb_added_matcher_init(mb_added_matcher *matcher, const mb_added_token *tokens, size_t n_tokens,
                                int is_normalized);
void mb_added_matcher_free(mb_added_matcher *matcher);

/* Two tokens that are looked for as the same text, or NULL. */
const mb_added_token *mb_added_matcher_duplicate(const mb_added_matcher *matcher);

/* The first match that starts at `from` or later; NULL when there is none. The match is at text[*start].
 * Flags are the caller's to heed. */
const mb_added_token *mb_added_matcher_find(const mb_added_matcher *matcher, const char *text, size_t n_bytes,
                                            size_t from, size_t *start);

#endif
