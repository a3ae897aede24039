/* methods_strings.c - methods of strings. */
#include <string.h>

#include <utf8proc.h>

#include "model/jinja/eval.h"
#include "model/jinja/strings.h"

static const jinja_string *self_of(const jinja_given *given) {
    return given->self.of.string;
}

/* An argument that may be left out or none; *value keeps its value then. */
static mb_status take_optional_string(const jinja_given *given, int i, const jinja_string **value) {
    return given->has[i] && given->at[i].kind == JINJA_NONE ? MB_OK : jinja_take_string(given, i, value);
}

/* ---- Strings ------------------------------------------------------------------------------------------ */

static mb_status strip(const jinja_given *given, int sides, jinja_value *result) {
    const jinja_string *chars = NULL;
    MB_TRY(take_optional_string(given, 0, &chars));
    const char *bytes = self_of(given)->bytes;
    size_t n_bytes = self_of(given)->n_bytes;
    MB_TRY(jinja_charge(given->run, chars ? n_bytes / 32 * chars->n_bytes : 0));
    jinja_strip(&bytes, &n_bytes, chars, sides);
    return jinja_string_over(given->run, bytes, n_bytes, result);
}

static mb_status string_strip(const jinja_given *given, jinja_value *result) {
    return strip(given, JINJA_LEFT | JINJA_RIGHT, result);
}

static mb_status string_lstrip(const jinja_given *given, jinja_value *result) {
    return strip(given, JINJA_LEFT, result);
}

static mb_status string_rstrip(const jinja_given *given, jinja_value *result) {
    return strip(given, JINJA_RIGHT, result);
}

static mb_status split(const jinja_given *given, int from_right, jinja_value *result) {
    const jinja_string *separator = NULL;
    int64_t most = -1;
    MB_TRY(take_optional_string(given, 0, &separator));
    MB_TRY(jinja_take_int(given, 1, &most));
    MB_TRY(jinja_new_list(given->run, JINJA_LIST, 0, result));
    if (!separator)
        return jinja_split_words(given->run, self_of(given), most, from_right, result->of.list);
    if (separator->n_bytes == 0)
        return jinja_stop(given->run, "the separator of split is empty");
    return (from_right ? jinja_split_right : jinja_split)(given->run, self_of(given), separator, most,
                                                          result->of.list);
}

static mb_status string_split(const jinja_given *given, jinja_value *result) {
    return split(given, 0, result);
}

static mb_status string_rsplit(const jinja_given *given, jinja_value *result) {
    return split(given, 1, result);
}

static mb_status string_splitlines(const jinja_given *given, jinja_value *result) {
    int keep_ends = 0;
    MB_TRY(jinja_take_bool(given, 0, &keep_ends));
    MB_TRY(jinja_new_list(given->run, JINJA_LIST, 0, result));
    return jinja_split_lines(given->run, self_of(given), keep_ends, result->of.list);
}

/* The part of the string between the characters of two arguments. 0 in *is_there: start is behind the end. */
static mb_status take_part(const jinja_given *given, int i, jinja_string *part, size_t *offset,
                           int *is_there) {
    const jinja_string *s = self_of(given);
    int64_t n = (int64_t)s->n_chars, bounds[2] = {0, n};
    for (int k = 0; k < 2; k++) {
        if (given->has[i + k] && given->at[i + k].kind != JINJA_NONE)
            MB_TRY(jinja_take_int(given, i + k, &bounds[k]));
        if (bounds[k] < 0)
            bounds[k] = bounds[k] < -n ? 0 : bounds[k] + n;
    }
    *is_there = bounds[0] <= n && bounds[0] <= bounds[1];
    if (!*is_there)
        return MB_OK;
    *offset = jinja_char_offset(s, (size_t)bounds[0]);
    *part = (jinja_string){.bytes = s->bytes, .n_bytes = jinja_char_offset(s, (size_t)bounds[1])};
    return jinja_charge_bytes(given->run, s->n_bytes);
}

static int matches(const jinja_string *part, size_t offset, const jinja_string *affix, int at_end) {
    size_t n = part->n_bytes - offset;
    const char *at = at_end ? part->bytes + part->n_bytes - affix->n_bytes : part->bytes + offset;
    return affix->n_bytes <= n && (affix->n_bytes == 0 || memcmp(at, affix->bytes, affix->n_bytes) == 0);
}

