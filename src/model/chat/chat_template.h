/*
 * chat_template.h - native renderers of the chat templates (in Jinja) that Qwen3 checkpoints and their
 * fine-tunes carry.
 *
 * No Jinja is interpreted. The genuine templates are recognised by their text, plain ChatML by its
 * structure, and each is rendered by C code that was checked against jinja2. A template that is not
 * recognised is refused.
 *
 * What a template would drop without a word is refused, too: contents that are not strings (null or absent
 * is nothing said, as with an assistant that only calls tools); with Qwen's templates, roles other than
 * system, user, assistant and tool; with ChatML, tools and calls of tools.
 */
#ifndef MB_MODEL_CHAT_TEMPLATE_H
#define MB_MODEL_CHAT_TEMPLATE_H

#include <stddef.h>

#include "base/status.h"
#include "moebius/moebius.h"

typedef enum mb_chat_template {
    MB_CHAT_NONE,  /* the checkpoint has no template */
    MB_CHAT_QWEN3, /* Qwen3 hybrids, with the thinking switch */
    MB_CHAT_QWEN3_INSTRUCT,
    MB_CHAT_QWEN3_THINKING,
    MB_CHAT_UNKNOWN, /* there is one, but not one of these */
    MB_CHAT_CHATML,  /* every message in a turn of its own, nothing else */
} mb_chat_template;

/* Which one the text of a Jinja template is (never fails: MB_CHAT_UNKNOWN). */
mb_chat_template mb_chat_template_recognise(const char *jinja, size_t n_bytes);
/* By name: "qwen3", "qwen3-instruct", "qwen3-thinking", "chatml". MB_ERR_NOT_FOUND names the known ones. */
mb_status mb_chat_template_by_name(const char *name, mb_chat_template *which);
/* Takes tokenizer_config.json's bytes (or chat_template.jinja's when is_jinja): finds and recognises. */
mb_status mb_chat_template_find(const char *path, const char *bytes, size_t n_bytes, int is_jinja,
                                mb_chat_template *which);

/* See mb_chat_render in moebius.h. *text: zero-terminated, freed with mb_free (base/alloc.h). MB_ERR_FORMAT:
 * the JSON is malformed; MB_ERR_ARGUMENT: a message breaks the template's rules (the sentence says which and
 * why); MB_ERR_UNSUPPORTED: MB_CHAT_UNKNOWN or NONE. */
mb_status mb_chat_template_render(mb_chat_template which, const char *messages_json,
                                  const mb_chat_options *options, char **text);

#endif
