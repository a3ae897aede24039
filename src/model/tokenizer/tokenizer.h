/*
 * tokenizer.h - byte-level BPE from a tokenizer.json of the Qwen2/Qwen3 family.
 *
 * Text is cut at added tokens, normalised (NFC), cut by the pre-tokenizer pattern (PCRE2, with match limits)
 * and merged by rank in O(n log n). Read-only after opening: any number of threads may encode and decode at
 * once.
 */
#ifndef MB_MODEL_TOKENIZER_H
#define MB_MODEL_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct mb_tokenizer mb_tokenizer;

/* json: the bytes of tokenizer.json; `path` is for error sentences. vocab: size of the model's embedding; ids
 * at or above it are errors. Features of tokenizer.json that are not the Qwen scheme: MB_ERR_UNSUPPORTED. */
mb_status mb_tokenizer_open(const char *path, const char *json, size_t n_bytes, int32_t vocab,
                            mb_tokenizer **tokenizer);
void mb_tokenizer_close(mb_tokenizer *tokenizer);

/* See mb_tokenize in moebius.h. On success *ids is an array to be freed with mb_free (base/alloc.h), NULL
 * when *n_ids is 0. */
mb_status mb_tokenizer_encode(const mb_tokenizer *tokenizer, const char *text, size_t n_bytes,
                              int parse_special, int32_t **ids, size_t *n_ids);

/* The raw bytes of one id; *bytes lives as long as the tokenizer. MB_ERR_ARGUMENT when no token has this id.
 */
mb_status mb_tokenizer_bytes(const mb_tokenizer *tokenizer, int32_t id, const char **bytes, size_t *n_bytes,
                             int *is_special);

int32_t mb_tokenizer_id(const mb_tokenizer *tokenizer, const char *token); /* exact token text -> id, or -1 */
int32_t mb_tokenizer_size(const mb_tokenizer *tokenizer);                  /* largest id + 1 */

/* Streaming decode: holds back bytes until they are whole UTF-8 characters. */
typedef struct mb_utf8_stream {
    unsigned char held[4];
    int n_held;
} mb_utf8_stream;

/* Appends bytes; writes what became complete to out (room for 3 * (n_bytes + 4) bytes) and returns its
 * length. Ill-formed bytes become U+FFFD, one for each maximal subpart (Unicode 15, section 3.9), as Python's
 * bytes.decode("utf-8", "replace") does. */
size_t mb_utf8_stream_push(mb_utf8_stream *stream, const char *bytes, size_t n_bytes, char *out);
size_t mb_utf8_stream_finish(mb_utf8_stream *stream, char *out); /* out: room for 12 bytes */

#endif
