/*
 * pattern.h - translates a pattern of the reference tokenizer's engine (Oniguruma, Ruby syntax) for PCRE2.
 *
 * Only what both engines read alike gets through, and what PCRE2 can be told in other words:
 *   characters   letters and signs as they are, escaped signs, \r \n \t \f, \xHH (ASCII), \x{H...}, \uHHHH
 *   categories   \p{X}, \P{X}, \p{^X} of a general category X, by its short or its long name (Lu,
 *                Uppercase_Letter); \s \S \d \D
 *   the rest     . ^ $ | classes without classes in them, repeats, (?: (?i: (?= (?! (?<= (?<! (?>
 * Everything else is refused with a sentence: backreferences, \w and \b (the engines' words differ),
 * scripts such as \p{Han}, names, options, recursion.
 */
#ifndef MB_MODEL_PATTERN_H
#define MB_MODEL_PATTERN_H

#include "base/status.h"
#include "model/text_buffer.h"

/* Appends the translation of a pattern (well-formed UTF-8, zero-terminated) to *out. MB_ERR_UNSUPPORTED: the
 * sentence names `path`, the construct and its byte. Running out of memory is noted in *out, as text_buffer.h
 * says. */
mb_status mb_pattern_translate(const char *path, const char *pattern, mb_text_buffer *out);

#endif
