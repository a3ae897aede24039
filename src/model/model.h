/* model.h - an opened checkpoint: configuration, weights on their device, tokenizer, chat template. */
#ifndef MB_MODEL_MODEL_H
#define MB_MODEL_MODEL_H

#include "device/device.h"
#include "model/chat/chat_template.h"
#include "model/config.h"
#include "model/tokenizer/tokenizer.h"
#include "model/weights/weights.h"
#include "moebius/moebius.h"

struct mb_model {
    mb_config config;
    mb_generation generation;
    mb_weights weights;
    mb_device *device;
    mb_dtype dtype;          /* compute type */
    mb_tokenizer *tokenizer; /* NULL: the checkpoint has no tokenizer.json */
    mb_chat_template chat_template;
};

#endif
