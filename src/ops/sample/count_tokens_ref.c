#include "ops/common/tensor.h"
#include "ops/sample/sample.h"

#include <inttypes.h>
#include <string.h>

mb_status mb_count_tokens_check(const mb_count_tokens_args *args) {
    MB_REQUIRE(args->vocab > 0, "count_tokens: vocab is %d", args->vocab);
    MB_REQUIRE(args->n_ids >= 0 && args->n_prompt >= 0,
               "count_tokens: n_ids is %" PRId64 ", n_prompt %" PRId64, args->n_ids, args->n_prompt);
    MB_REQUIRE(args->seen && (args->ids || args->n_ids == 0), "count_tokens: ids or seen is NULL");
    return MB_OK;
}

mb_status mb_count_tokens_ref(const mb_count_tokens_args *args, mb_stream stream) {
    (void)stream;
    MB_TRY(mb_count_tokens_check(args));
    memset(args->seen, 0, (size_t)args->vocab * sizeof *args->seen);
    for (int64_t i = 0; i < args->n_ids; i++) {
        int32_t id = args->ids[i];
        if (id < 0 || id >= args->vocab)
            continue;
        if (i < args->n_prompt)
            args->seen[id] |= 1;
        else
            args->seen[id] += 2;
    }
    return MB_OK;
}