static mb_status has_affix(const jinja_given *given, int at_end, jinja_value *result) {
    jinja_string part;
    size_t offset = 0;
    int is_there, is_matched = 0;
    MB_TRY(take_part(given, 1, &part, &offset, &is_there));
    const jinja_string *affix = NULL;
    if (given->at[0].kind == JINJA_TUPLE) { /* any of these */
        const jinja_list *list = given->at[0].of.list;
        for (size_t i = 0; i < list->n && is_there && !is_matched; i++)
            is_matched = list->items[i].kind == JINJA_STRING &&
                         matches(&part, offset, list->items[i].of.string, at_end);
    } else {
        MB_TRY(jinja_take_string(given, 0, &affix));
        is_matched = is_there && matches(&part, offset, affix, at_end);
    }
    *result = jinja_bool(is_matched);
    return MB_OK;
}

static mb_status string_startswith(const jinja_given *given, jinja_value *result) {
    return has_affix(given, 0, result);
}

static mb_status string_endswith(const jinja_given *given, jinja_value *result) {
    return has_affix(given, 1, result);
}

static mb_status find(const jinja_given *given, int is_last, int is_needed, jinja_value *result) {
    const jinja_string *needle = NULL;
    jinja_string part;
    size_t offset = 0, found = SIZE_MAX;
    int is_there;
    MB_TRY(jinja_take_string(given, 0, &needle));
    MB_TRY(take_part(given, 1, &part, &offset, &is_there));
    if (is_there)
        found = is_last ? jinja_find_last(&part, needle, part.n_bytes) : jinja_find(&part, needle, offset);
    if (found != SIZE_MAX && found < offset)
        found = SIZE_MAX;
    if (found == SIZE_MAX && is_needed)
        return jinja_stop(given->run, "a string does not contain what index looks for");
    *result = jinja_int(found == SIZE_MAX ? -1 : (int64_t)jinja_count_chars(part.bytes, found));
    return MB_OK;
}

static mb_status string_find(const jinja_given *given, jinja_value *result) {
    return find(given, 0, 0, result);
}

static mb_status string_rfind(const jinja_given *given, jinja_value *result) {
    return find(given, 1, 0, result);
}

static mb_status string_index(const jinja_given *given, jinja_value *result) {
    return find(given, 0, 1, result);
}

static mb_status string_rindex(const jinja_given *given, jinja_value *result) {
    return find(given, 1, 1, result);
}

static mb_status string_count(const jinja_given *given, jinja_value *result) {
    const jinja_string *needle = NULL;
    jinja_string part;
    size_t at = 0;
    int64_t n = 0;
    int is_there;
    MB_TRY(jinja_take_string(given, 0, &needle));
    MB_TRY(take_part(given, 1, &part, &at, &is_there));
    if (is_there && needle->n_bytes == 0)
        n = (int64_t)jinja_count_chars(part.bytes + at, part.n_bytes - at) + 1;
    else
        while (is_there && (at = jinja_find(&part, needle, at)) != SIZE_MAX) {
            MB_TRY(jinja_charge(given->run, n % 4 == 0));
            at += needle->n_bytes;
            n++;
        }
    *result = jinja_int(n);
    return MB_OK;
}

static mb_status string_replace(const jinja_given *given, jinja_value *result) {
    const jinja_string *old = NULL, *new = NULL;
    int64_t most = -1;
    MB_TRY(jinja_take_string(given, 0, &old));
    MB_TRY(jinja_take_string(given, 1, &new));
    MB_TRY(jinja_take_int(given, 2, &most));
    return jinja_replace(given->run, self_of(given), old, new, most, result);
}

static mb_status change_case(const jinja_given *given, jinja_case wanted, jinja_value *result) {
    jinja_builder out = {.run = given->run};
    jinja_put_case(&out, self_of(given)->bytes, self_of(given)->n_bytes, wanted);
    return jinja_built(&out, result);
}

static mb_status string_upper(const jinja_given *given, jinja_value *result) {
    return change_case(given, JINJA_UPPER, result);
}

static mb_status string_lower(const jinja_given *given, jinja_value *result) {
    return change_case(given, JINJA_LOWER, result);
}

