/* prefill.h - attention of sequences with more than 16 rows a kv head, on wgmma. */
#ifndef MB_OPS_ATTENTION_PREFILL_H
#define MB_OPS_ATTENTION_PREFILL_H

#include "ops/attention/attention.h"

/* dtype bf16 or fp16, a cache of the same type, D 64 or 128. Other sequences are left out. counter: four
 * bytes of the workspace. */
mb_status mb_attention_prefill(const mb_attention_args *args, uint32_t *counter, mb_stream stream);

#endif
