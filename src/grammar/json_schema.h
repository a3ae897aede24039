/* json_schema.h - a JSON schema becomes an expression of the texts that it accepts. */
#ifndef MB_GRAMMAR_JSON_SCHEMA_H
#define MB_GRAMMAR_JSON_SCHEMA_H

#include <jansson.h>

#include "grammar/expr.h"

/* path: of the schema, for sentences: "#". "$ref" is resolved within the schema. NULL: the pool has the
 * failure. */
const mb_expr *mb_schema_expr(mb_builder *builder, const json_t *schema, const char *path);

#endif
