/* number_range.c - integers and decimals between bounds, digit by digit. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "grammar/schema_parts.h"

enum {
    INTEGER_DIGITS = 18,
    /* A decimal has at most so many digits, and so many of them after the point. With more, two that differ
     * could be the same double, and one that is above a bound could be read as the bound. */
    WHOLE_DIGITS = 15,
    FRACTION_DIGITS = 6,
};

static const mb_expr *digits(mb_builder *b, int first, int last) {
    return mb_expr_byte(b, '0' + first, '0' + last);
}

static const mb_expr *any_digits(mb_builder *b, int min, int max) {
    return mb_expr_repeat(b, digits(b, 0, 9), min, max);
}

/* ---- Whole numbers ---------------------------------------------------------------------------------- */

static int is_all(const char *text, int n, char digit) {
    for (int i = 0; i < n; i++)
        if (text[i] != digit)
            return 0;
    return 1;
}

/* Numbers of n digits from low to high. */
static const mb_expr *same_length(mb_builder *b, const char *low, const char *high, int n) {
    static const char nines[] = "99999999999999999999", zeros[] = "00000000000000000000";
    if (n == 0)
        return mb_expr_empty();
    if (is_all(low, n, '0') && is_all(high, n, '9'))
        return any_digits(b, n, n);
    int first = low[0] - '0', last = high[0] - '0';
    if (first == last)
        return mb_expr_pair(b, digits(b, first, first), same_length(b, low + 1, high + 1, n - 1));
    const mb_expr *ways[] = {
        mb_expr_pair(b, digits(b, first, first), same_length(b, low + 1, nines, n - 1)),
        first + 1 < last ? mb_expr_pair(b, digits(b, first + 1, last - 1), any_digits(b, n - 1, n - 1))
                         : mb_expr_never(),
        mb_expr_pair(b, digits(b, last, last), same_length(b, zeros, high + 1, n - 1)),
    };
    return mb_expr_choice(b, ways, 3);
}

/* 0 <= low; nothing when high < low. */
static const mb_expr *naturals(mb_builder *b, int64_t low, int64_t high) {
    char low_text[24], high_text[24], end_text[24];
    mb_expr_list list = {0};
    snprintf(high_text, sizeof high_text, "%lld", (long long)high);
    while (low <= high) { /* length by length */
        int64_t end = 9;
        while (end < low)
            end = end * 10 + 9;
        end = end < high ? end : high;
        snprintf(low_text, sizeof low_text, "%lld", (long long)low);
        snprintf(end_text, sizeof end_text, "%lld", (long long)end);
        mb_expr_add(b, &list, same_length(b, low_text, end_text, (int)strlen(low_text)));
        low = end + 1;
    }
    return mb_expr_list_choice(b, &list);
}

static const mb_expr *integers(mb_builder *b, int64_t low, int64_t high) {
    const mb_expr *ways[] = {
        high >= 0 ? naturals(b, low > 0 ? low : 0, high) : mb_expr_never(),
        low < 0 ? mb_expr_pair(b, mb_expr_string(b, "-"), naturals(b, high < 0 ? -high : 1, -low))
                : mb_expr_never(),
    };
    return mb_expr_choice(b, ways, 2);
}

static int64_t largest(int n_digits) {
    int64_t n = 9;
    while (--n_digits > 0)
        n = n * 10 + 9;
    return n;
}

static int64_t clamp(double value, int64_t most) {
    return value >= (double)most ? most : value <= (double)-most ? -most : (int64_t)value;
}

const mb_expr *mb_integers_between(mb_builder *b, const mb_bound *least, const mb_bound *most) {
    int64_t limit = largest(INTEGER_DIGITS), low = -limit, high = limit;
    if (least->is_set) {
        double first = ceil(least->value);
        if (first > (double)limit)
            return mb_expr_never();
        low = clamp(first, limit);
        low += least->is_strict && first == least->value && low < limit;
    }
    if (most->is_set) {
        double last = floor(most->value);
        if (last < (double)-limit)
            return mb_expr_never();
        high = clamp(last, limit);
        high -= most->is_strict && last == most->value && high > -limit;
    }
    return low <= high ? integers(b, low, high) : mb_expr_never();
}

/* ---- Decimals --------------------------------------------------------------------------------------- */

/* A bound's absolute value: digits before and after the point. */
typedef struct decimal {
    int64_t whole;
    char fraction[32]; /* without zeros at its end */
    int is_huge;       /* beyond all that can be written */
} decimal;