/* The first letter large, or the first of each run of letters; all others small. */
static mb_status title(const jinja_given *given, int every_word, jinja_value *result) {
    const jinja_string *s = self_of(given);
    jinja_builder out = {.run = given->run};
    int is_behind_letter = 0;
    for (size_t i = 0, n; i < s->n_bytes; i += n) {
        int32_t code;
        n = jinja_next_char(s->bytes + i, s->n_bytes - i, &code);
        jinja_put_case(&out, s->bytes + i, n, is_behind_letter ? JINJA_LOWER : JINJA_TITLE);
        is_behind_letter = !every_word || jinja_case_of(code) != 0;
    }
    return jinja_built(&out, result);
}

static mb_status string_title(const jinja_given *given, jinja_value *result) {
    return title(given, 1, result);
}

static mb_status string_capitalize(const jinja_given *given, jinja_value *result) {
    return title(given, 0, result);
}

static mb_status string_join(const jinja_given *given, jinja_value *result) {
    jinja_list *items;
    jinja_builder out = {.run = given->run};
    MB_TRY(jinja_iterate(given->run, given->at[0], &items));
    for (size_t i = 0; i < items->n; i++) {
        if (items->items[i].kind != JINJA_STRING)
            return jinja_stop(given->run, "the method join joins strings, not a %s",
                              jinja_type_name(items->items[i]));
        MB_TRY(jinja_charge(given->run, 1));
        if (i > 0)
            jinja_put_string(&out, self_of(given));
        jinja_put_string(&out, items->items[i].of.string);
    }
    return jinja_built(&out, result);
}

static mb_status partition(const jinja_given *given, int is_last, jinja_value *result) {
    const jinja_string *s = self_of(given), *separator = NULL;
    MB_TRY(jinja_take_string(given, 0, &separator));
    if (separator->n_bytes == 0)
        return jinja_stop(given->run, "the separator of partition is empty");
    size_t at = is_last ? jinja_find_last(s, separator, s->n_bytes) : jinja_find(s, separator, 0);
    size_t ends[4] = {0, at, at + separator->n_bytes, s->n_bytes};
    if (at == SIZE_MAX)
        ends[1] = ends[2] = is_last ? 0 : s->n_bytes;
    MB_TRY(jinja_new_list(given->run, JINJA_TUPLE, 3, result));
    for (int i = 0; i < 3; i++) {
        jinja_value piece;
        MB_TRY(jinja_string_over(given->run, s->bytes + ends[i], ends[i + 1] - ends[i], &piece));
        MB_TRY(jinja_push(given->run, result->of.list, piece));
    }
    return MB_OK;
}

static mb_status string_partition(const jinja_given *given, jinja_value *result) {
    return partition(given, 0, result);
}

static mb_status string_rpartition(const jinja_given *given, jinja_value *result) {
    return partition(given, 1, result);
}

static mb_status remove_affix(const jinja_given *given, int at_end, jinja_value *result) {
    const jinja_string *s = self_of(given), *affix = NULL;
    MB_TRY(jinja_take_string(given, 0, &affix));
    size_t n = matches(s, 0, affix, at_end) ? affix->n_bytes : 0;
    return jinja_string_over(given->run, s->bytes + (at_end ? 0 : n), s->n_bytes - n, result);
}

static mb_status string_removeprefix(const jinja_given *given, jinja_value *result) {
    return remove_affix(given, 0, result);
}

static mb_status string_removesuffix(const jinja_given *given, jinja_value *result) {
    return remove_affix(given, 1, result);
}

/* Whether there are characters and all are of a kind. */
static mb_status all_chars(const jinja_given *given, int (*is_kind)(int32_t code), jinja_value *result) {
    const jinja_string *s = self_of(given);
    int all = s->n_bytes > 0;
    for (size_t i = 0, n; i < s->n_bytes && all; i += n) {
        int32_t code;
        n = jinja_next_char(s->bytes + i, s->n_bytes - i, &code);
        all = is_kind(code);
    }
    *result = jinja_bool(all);
    return jinja_charge(given->run, s->n_bytes / 4);
}

static int is_letter(int32_t code) {
    utf8proc_category_t category = utf8proc_category(code);
    return category >= UTF8PROC_CATEGORY_LU && category <= UTF8PROC_CATEGORY_LO;
}

