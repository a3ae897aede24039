#include "cli/sampling_settings.h"

#include <inttypes.h>
#include <math.h>
#include <sys/random.h>
#include <time.h>

#include "cli/output.h"

#define FIELD(name) offsetof(cli_sampling_settings, name)

const cli_option cli_sampling_options[] = {
    {.letter = 'n',
     .name = "max-new-tokens",
     .value_name = "N",
     .kind = CLI_INTEGER,
     .offset = FIELD(max_new_tokens),
     .minimum = 0,
     .maximum = 16777216,
     .help =
         "Stop after N new tokens. The prompt and N tokens must fit the context, else the prompt is refused. "
         "Without it: run stops after 2048 tokens, and both run and chat where the context ends."},
    {.name = "greedy",
     .kind = CLI_FLAG,
     .offset = FIELD(greedy),
     .help = "Always take the most probable token; the same as --temperature 0. The following options have "
             "the defaults of the checkpoint's generation_config.json, or choose greedily without one."},
    {.name = "temperature",
     .value_name = "T",
     .kind = CLI_NUMBER,
     .offset = FIELD(temperature),
     .minimum = 0,
     .maximum = 100,
     .help = "Divide the logits by T before drawing: below 1 is more predictable, above 1 more surprising."},
    {.name = "top-k",
     .value_name = "K",
     .kind = CLI_INTEGER,
     .offset = FIELD(top_k),
     .minimum = 0,
     .maximum = 1000000,
     .help = "Draw among the K most probable tokens; 0 switches it off."},
    {.name = "top-p",
     .value_name = "P",
     .kind = CLI_NUMBER,
     .offset = FIELD(top_p),
     .minimum = 0,
     .maximum = 1,
     .help = "Draw among the fewest tokens that together have probability P; 1 switches it off."},
    {.name = "min-p",
     .value_name = "P",
     .kind = CLI_NUMBER,
     .offset = FIELD(min_p),
     .minimum = 0,
     .maximum = 1,
     .help = "Drop tokens less than P times as probable as the most probable one; 0 switches it off."},
    {.name = "repetition-penalty",
     .value_name = "R",
     .kind = CLI_NUMBER,
     .offset = FIELD(repetition_penalty),
     .minimum = 0,
     .maximum = 100,
     .ends = CLI_OPEN_BELOW,
     .help = "Above 1, makes tokens of the prompt and the answer so far less likely; 1 switches it off."},
    {.name = "presence-penalty",
     .value_name = "X",
     .kind = CLI_NUMBER,
     .offset = FIELD(presence_penalty),
     .minimum = -2,
     .maximum = 2,
     .help = "Subtracted once from the logit of every token that is in the answer already."},
    {.name = "frequency-penalty",
     .value_name = "X",
     .kind = CLI_NUMBER,
     .offset = FIELD(frequency_penalty),
     .minimum = -2,
     .maximum = 2,
     .help = "The same, times the number of times that the token is in the answer."},
    {.name = "logit-bias",
     .value_name = "ID:BIAS[,...]",
     .kind = CLI_BIASES,
     .offset = FIELD(logit_bias),
     .minimum = -100,
     .maximum = 100,
     .help = "Added to the logits of single tokens; -100 as good as forbids one."},
    {.name = "seed",
     .value_name = "N",
     .kind = CLI_INTEGER,
     .offset = FIELD(seed),
     .minimum = 0,
     .maximum = 9007199254740991,
     .help = "The same seed, prompt and options give the same answer. Without it: a new seed every time."},
    {.name = "ignore-eos",
     .kind = CLI_FLAG,
     .offset = FIELD(ignore_eos),
     .help = "Go on after the model's end-of-text tokens."},
    {.name = "stop-ids",
     .value_name = "ID[,...]",
     .kind = CLI_IDS,
     .offset = FIELD(stop_ids),
     .minimum = 0,
     .maximum = INT32_MAX,
     .help = "End the answer before any of these tokens."},
    {.name = "stop",
     .value_name = "TEXT",
     .kind = CLI_TEXTS,
     .offset = FIELD(stop_texts),
     .help =
         "End the answer before this text. May be given several times; the text that comes first counts."},
    {.name = "kv-tokens",
     .value_name = "N",
     .kind = CLI_INTEGER,
     .offset = FIELD(kv_tokens),
     .minimum = 1,
     .maximum = 1073741824,
     .help = "Size of the KV cache in tokens: prompt and answer must fit. Without it: what is needed, as far "
             "as the model goes."},
    {0},
};

