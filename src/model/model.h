/* model.h - an opened checkpoint: configuration, weights on their device, tokenizer, chat template. */
#ifndef MB_MODEL_MODEL_H
#define MB_MODEL_MODEL_H

#include "device/device.h"
#include "model/chat/chat_template.h"
#include "model/config.h"
#include "model/tokenizer/tokenizer.h"
#include "model/weights/weights.h"
#include "moebius/moebius.h"

/* Why a part that a model can do without cannot be used. */
typedef struct mb_kept_failure {
    mb_status status;
    char *sentence; /* NULL: there is no failure; mb_free */
} mb_kept_failure;

/* Records the kept failure anew and returns its status; MB_OK when there is none. */
mb_status mb_kept_failure_report(const mb_kept_failure *kept);

struct mb_grammar_store;

struct mb_model {
    mb_config config;
    mb_generation generation;
    mb_load load; /* MB_LOAD_SIZES: all pointers of weights are NULL; MB_LOAD_TEXT: weights is empty */
    mb_weights weights;
    mb_device *device;       /* NULL: MB_LOAD_TEXT */
    mb_dtype dtype;          /* compute type */
    mb_dtype kv_dtype;       /* of the KV cache: dtype, or fp8 */
    float *kv_scales;        /* of an fp8 cache, on the device (kv_scales.h); NULL: no fp8, or no weights */
    mb_tokenizer *tokenizer; /* NULL: the checkpoint has none, or none that can be used: tokenizer_failure */
    mb_chat_template
        *chat_template; /* NULL: the checkpoint has none, or none that can be used: chat_failure */
    mb_kept_failure tokenizer_failure, chat_failure;
    struct mb_grammar_store *grammars; /* compiled ones, shared by all threads; the engine's */
};

/* The tokenizer and the chat template of a checkpoint whose config.json is read already. template_name:
 * instead of the checkpoint's template, or NULL. What is wrong with the files is kept in the model;
 * failures are running out of memory and a template_name that cannot be used. */
mb_status mb_model_open_text(mb_model *model, const char *directory, const char *template_name);
void mb_model_close_text(mb_model *model);

#endif