static int is_digit(int32_t code) {
    return utf8proc_category(code) == UTF8PROC_CATEGORY_ND;
}

static int is_letter_or_digit(int32_t code) {
    return is_letter(code) || is_digit(code);
}

static mb_status string_isalpha(const jinja_given *given, jinja_value *result) {
    return all_chars(given, is_letter, result);
}

static mb_status string_isdigit(const jinja_given *given, jinja_value *result) {
    return all_chars(given, is_digit, result);
}

static mb_status string_isalnum(const jinja_given *given, jinja_value *result) {
    return all_chars(given, is_letter_or_digit, result);
}

static mb_status string_isspace(const jinja_given *given, jinja_value *result) {
    return all_chars(given, jinja_is_space, result);
}

int jinja_has_only_case(const jinja_string *s, int wanted) {
    int has_wanted = 0;
    for (size_t i = 0, n; i < s->n_bytes; i += n) {
        int32_t code;
        n = jinja_next_char(s->bytes + i, s->n_bytes - i, &code);
        if (jinja_case_of(code) == -wanted)
            return 0;
        has_wanted |= jinja_case_of(code) == wanted;
    }
    return has_wanted;
}

static mb_status string_isupper(const jinja_given *given, jinja_value *result) {
    *result = jinja_bool(jinja_has_only_case(self_of(given), 1));
    return jinja_charge(given->run, self_of(given)->n_bytes / 4);
}

static mb_status string_islower(const jinja_given *given, jinja_value *result) {
    *result = jinja_bool(jinja_has_only_case(self_of(given), -1));
    return jinja_charge(given->run, self_of(given)->n_bytes / 4);
}

const jinja_function jinja_string_methods[] = {
    {"strip", string_strip, "chars", 0},
    {"lstrip", string_lstrip, "chars", 0},
    {"rstrip", string_rstrip, "chars", 0},
    {"split", string_split, "sep maxsplit", 0},
    {"rsplit", string_rsplit, "sep maxsplit", 0},
    {"splitlines", string_splitlines, "keepends", 0},
    {"startswith", string_startswith, "prefix start end", 1},
    {"endswith", string_endswith, "suffix start end", 1},
    {"find", string_find, "sub start end", 1},
    {"rfind", string_rfind, "sub start end", 1},
    {"index", string_index, "sub start end", 1},
    {"rindex", string_rindex, "sub start end", 1},
    {"count", string_count, "sub start end", 1},
    {"replace", string_replace, "old new count", 2},
    {"upper", string_upper, "", 0},
    {"lower", string_lower, "", 0},
    {"title", string_title, "", 0},
    {"capitalize", string_capitalize, "", 0},
    {"join", string_join, "iterable", 1},
    {"partition", string_partition, "sep", 1},
    {"rpartition", string_rpartition, "sep", 1},
    {"removeprefix", string_removeprefix, "prefix", 1},
    {"removesuffix", string_removesuffix, "suffix", 1},
    {"isalpha", string_isalpha, "", 0},
    {"isdigit", string_isdigit, "", 0},
    {"isalnum", string_isalnum, "", 0},
    {"isspace", string_isspace, "", 0},
    {"isupper", string_isupper, "", 0},
    {"islower", string_islower, "", 0},
    {"casefold", NULL, NULL, 0},
    {"center", NULL, NULL, 0},
    {"encode", NULL, NULL, 0},
    {"expandtabs", NULL, NULL, 0},
    {"format", NULL, NULL, 0},
    {"format_map", NULL, NULL, 0},
    {"isascii", NULL, NULL, 0},
    {"isdecimal", NULL, NULL, 0},
    {"isidentifier", NULL, NULL, 0},
    {"isnumeric", NULL, NULL, 0},
    {"isprintable", NULL, NULL, 0},
    {"istitle", NULL, NULL, 0},
    {"ljust", NULL, NULL, 0},
    {"maketrans", NULL, NULL, 0},
    {"rjust", NULL, NULL, 0},
    {"swapcase", NULL, NULL, 0},
    {"translate", NULL, NULL, 0},
    {"zfill", NULL, NULL, 0},
    {NULL, NULL, NULL, 0},
};
