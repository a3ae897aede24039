#include "model/tokenizer/pretokenize.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <string.h>

#include "base/alloc.h"
#include "model/tokenizer/pattern.h"
#include "model/tokenizer/unicode_versions.h"
#include "model/tokenizer/utf8.h"

enum {
    MAX_PATTERN_BYTES = 16384,
    MATCH_STEPS =
        1000000, /* for any text; and for each byte of the text (Qwen's pattern needs one per space): */
    MATCH_STEPS_PER_BYTE = 4,
    MATCH_DEPTH = 200000,
    MATCH_HEAP_KIB = 65536,
};

struct mb_pretokenizer {
    pcre2_general_context *memory; /* our allocator, for PCRE2 */
    pcre2_code *code;
};

static void *pcre2_allocate(size_t n_bytes, void *user) {
    (void)user;
    return mb_malloc(n_bytes);
}

static void pcre2_release(void *pointer, void *user) {
    (void)user;
    mb_free(pointer);
}

/* ---- Opening ------------------------------------------------------------------------------------------ */

static mb_status compile(const char *path, const char *pattern, mb_pretokenizer *opened) {
    opened->memory = pcre2_general_context_create(pcre2_allocate, pcre2_release, NULL);
    pcre2_compile_context *context = opened->memory ? pcre2_compile_context_create(opened->memory) : NULL;
    if (!context)
        return mb_fail(MB_ERR_MEMORY, "%s: no memory to compile the pattern", path);
    /* Oniguruma's Ruby syntax: ^ and $ are for lines, and a line ends at \n. */
    pcre2_set_newline(context, PCRE2_NEWLINE_LF);
    int error;
    PCRE2_SIZE offset;
    /* No automatic possessive repeats: PCRE2 10.42 takes some sets for disjoint that are not, as in
     * \P{Lu}?\P{Nd}. */
    uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NO_UTF_CHECK | PCRE2_NO_AUTO_POSSESS;
    opened->code =
        pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, options, &error, &offset, context);
    pcre2_compile_context_free(context);
    if (!opened->code && (error == PCRE2_ERROR_NOMEMORY || error == PCRE2_ERROR_HEAP_FAILED))
        return mb_fail(MB_ERR_MEMORY, "%s: no memory to compile the pattern", path);
    if (!opened->code) {
        char reason[160] = "";
        pcre2_get_error_message(error, (PCRE2_UCHAR *)reason, sizeof reason);
        return mb_fail(MB_ERR_FORMAT, "%s: the pre-tokenizer's pattern is not valid: %s", path, reason);
    }
    /* Machine code where the system allows it; without, the interpreter does the same more slowly. The
     * machine code of PCRE2 10.42 may go back into an atomic group, which the interpreter never does. */
    if (!strstr(pattern, "(?>"))
        (void)pcre2_jit_compile(opened->code, PCRE2_JIT_COMPLETE);
    return MB_OK;
}

static mb_status open(const char *path, const char *pattern, mb_pretokenizer *opened) {
    mb_text_buffer buffer = {0};
    char *translated;
    mb_status status = mb_pattern_translate(path, pattern, &buffer);
    if (status != MB_OK) {
        mb_free(buffer.bytes);
        return status;
    }
    MB_TRY(mb_text_finish(&buffer, "the pre-tokenizer's pattern", &translated));
    status = compile(path, translated, opened);
    mb_free(translated);
    return status;
}

mb_status mb_pretokenizer_open(const char *path, const char *pattern, mb_pretokenizer **pretokenizer) {
    *pretokenizer = NULL;
    if (strlen(pattern) > MAX_PATTERN_BYTES)
        return mb_fail(MB_ERR_UNSUPPORTED, "%s: the pre-tokenizer's pattern has %zu bytes, more than %d",
                       path, strlen(pattern), MAX_PATTERN_BYTES);
    mb_pretokenizer *opened = mb_calloc(1, sizeof *opened);
    if (!opened)
        return mb_fail(MB_ERR_MEMORY, "%s: no memory for the pre-tokenizer", path);
    mb_status status = open(path, pattern, opened);
    if (status != MB_OK)
        mb_pretokenizer_close(opened);
    else
        *pretokenizer = opened;
    return status;
}

void mb_pretokenizer_close(mb_pretokenizer *pretokenizer) {
    if (!pretokenizer)
        return;
    pcre2_code_free(pretokenizer->code);
    pcre2_general_context_free(pretokenizer->memory);
    mb_free(pretokenizer);
}

/* ---- Cutting ------------------------------------------------------------------------------------------ */

/* One text being cut. The pattern sees `subject`, which is the text or a copy with stand-ins, byte for byte
 * as long. */
typedef struct cutting {
    const mb_pretokenizer *pretokenizer;
    const char *text, *subject;
    size_t n_bytes;
    char *copy;
    pcre2_match_context *limits;
    pcre2_match_data *match;
} cutting;

