#include "grammar/json_schema.h"

#include "grammar/compile.h"
#include "grammar/json_text.h"
#include "model/json.h"

const mb_expr *mb_schema_expr(mb_builder *b, const json_t *schema, const char *path) {
    (void)schema;
    b->pool.status = mb_fail(MB_ERR_UNSUPPORTED, "%s: schemas come next", path);
    return NULL;
}

const mb_expr *mb_schema_parse(mb_builder *b, const char *text, size_t n_bytes) {
    json_t *root;
    b->pool.status = mb_json_parse("the schema", text, n_bytes, &root);
    const mb_expr *expr = root ? mb_schema_expr(b, root, "#") : NULL;
    mb_json_free(root);
    return expr;
}
