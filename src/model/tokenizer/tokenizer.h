/*
 * tokenizer.h - byte-level BPE from a tokenizer.json of the Qwen2/Qwen3 family.
 *
 * Text is cut at added tokens, normalised (NFC), cut by the pre-tokenizer's pattern (PCRE2, with match
 * limits) and merged by rank in O(n log n). An opened tokenizer does not change: any number of threads may
 * encode and decode at once.
 */
#ifndef MB_MODEL_TOKENIZER_H
#define MB_MODEL_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef struct mb_tokenizer mb_tokenizer;

typedef struct mb_tokenizer_file {
    const char *path;  /* for error sentences */
    const char *bytes; /* NULL: there is no such file */
    size_t n_bytes;
} mb_tokenizer_file;

/* tokenizer.json, and the files that may name more added tokens: tokenizer_config.json and
 * added_tokens.json. */
typedef struct mb_tokenizer_files {
    mb_tokenizer_file tokenizer, config, added_tokens;
} mb_tokenizer_files;

/* vocab: rows of the model's embedding; ids at or above it are errors. Features of tokenizer.json that are
 * not the Qwen scheme: MB_ERR_UNSUPPORTED. */
mb_status mb_tokenizer_open(const mb_tokenizer_files *files, int32_t vocab, mb_tokenizer **tokenizer);
void mb_tokenizer_close(mb_tokenizer *tokenizer);

/* See mb_tokenize in moebius.h. On success *ids is an array to be freed with mb_free (base/alloc.h), NULL
 * when *n_ids is 0. */
mb_status mb_tokenizer_encode(const mb_tokenizer *tokenizer, const char *text, size_t n_bytes,
                              int parse_special, int32_t **ids, size_t *n_ids);

/* The raw bytes of one token; *bytes lives as long as the tokenizer. Embeddings are often larger than
 * vocabularies: an id that no token has is no bytes. MB_ERR_ARGUMENT: an id outside of [0, vocab). */
mb_status mb_tokenizer_bytes(const mb_tokenizer *tokenizer, int32_t id, const char **bytes, size_t *n_bytes,
                             int *is_special);

int32_t mb_tokenizer_id(const mb_tokenizer *tokenizer, const char *token); /* exact token text -> id, or -1 */
int32_t mb_tokenizer_size(const mb_tokenizer *tokenizer);                  /* largest id + 1 */

/* Streaming decode: bytes are held back until they are whole UTF-8 characters. */
typedef struct mb_utf8_stream {
    unsigned char held[4];
    int n_held;
} mb_utf8_stream;

/* Takes bytes in. The characters that became complete go to `out`, which has room for 3 * (n_bytes + 4)
 * bytes; returns their length in bytes. Ill-formed bytes become U+FFFD, one for each maximal subpart
 * (Unicode 15, section 3.9), as Python's bytes.decode("utf-8", "replace") does. */
size_t mb_utf8_stream_push(mb_utf8_stream *stream, const char *bytes, size_t n_bytes, char *out);
size_t mb_utf8_stream_finish(mb_utf8_stream *stream, char *out); /* out: room for 12 bytes */

#endif
