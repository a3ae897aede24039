#include "cli/answer_grammar.h"

#include <string.h>

#include "base/alloc.h"
#include "base/file.h"
#include "cli/commands.h"
#include "cli/output.h"
#include "moebius/answer.h"
#include "moebius/grammar.h"

enum { MAX_SCHEMA_BYTES = 16 << 20 };

static mb_status open_schema(const mb_model *model, const char *path, mb_grammar **grammar) {
    char *text;
    size_t n_bytes;
    mb_status status = mb_file_read(path, MAX_SCHEMA_BYTES, &text, &n_bytes);
    if (status == MB_ERR_NOT_FOUND)
        return mb_fail(status, "%s: there is no such file; --json-schema takes the file of a schema", path);
    if (status != MB_OK)
        return status;
    status = mb_grammar_open(model, MB_GRAMMAR_JSON_SCHEMA, text, n_bytes, grammar);
    mb_free(text);
    return status == MB_OK ? MB_OK : mb_fail_context(status, "%s", path);
}

int cli_set_grammar(const mb_model *model, const cli_answer_form *form, const char *prompt,
                    mb_request *request) {
    mb_answer_formats formats;
    if (form->schema_path == NULL && form->regex == NULL)
        return CLI_OK;
    mb_status status = form->schema_path != NULL ? open_schema(model, form->schema_path, &request->grammar)
                                                 : mb_grammar_open(model, MB_GRAMMAR_REGEX, form->regex,
                                                                   strlen(form->regex), &request->grammar);
    if (status == MB_OK)
        status = mb_answer_formats_of(model, &formats);
    if (status != MB_OK)
        return cli_report_failure();
    request->grammar_after_think = mb_answer_grammar_start(&formats, prompt) == MB_GRAMMAR_AFTER_THINK;
    return CLI_OK;
}
