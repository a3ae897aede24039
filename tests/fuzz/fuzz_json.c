/* Any bytes as JSON: what is accepted is printed as Python would, and that text means the same again. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/alloc.h"
#include "model/json.h"

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes);

static char *dump(const json_t *value) {
    char *text;
    if (mb_json_dump_python(value, &text) != MB_OK)
        abort();
    return text;
}

int LLVMFuzzerTestOneInput(const uint8_t *bytes, size_t n_bytes) {
    json_t *value, *again;
    const char *text = (const char *)bytes;
    mb_status strict = mb_json_parse("fuzz", text, n_bytes, &value);
    mb_json_free(value);
    mb_status status = mb_json_parse_config("fuzz", text, n_bytes, &value);
    if (strict == MB_OK && status != MB_OK)
        abort();
    if (status != MB_OK)
        return 0;
    char *first = dump(value);
    if (mb_json_parse("fuzz", first, strlen(first), &again) != MB_OK)
        abort();
    char *second = dump(again);
    if (strcmp(first, second) != 0)
        abort();
    mb_free(first);
    mb_free(second);
    mb_json_free(value);
    mb_json_free(again);
    return 0;
}
