/* widen.h - an e4m3 cache brought to 16 bits before it is attended to, exactly. Its scales stay outside. */
#ifndef MB_OPS_ATTENTION_WIDEN_H
#define MB_OPS_ATTENTION_WIDEN_H

#include "ops/attention/attention.h"

/* How many sequences of max_kv_len positions are widened at a time, and the workspace that they take: so that
 * room for the largest counts is enough for smaller ones. */
int32_t mb_attention_widen_sequences(const mb_attention_args *args);
size_t mb_attention_widen_bytes(const mb_attention_args *args);

/* Widens what the sequences of args have cached; there are at most as many as may be at a time. *widened: the
 * same attention on the copy, whose blocks lie in the workspace sequence by sequence. */
mb_status mb_attention_widen(const mb_attention_args *args, void *workspace, mb_attention_args *widened,
                             mb_stream stream);

#endif