/* The shortest text that is read as the same double. */
static decimal decimal_of(double value) {
    char text[64];
    decimal d = {0};
    value = fabs(value);
    d.is_huge = value >= 1e15;
    if (d.is_huge)
        return d;
    for (int places = 0; places <= 30; places++) {
        snprintf(text, sizeof text, "%.*f", places, value);
        if (strtod(text, NULL) == value)
            break;
    }
    char *point = strchr(text, '.');
    if (point) {
        *point++ = '\0';
        snprintf(d.fraction, sizeof d.fraction, "%.31s", point);
        for (size_t n = strlen(d.fraction); n > 0 && d.fraction[n - 1] == '0';)
            d.fraction[--n] = '\0';
    }
    d.whole = strtoll(text, NULL, 10);
    return d;
}

static const mb_expr *any_fraction(mb_builder *b) {
    return mb_expr_maybe(b, mb_expr_pair(b, mb_expr_string(b, "."), any_digits(b, 1, FRACTION_DIGITS)));
}

/* Digits after the point, of which there may be n more, that are above (sign 1) or below (-1) the bound's, or
 * the same when same_is_good. is_first: the point itself comes before the first digit. */
static const mb_expr *fraction_beside(mb_builder *b, const char *bound, int n, int sign, int same_is_good,
                                      int is_first) {
    int digit = *bound ? *bound - '0' : 0;
    mb_expr_list list = {0};
    /* Ending here means that only zeros would follow. */
    if (*bound == '\0' ? same_is_good : sign < 0)
        mb_expr_add(b, &list, mb_expr_empty());
    if (n > 0) {
        const char *rest = *bound ? bound + 1 : bound;
        const mb_expr *other = sign > 0    ? digit < 9 ? digits(b, digit + 1, 9) : mb_expr_never()
                                  : digit > 0 ? digits(b, 0, digit - 1)
                                           : mb_expr_never();
        const mb_expr *ways[] = {
            mb_expr_pair(b, other, any_digits(b, 0, n - 1)),
            mb_expr_pair(b, digits(b, digit, digit), fraction_beside(b, rest, n - 1, sign, same_is_good, 0)),
        };
        const mb_expr *more = mb_expr_choice(b, ways, 2);
        mb_expr_add(b, &list, is_first ? mb_expr_pair(b, mb_expr_string(b, "."), more) : more);
    }
    return mb_expr_list_choice(b, &list);
}

/* Decimals without a sign that are above or below the bound. */
static const mb_expr *beside(mb_builder *b, const decimal *bound, int sign, int same_is_good) {
    int64_t most = largest(WHOLE_DIGITS), low = 0, high = most;
    if (bound->is_huge && sign > 0)
        return mb_expr_never();
    if (!bound->is_huge)
        *(sign > 0 ? &low : &high) = bound->whole + sign;
    int64_t whole = largest(WHOLE_DIGITS - FRACTION_DIGITS);
    const mb_expr *kinds[] = {mb_expr_pair(b, naturals(b, low, high < whole ? high : whole), any_fraction(b)),
                              naturals(b, low > whole ? low : whole + 1, high)};
    const mb_expr *others = mb_expr_choice(b, kinds, 2);
    if (bound->is_huge)
        return others;
    int n_digits = bound->whole > whole ? 0 : FRACTION_DIGITS;
    const mb_expr *ways[] = {
        others, mb_expr_pair(b, naturals(b, bound->whole, bound->whole),
                             fraction_beside(b, bound->fraction, n_digits, sign, same_is_good, 1))};
    return mb_expr_choice(b, ways, 2);
}

/* sign 1: numbers above the bound; -1: below. What is above a bound is, with the opposite sign before it,
 * below the opposite bound. */
static const mb_expr *on_side(mb_builder *b, const mb_bound *bound, int sign) {
    decimal d = decimal_of(bound->value), zero = {0};
    double toward = sign * bound->value; /* below 0: zero is on the side */
    const mb_expr *same_sign, *other_sign;
    if (toward > 0 || (toward == 0 && bound->is_strict)) {
        same_sign = beside(b, &d, 1, !bound->is_strict);
        other_sign = mb_expr_never();
    } else {
        same_sign = beside(b, &zero, 1, 1);
        other_sign = beside(b, &d, -1, !bound->is_strict);
    }
    const mb_expr *minus = mb_expr_string(b, "-");
    const mb_expr *ways[] = {sign > 0 ? same_sign : mb_expr_pair(b, minus, same_sign),
                             sign > 0 ? mb_expr_pair(b, minus, other_sign) : other_sign};
    return mb_expr_choice(b, ways, 2);
}

const mb_expr *mb_decimals_between(mb_builder *b, const mb_bound *least, const mb_bound *most) {
    int rule = -1;
    const mb_expr *sides[] = {least->is_set ? on_side(b, least, 1) : NULL,
                              most->is_set ? on_side(b, most, -1) : NULL};
    for (int i = 0; i < 2; i++)
        if (sides[i]) {
            int next = mb_rule_add(b, sides[i]);
            if (next >= 0)
                b->rules[next].both_with = rule;
            rule = next;
        }
    return mb_expr_call(b, rule);
}