int cli_check_sampling(const cli_command *command, const cli_sampling_settings *settings) {
    if (settings->greedy && settings->temperature.given && settings->temperature.value > 0)
        return cli_usage_error(command, "--greedy and --temperature %g contradict each other",
                               settings->temperature.value);
    for (size_t i = 0; i < settings->stop_texts.count; i++)
        if (!cli_is_utf8(settings->stop_texts.items[i]))
            return cli_usage_error(command, "--stop: the text is not valid UTF-8, so no answer has it");
    return -1;
}

static int check_id(const char *option, int32_t id, int32_t vocab) {
    if (id < vocab)
        return CLI_OK;
    return cli_failure("%s: there is no token %" PRId32 "; the model's vocabulary has the ids 0 to %" PRId32,
                       option, id, vocab - 1);
}

int cli_check_ids(const char *option, const cli_ids *ids, int32_t vocab) {
    int status = CLI_OK;
    for (size_t i = 0; i < ids->count && status == CLI_OK; i++)
        status = check_id(option, ids->items[i], vocab);
    return status;
}

int cli_check_ids_of_sampling(const cli_sampling_settings *settings, int32_t vocab) {
    enum { MAX_BIASES = 1024 }; /* of mb_sampling */
    int status = cli_check_ids("--stop-ids", &settings->stop_ids, vocab);
    if (status == CLI_OK && settings->logit_bias.count > MAX_BIASES)
        status = cli_failure("--logit-bias has %zu pairs; give at most %d", settings->logit_bias.count,
                             MAX_BIASES);
    for (size_t i = 0; i < settings->logit_bias.count && status == CLI_OK; i++)
        status = check_id("--logit-bias", settings->logit_bias.items[i].id, vocab);
    return status;
}

static uint64_t fresh_seed(void) {
    uint64_t seed;
    if (getrandom(&seed, sizeof seed, GRND_NONBLOCK) != (ssize_t)sizeof seed)
        seed = (uint64_t)time(NULL);
    return seed >> 11; /* what --seed can say again */
}

static int need_option(const char *option) {
    return cli_failure("the checkpoint's generation_config.json has no usable value in place of %s; give %s",
                       option, option);
}

/* mb_request_init leaves NaN for what the checkpoint has wrong. */
static int apply_number(const char *option, const cli_number *number, int is_used, float *target) {
    if (number->given)
        *target = (float)number->value;
    return is_used && isnan(*target) ? need_option(option) : CLI_OK;
}

int cli_apply_sampling(const cli_sampling_settings *settings, mb_request *request) {
    mb_sampling *sampling = &request->sampling;
    struct {
        const char *option;
        const cli_number *number;
        float *target;
        int cuts_draw; /* a greedy answer does not use it; the temperature comes first and says which it is */
    } numbers[] = {
        {"--temperature", &settings->temperature, &sampling->temperature, 0},
        {"--top-p", &settings->top_p, &sampling->top_p, 1},
        {"--min-p", &settings->min_p, &sampling->min_p, 1},
        {"--repetition-penalty", &settings->repetition_penalty, &sampling->repetition_penalty, 0},
        {"--presence-penalty", &settings->presence_penalty, &sampling->presence_penalty, 0},
        {"--frequency-penalty", &settings->frequency_penalty, &sampling->frequency_penalty, 0},
    };
    if (settings->greedy)
        sampling->temperature = 0;
    for (size_t i = 0; i < CLI_COUNT(numbers); i++)
        if (apply_number(numbers[i].option, numbers[i].number,
                         !numbers[i].cuts_draw || sampling->temperature > 0, numbers[i].target) != CLI_OK)
            return CLI_FAILED;
    if (settings->top_k.given)
        sampling->top_k = (int32_t)settings->top_k.value;
    if (sampling->top_k < 0 && sampling->temperature > 0)
        return need_option("--top-k");
    sampling->seed = settings->seed.given ? (uint64_t)settings->seed.value : fresh_seed();
    sampling->logit_bias = settings->logit_bias.items;
    sampling->n_logit_bias = (int32_t)settings->logit_bias.count;
    request->ignore_eos = settings->ignore_eos;
    request->stop_ids = settings->stop_ids.items;
    request->n_stop_ids = (int32_t)settings->stop_ids.count;
    return CLI_OK;
}
