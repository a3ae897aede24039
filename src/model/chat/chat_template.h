/*
 * chat_template.h - the chat template of a model: the checkpoint's own Jinja, a file, or one of ours.
 *
 * A template is parsed once and then only read, so any number of threads may render with it. What the
 * template is given is what transformers' apply_chat_template gives it, with these exceptions, which keep a
 * template from leaving something out without a word (chat_messages.h):
 *
 *   - contents in parts of text become one string when the template does not print parts
 *   - the role "developer" becomes "system" when the template does not print developers
 *   - calls of tools have their arguments as objects when the template does not print a
 *     string of JSON as it is
 *   - tools, calls of tools and messages of unusual roles are refused when the template leaves them out
 */
#ifndef MB_MODEL_CHAT_TEMPLATE_H
#define MB_MODEL_CHAT_TEMPLATE_H

#include <jansson.h>
#include <stddef.h>

#include "base/status.h"
#include "model/jinja/jinja.h"
#include "moebius/moebius.h"

/* A template and what it was found to do with messages. */
typedef struct mb_chat_variant {
    mb_jinja *parsed; /* NULL: there is none */
    int prints_strings, prints_parts, prints_developers, prints_json_strings;
} mb_chat_variant;

typedef struct mb_chat_template {
    mb_chat_variant usual, with_tools; /* with_tools: the one named "tool_use", for requests with tools */
    json_t *tokens;                    /* an object: bos_token, eos_token and so on, as strings; never NULL */
    char *source;                      /* the text of `usual` */
} mb_chat_template;

/* Of a checkpoint: chat_template.jinja and additional_chat_templates/NAME.jinja go before "chat_template" of
 * tokenizer_config.json, as in transformers. *opened is NULL when there is none, and on failure.
 * MB_ERR_UNSUPPORTED: outside of the subset of Jinja (with line and column); MB_ERR_FORMAT, MB_ERR_IO. */
mb_status mb_chat_template_open(const char *directory, mb_chat_template **opened);
/* The one that a user named: "qwen3", "qwen3-instruct", "qwen3-thinking", "chatml", or a file. The special
 * tokens are still the checkpoint's. MB_ERR_NOT_FOUND names the known ones. */
mb_status mb_chat_template_open_named(const char *directory, const char *name, mb_chat_template **opened);
/* From a text and a tokenizer_config.json (or NULL). */
mb_status mb_chat_template_open_text(const char *name, const char *jinja, size_t n_bytes, const char *config,
                                     mb_chat_template **opened);
void mb_chat_template_close(mb_chat_template *template); /* NULL allowed */

/* The text of a template of ours; NULL: no such name. chat_builtin.c */
const char *mb_chat_template_builtin(const char *name);
/* Finds out what the variant does: renders small conversations. chat_probe.c */
mb_status mb_chat_variant_probe(mb_chat_variant *variant, const json_t *tokens);

/* See mb_chat_render in moebius.h. *text: zero-terminated, freed with mb_free (base/alloc.h). template NULL:
 * MB_ERR_UNSUPPORTED, the checkpoint has none. MB_ERR_FORMAT: the JSON is malformed; MB_ERR_ARGUMENT: a
 * message is none, or the template stopped. */
mb_status mb_chat_template_render(const mb_chat_template *template, const char *messages_json,
                                  const mb_chat_options *options, char **text);
/* The same of variables that are ready. */
mb_status mb_chat_variant_render(const mb_chat_variant *variant, const json_t *tokens,
                                 const json_t *variables, const json_t *kwargs, char **text);

#endif
