/* attention_any.h - attention of any types on the GPU, for attention_sm90.cu, which has checked the
 * arguments. */
#ifndef MB_OPS_ATTENTION_ANY_H
#define MB_OPS_ATTENTION_ANY_H

#include "ops/attention/attention.h"

mb_status mb_attention_any_sm90(const mb_attention_args *args, mb_stream stream);

#endif