static mb_status put_stand_ins(cutting *c) {
    for (size_t i = 0; i < c->n_bytes;) {
        if ((unsigned char)c->text[i] < 0xD0) { /* everything below U+0400 agrees */
            i += mb_utf8_length(c->text[i]);
            continue;
        }
        size_t length;
        uint32_t character = mb_utf8_decode(c->text + i, &length), shown = mb_unicode_stand_in(character);
        if (shown != character) {
            if (!c->copy) {
                c->copy = mb_malloc(c->n_bytes);
                if (!c->copy)
                    return mb_fail(MB_ERR_MEMORY, "no memory to cut the text");
                memcpy(c->copy, c->text, c->n_bytes);
                c->subject = c->copy;
            }
            mb_utf8_encode(shown, c->copy + i);
        }
        i += length;
    }
    return MB_OK;
}

static mb_status prepare(cutting *c) {
    c->subject = c->text;
    if (!mb_utf8_is_ascii(c->text, c->n_bytes))
        MB_TRY(put_stand_ins(c));
    c->limits = pcre2_match_context_create(c->pretokenizer->memory);
    c->match = pcre2_match_data_create(1, c->pretokenizer->memory);
    if (!c->limits || !c->match)
        return mb_fail(MB_ERR_MEMORY, "no memory to cut the text");
    size_t steps = MATCH_STEPS + MATCH_STEPS_PER_BYTE * c->n_bytes;
    pcre2_set_match_limit(c->limits, steps < UINT32_MAX ? (uint32_t)steps : UINT32_MAX);
    pcre2_set_depth_limit(c->limits, MATCH_DEPTH);
    pcre2_set_heap_limit(c->limits, MATCH_HEAP_KIB);
    return MB_OK;
}

/* The next match at or behind `start`; *found 0 when there is none. */
static mb_status find(cutting *c, size_t start, int *found, size_t *match_start, size_t *match_end) {
    int rc = pcre2_match(c->pretokenizer->code, (PCRE2_SPTR)c->subject, c->n_bytes, start, PCRE2_NO_UTF_CHECK,
                         c->match, c->limits);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(c->pretokenizer->code, (PCRE2_SPTR)c->subject, c->n_bytes, start,
                         PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, c->match, c->limits);
    *found = rc >= 0;
    if (*found) {
        const PCRE2_SIZE *ends = pcre2_get_ovector_pointer(c->match);
        *match_start = ends[0];
        *match_end = ends[1];
        return MB_OK;
    }
    switch (rc) {
    case PCRE2_ERROR_NOMATCH:
        return MB_OK;
    case PCRE2_ERROR_NOMEMORY:
        return mb_fail(MB_ERR_MEMORY, "no memory to cut the text");
    case PCRE2_ERROR_MATCHLIMIT:
    case PCRE2_ERROR_DEPTHLIMIT:
    case PCRE2_ERROR_HEAPLIMIT:
        return mb_fail(MB_ERR_CAPACITY,
                       "the tokenizer's pattern needs too many steps at byte %zu of the text; such a pattern "
                       "(nested repeats) cannot be used",
                       start);
    default:
        break;
    }
    char reason[160] = "";
    pcre2_get_error_message(rc, (PCRE2_UCHAR *)reason, sizeof reason);
    return mb_fail(MB_ERR_INTERNAL, "the tokenizer's pattern failed at byte %zu of the text: %s", start,
                   reason);
}

static mb_status cut(cutting *c, mb_piece_fn on_piece, void *user) {
    size_t done = 0; /* pieces were given out up to here */
    for (size_t from = 0; from < c->n_bytes;) {
        int found;
        size_t start, end;
        MB_TRY(find(c, from, &found, &start, &end));
        if (!found)
            break;
        if (start > done)
            MB_TRY(on_piece(user, c->text + done, start - done));
        if (end > start)
            MB_TRY(on_piece(user, c->text + start, end - start));
        /* \K and lookbehind are not let through, so start >= from. An empty match cuts and goes on. */
        done = end;
        from = end;
        if (end == start && end < c->n_bytes)
            from += mb_utf8_length(c->text[end]);
        else if (end == start)
            break;
    }
    return done < c->n_bytes ? on_piece(user, c->text + done, c->n_bytes - done) : MB_OK;
}

mb_status mb_pretokenize(const mb_pretokenizer *pretokenizer, const char *text, size_t n_bytes,
                         mb_piece_fn on_piece, void *user) {
    cutting c = {.pretokenizer = pretokenizer, .text = text, .n_bytes = n_bytes};
    mb_status status = prepare(&c);
    if (status == MB_OK)
        status = cut(&c, on_piece, user);
    pcre2_match_data_free(c.match);
    pcre2_match_context_free(c.limits);
    mb_free(c.copy);
    return status;
}
