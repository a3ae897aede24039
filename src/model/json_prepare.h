/*
 * json_prepare.h - rewrites a JSON text so that jansson accepts what Python writes.
 *
 * Python writes numbers that jansson refuses: integers of any size, NaN, Infinity and -Infinity. Each such
 * number is replaced by the object {"": "\u0000<the number's text>"}, which mb_json_number recognises. No
 * document can contain that object itself, because a document with \u0000 in it is refused.
 */
#ifndef MB_MODEL_JSON_PREPARE_H
#define MB_MODEL_JSON_PREPARE_H

#include <stddef.h>

#include "base/status.h"

typedef struct mb_json_text {
    const char *bytes; /* the document's own, or `owned` */
    size_t n_bytes;
    char *owned; /* NULL, or the rewritten document: mb_free */
} mb_json_text;

/* MB_ERR_FORMAT: nested deeper than 100 levels (jansson recurses), or \u0000 in a string. */
mb_status mb_json_prepare(const char *path, const char *bytes, size_t n_bytes, mb_json_text *text);

#endif
