/* strings.h - characters and pieces of strings. Offsets are in bytes. */
#ifndef MB_MODEL_JINJA_STRINGS_H
#define MB_MODEL_JINJA_STRINGS_H

#include "model/jinja/value.h"

enum { JINJA_LEFT = 1, JINJA_RIGHT = 2 };
typedef enum jinja_case { JINJA_LOWER, JINJA_UPPER, JINJA_TITLE } jinja_case;

/* Where the needle stands last, with its end at or before `to`; SIZE_MAX: nowhere. */
size_t jinja_find_last(const jinja_string *text, const jinja_string *needle, size_t to);
size_t jinja_count_chars(const char *bytes, size_t n_bytes);
/* Where character i begins; the end of the string behind the last. */
size_t jinja_char_offset(const jinja_string *s, size_t i);
/* Takes away the characters of `chars` (NULL: white space) on the sides. */
void jinja_strip(const char **bytes, size_t *n_bytes, const jinja_string *chars, int sides);
void jinja_put_case(jinja_builder *out, const char *bytes, size_t n_bytes, jinja_case wanted);
/* 1: an upper-case letter, -1: a lower-case one, 0: neither. */
int jinja_case_of(int32_t code);

/* Whether there are letters of the case (1: upper, -1: lower) and none of the other. methods_strings.c */
int jinja_has_only_case(const jinja_string *s, int wanted);

/* All append the pieces to a list. most: at most so many cuts, negative: no limit. The separator is not
 * empty. */
mb_status jinja_split(jinja_run *run, const jinja_string *s, const jinja_string *separator, int64_t most,
                      jinja_list *list);
mb_status jinja_split_right(jinja_run *run, const jinja_string *s, const jinja_string *separator,
                            int64_t most, jinja_list *list);
mb_status jinja_split_words(jinja_run *run, const jinja_string *s, int64_t most, int from_right,
                            jinja_list *list);
mb_status jinja_split_lines(jinja_run *run, const jinja_string *s, int keep_ends, jinja_list *list);

mb_status jinja_replace(jinja_run *run, const jinja_string *s, const jinja_string *old,
                        const jinja_string *new, int64_t most, jinja_value *value);

#endif
