/*
 * unicode_versions.h - where the Unicode tables of the reference tokenizer (Hugging Face's `tokenizers`) and
 * of our libraries (PCRE2, utf8proc) differ, so that both cut and normalise every text alike.
 *
 * `tokenizers` matches patterns with Unicode 16's categories, and normalises with the combining classes and
 * compositions of Unicode 9. PCRE2 and utf8proc come in many versions; the tables here cover 14 to 18. The
 * tests compare every code point.
 */
#ifndef MB_MODEL_UNICODE_VERSIONS_H
#define MB_MODEL_UNICODE_VERSIONS_H

#include <stdint.h>

/* For a character that some library has in another general category than the reference: a character of equal
 * UTF-8 length that every version has in the reference's category. For all others: the character itself. */
uint32_t mb_unicode_stand_in(uint32_t character);

/* Whether the reference's normalisation knows no combining class and no composition of this character
 * although newer tables have one: it stays as it is, and nothing moves or composes across it. */
int mb_unicode_is_inert(uint32_t character);

/* \s and \w of the regular expressions that the reference applies around added tokens (Unicode's White_Space;
 * Annex C of Unicode Technical Standard 18). */
int mb_unicode_is_space(uint32_t character);
int mb_unicode_is_word(uint32_t character);

#endif
