/*
 * moebius.h - the engine: open a model, open a session, submit token sequences, step, read tokens.
 *
 * A model is read-only after opening. Any number of sessions and threads may share a model. A session owns
 * a paged KV cache and a queue of sequences. Any thread may submit, read and cancel at any time; one thread
 * at a time drives the session with mb_step(). The shortest program:
 *
 *     mb_model *model;  mb_session *session;  mb_request request;  uint64_t id;  int active = 1;
 *     mb_model_open("models/demo", NULL, &model);
 *     mb_session_open(model, NULL, &session);
 *     mb_request_init(model, &request);          // sampling defaults of generation_config.json
 *     request.ids = ids;  request.n_ids = n;  request.max_new_tokens = 64;
 *     mb_submit(session, &request, &id);
 *     while (active) {
 *         mb_step(session, &active);
 *         mb_read(session, id, tokens, 64, &n_read, &state);
 *     }
 *     mb_release(session, id);  mb_session_close(session);  mb_model_close(model);
 *
 * examples/generate.c is a complete program. Every function that can fail returns mb_status;
 * mb_last_error() tells more. NULL is allowed where a comment says so; elsewhere it gives MB_ERR_ARGUMENT,
 * if the function returns a status. What a pointer argument points at is copied before the call returns,
 * unless a comment says otherwise.
 */
#ifndef MOEBIUS_MOEBIUS_H
#define MOEBIUS_MOEBIUS_H

#include <stddef.h>
#include <stdint.h>

#include "moebius/status.h"

#ifdef __cplusplus
extern "C" {
#endif

/* "0.1.0" */
MB_API const char *mb_version(void);

/* ---- Memory ------------------------------------------------------------------------------------------- */

/* Like realloc: pointer NULL allocates; n_bytes 0 frees and returns NULL. Any other NULL means out of
 * memory, and the old block stays valid. The function must be thread-safe and give malloc's alignment. */
typedef void *(*mb_allocate_fn)(void *user, void *pointer, size_t n_bytes);

/* Replaces the allocator of all host memory of the library; allocate = NULL restores the system's. Call
 * it before any other function and never while objects made with the former allocator live. jansson,
 * which this library reads JSON with, uses it inside of our calls only: a program with a jansson of its
 * own keeps the functions that it set with json_set_alloc_funcs, but must not set them while another
 * thread is in a call. */
MB_API void mb_set_allocator(mb_allocate_fn allocate, void *user);

/* Frees a string or array that the library returned as "free with mb_free_text". NULL is allowed. */
MB_API void mb_free_text(char *text);

/* ---- Model -------------------------------------------------------------------------------------------- */

typedef struct mb_model mb_model;

/* Called while weights load, from one thread at a time; 0 <= done_bytes <= total_bytes. */
typedef void (*mb_progress_fn)(void *user, uint64_t done_bytes, uint64_t total_bytes);

/* How much of the weights mb_model_open reads. Only a model with all of them opens sessions; the others
 * tokenize, render chats and tell their info. */
typedef enum mb_load {
    MB_LOAD_ALL,    /* everything */
    MB_LOAD_SIZES,  /* headers alone, or config.json where no weights are: the info's figures are known */
    MB_LOAD_TEXT,   /* nothing, and no device is opened: configuration, tokenizer and chat template */
    MB_LOAD_RANDOM, /* nothing: weights of config.json's shape, made up, always the same, to measure speed */
} mb_load;

typedef struct mb_model_options {
    const char *device; /* "cpu", "cuda", "cuda:1"; NULL: cuda when there is one, else cpu */
    const char *dtype;  /* compute type: "fp32", "bf16", "fp16"; NULL: fp32 on cpu, bf16 on cuda */
    /* NULL: the checkpoint's own; else a file with a Jinja template, or the name of a known one: "qwen3",
     * "qwen3-instruct", "qwen3-thinking", "chatml". */
    const char *chat_template;
    /* NULL: weights stay as they are. "fp8": while they load, the matrices of attention and of the experts
     * become fp8 (e4m3) with a scale for each block of 128x128, as in Qwen's FP8 checkpoints; embedding,
     * router and lm_head stay. A checkpoint that is in fp8 already stays as it is. */
    const char *quant;
    /* NULL: the KV cache is kept in the compute type. "fp8": all layers but the first are in e4m3, a half or a
     * quarter of the memory. The first layer's keys and values follow from token and position alone, so an
     * error there repeats: they stay in the compute type. Each kv head of the other layers has a power of two
     * as its scale, found from the weights, so that no value is too large. */
    const char *kv_dtype;
    int n_threads;           /* CPU threads; 0: one per core that the process may use */
    mb_load load;            /* MB_LOAD_ALL */
    mb_progress_fn progress; /* may be NULL */
    void *progress_user;
} mb_model_options;

MB_API void mb_model_options_init(mb_model_options *options);

/* The directory of a model that a person named. `name` is a directory, or a name as on Hugging Face's hub,
 * "Qwen/Qwen3-30B-A3B", that `hf download` has put into the cache: then its snapshot of the branch main. The
 * cache is $HF_HUB_CACHE, else $HF_HOME/hub, else $XDG_CACHE_HOME/huggingface/hub, else the same below
 * ~/.cache. *directory: free with mb_free_text. MB_ERR_NOT_FOUND: neither; the sentence says how to get
 * it. */
MB_API mb_status mb_find_model(const char *name, char **directory);

/* Opens a Hugging Face checkpoint directory of Qwen3MoeForCausalLM: config.json, *.safetensors (with
 * index when sharded), optional generation_config.json, tokenizer.json, tokenizer_config.json. options
 * NULL: defaults. The weights must fit into the free memory of the device. On the CPU, weights that need
 * no change of layout are mapped from their files: replace a checkpoint that is in use by new files,
 * because the system ends a program (SIGBUS) that reads a mapped file which was cut short.
 * Errors: MB_ERR_IO, MB_ERR_FORMAT (a file breaks its format), MB_ERR_CONFIG (values out of range, tensors
 * missing or of the wrong shape), MB_ERR_UNSUPPORTED, MB_ERR_MEMORY, MB_ERR_DEVICE. *model is NULL on
 * error. A tokenizer or a chat template that cannot be used is no error here: the functions of text return
 * it. */
MB_API mb_status mb_model_open(const char *directory, const mb_model_options *options, mb_model **model);
MB_API void mb_model_close(mb_model *model); /* after all of its sessions are closed; NULL allowed */

typedef struct mb_model_info {
    const char *architecture; /* "Qwen3MoeForCausalLM" */
    const char *device;       /* "cpu", or the card's name; "none" with MB_LOAD_TEXT */
    const char *dtype;        /* compute type */
    const char *kv_dtype;     /* of the KV cache */
    const char *weight_dtype; /* "bf16", "fp8_e4m3 (128x128 blocks)", ... or "mixed" */
    int32_t n_layers, n_moe_layers, hidden, n_heads, n_kv_heads, head_dim;
    int32_t n_experts, top_k, moe_intermediate, intermediate, vocab;
    int32_t max_positions;
    uint64_t n_parameters;
    /* Those that one token uses: one row of the embeddings, top_k experts a layer. */
    uint64_t n_active_parameters;
    /* As held in memory, or as they would be; 0 with MB_LOAD_TEXT, like the counts. */
    uint64_t weight_bytes;
    uint64_t kv_bytes_per_token;
    uint64_t device_memory_bytes, device_free_bytes; /* total and free memory where the model lives, now */
    const int32_t *eos_ids;                          /* [n_eos_ids] generation stops at these */
    int32_t n_eos_ids;
    int has_tokenizer, has_chat_template;
    int has_unknown_chat_template;     /* there is one, but it cannot be used */
    const char *chat_template_problem; /* why, a sentence; else NULL */
    const char *chat_template;         /* the Jinja text of the template in use; NULL: none */
    const char *tokenizer_problem; /* why the checkpoint's tokenizer cannot be used, a sentence; else NULL */
} mb_model_info;

/* Strings and arrays live as long as the model. */
MB_API void mb_model_get_info(const mb_model *model, mb_model_info *info);

/* ---- Text --------------------------------------------------------------------------------------------- */

/* UTF-8 text -> token ids, as Hugging Face's tokenizers: special tokens in the text ("<|im_end|>") become
 * their ids when parse_special is not 0, else they are plain text. *n_ids gets the count needed; when it is
 * more than `capacity` nothing is written and MB_ERR_CAPACITY is returned. Text that is not UTF-8:
 * MB_ERR_FORMAT. */
MB_API mb_status mb_tokenize(const mb_model *model, const char *text, size_t n_bytes, int parse_special,
                             int32_t *ids, size_t capacity, size_t *n_ids);

/* The text of one token, raw bytes (may be part of a character), not zero-terminated; lives as long as
 * the model. An id that no token has is no bytes: vocab is often more than there are tokens.
 * MB_ERR_ARGUMENT: an id outside of [0, vocab). is_special may be NULL. */
MB_API mb_status mb_token_bytes(const mb_model *model, int32_t id, const char **bytes, size_t *n_bytes,
                                int *is_special);

/* A streaming detokenizer. It never hands out part of a UTF-8 character. */
typedef struct mb_decoder mb_decoder;
MB_API mb_status mb_decoder_open(const mb_model *model, int skip_special, mb_decoder **decoder);
MB_API void mb_decoder_close(mb_decoder *decoder);
/* Appends one token. *text (zero-terminated, valid until the next call) is what became complete. Bytes that
 * can never become UTF-8 are replaced by U+FFFD. */
MB_API mb_status mb_decoder_push(mb_decoder *decoder, int32_t id, const char **text, size_t *n_bytes);
/* What is still held back, as U+FFFD; the decoder can be used again. */
MB_API mb_status mb_decoder_finish(mb_decoder *decoder, const char **text, size_t *n_bytes);

typedef struct mb_chat_options {
    int add_generation_prompt; /* end with the assistant's opening */
    /* Qwen3's switch: 1 on, 0 off (opens the answer with an empty <think> block); negative: not given, so the
     * template does what it does by itself. */
    int enable_thinking;
    const char *tools_json; /* JSON array of tool definitions, or NULL */
    const char
        *kwargs_json; /* JSON object of more variables for the template (chat_template_kwargs), or NULL */
} mb_chat_options;

MB_API void mb_chat_options_init(mb_chat_options *options); /* 1, -1, NULL, NULL */

/*
 * Renders the model's chat template (docs/text.md). messages_json: a JSON array of {"role", "content" [,
 * "reasoning_content", "tool_calls" ...]} as in the OpenAI API; "reasoning" and "thinking" are other names
 * for "reasoning_content"; content is a string or an array of {"type": "text", "text": ...}; the arguments
 * of calls are an object or JSON in a string. Integers may have any number of digits. Any number of threads
 * may render with one model. *text: the rendered prompt, zero-terminated; free with mb_free_text.
 * MB_ERR_FORMAT: malformed JSON. MB_ERR_ARGUMENT: a message or tool that is none, that the template would
 * leave out, or that the template refuses. MB_ERR_UNSUPPORTED: no template, or one that cannot be used.
 */
MB_API mb_status mb_chat_render(const mb_model *model, const char *messages_json,
                                const mb_chat_options *options, char **text);

/* ---- Sampling ----------------------------------------------------------------------------------------- */

typedef struct mb_logit_bias {
    int32_t id;
    float bias; /* added to the logit */
} mb_logit_bias;

/* Order of work: penalties and bias, temperature, top-k, top-p, min-p, draw. */
typedef struct mb_sampling {
    float temperature;        /* >= 0; 0 is greedy, and top_k, top_p, min_p are not looked at */
    int32_t top_k;            /* 0: off */
    float top_p;              /* [0, 1]; 1: off; 0: only the best token */
    float min_p;              /* [0, 1]; 0: off; 1: only the best token, and those as probable */
    float repetition_penalty; /* > 0; 1: off; over prompt and answer (Keskar et al. 2019) */
    float presence_penalty;   /* [-2, 2]; once for each token already in the answer */
    float frequency_penalty;  /* [-2, 2]; times its count in the answer */
    uint64_t seed;            /* same seed, same prompt: same text, whatever else is in the batch */
    const mb_logit_bias *logit_bias;
    int32_t n_logit_bias; /* at most 1024 */
} mb_sampling;

/* ---- Session ------------------------------------------------------------------------------------------ */

typedef struct mb_session mb_session;

/* How a GPU gets a step that only decodes. The results have the same bits. Other steps are launched kernel by
 * kernel. */
typedef enum mb_graphs {
    /* The step is a CUDA graph. There is one for each range of batch and context, captured when a step first
     * needs it. */
    MB_GRAPHS_STEP = 0,
    MB_GRAPHS_NONE, /* kernel by kernel */
    /* The attention block of each layer is a graph, all else is launched kernel by kernel. */
    MB_GRAPHS_ATTENTION,
    /* As MB_GRAPHS_STEP, and copies run on a second stream: what the step before drew comes to the host on a
     * branch of the graph, beside the first kernels, and the next step's arrays go to the GPU while this one
     * runs. With one step in flight nothing can run beside another: then it is MB_GRAPHS_STEP. */
    MB_GRAPHS_TWO_STREAMS
} mb_graphs;

typedef struct mb_session_options {
    int32_t max_sequences;   /* in one step; default 64 */
    int32_t max_step_tokens; /* token budget of one step; 0, the default: 2048 on the CPU, 8192 on a GPU */
    int32_t prefill_chunk;   /* most tokens of one prompt in a step; 0, the default: 512, 8192 on a GPU */
    int32_t max_queued;      /* waiting sequences before mb_submit says MB_ERR_CAPACITY; default 1024 */
    /* Size of the KV cache in tokens, rounded up to blocks of 64. 0: on the CPU 16384, on a GPU what
     * memory_fraction leaves, but no more than max_sequences of the longest sequences fill. */
    int64_t kv_tokens;
    /* The part of a GPU's memory that may be in use, by all programs together, when the session is open;
     * more than 0, at most 1, default 0.92. The rest is for what the driver takes later: the graphs of
     * decode steps. */
    float memory_fraction;
    /* Most positions of one sequence, prompt and answer together; 0, the default: the model's. The buffers
     * of a step grow with max_sequences times this. */
    int64_t max_context;
    mb_graphs graphs; /* default MB_GRAPHS_STEP */
    /* 1, the default: the KV of full blocks of 64 tokens stays in the cache when its sequence has ended,
     * until the space is needed. A later sequence that begins with the same tokens (and has the same
     * cache_salt) uses the blocks instead of computing them again. The results have the same bits. 0: no
     * sequence uses what another has computed. */
    int prefix_caching;
    /* While answers are being decoded, as much of waiting prompts is taken into a step as lets the step last
     * this times the time of a step that only decodes. On a GPU prompts take whole steps while they are more
     * than half as many as the sequences that decode; beside few sequences the limit holds on average, not for
     * each step. 0: no limit, which is the most tokens in all; else more than 1. Default 2. */
    float max_decode_slowdown;
    /* While the device runs one step, the next may be planned, and what the last one drew be delivered: 2
     * steps are then in flight. The results have the same bits. 0, the default: 2 on a GPU; 1 on the CPU,
     * which works when it is called. */
    int32_t steps_in_flight;
} mb_session_options;

MB_API void mb_session_options_init(mb_session_options *options);

/* Allocates everything that stepping needs. MB_ERR_MEMORY: the sentence says what was needed, what is free,
 * and which option to lower. */
MB_API mb_status mb_session_open(mb_model *model, const mb_session_options *options, mb_session **session);
MB_API void mb_session_close(mb_session *session); /* drops what is queued or running; NULL allowed */

/* Called during mb_step, by its thread, for each position whose log-probabilities the request asked for:
 * position p's row is the distribution of token p+1. `logprobs` [vocab] is valid during the call only.
 * It may call anything but mb_step.
 *
 * What `user` points at may be freed as soon as mb_read reports an end that was not asked for
 * (MB_FINISHED_STOP, MB_FINISHED_LENGTH, MB_FAILED), or mb_cancel or mb_release of the sequence has
 * returned: they wait for a call in progress, and none comes after them. So the caller of these two must
 * hold no lock that the callback takes. Within the callback they do not wait for the callback itself;
 * then its present call is the last. */
typedef void (*mb_logprobs_fn)(void *user, int64_t position, const float *logprobs, int32_t vocab);

typedef struct mb_waiter mb_waiter; /* below */

typedef struct mb_request {
    const int32_t *ids; /* prompt, n_ids >= 1, each in [0, vocab) */
    size_t n_ids;
    int64_t max_new_tokens; /* >= 0; prompt + new must fit the model's positions and the KV cache */
    /* [0, max_new_tokens]: before so many tokens, those that end the answer (stop_ids, and the model's
     * end-of-text unless ignore_eos) are not drawn. Each counts as one more logit_bias, minus infinity. */
    int64_t min_new_tokens;
    int ignore_eos;          /* go on after the model's end-of-text tokens */
    const int32_t *stop_ids; /* further ids that end the answer (they are not delivered) */
    int32_t n_stop_ids;
    mb_sampling sampling;
    mb_logprobs_fn on_logprobs; /* NULL: none */
    void *on_logprobs_user;
    /* Also call on_logprobs for the prompt's positions. They are computed, so such a request takes nothing
     * from the prefix cache. */
    int prompt_logprobs;
    /* The smaller runs sooner; of equal ones the first to come. A request of a larger one does not wait for
     * ever: each unit lets at most 1024 later requests overtake it. When the KV cache is full, sequences of
     * larger values are put back into the queue, the last to come first. They lose no token, and their
     * results have the same bits. 0 */
    int32_t priority;
    uint64_t cache_salt; /* the prefix cache is shared by requests of the same salt alone; 0 */
    mb_waiter *waiter;   /* of the same session: hears of the sequence's news; NULL: nobody waits */
    void *waiter_user;   /* comes back with the news */
    /* What the answer looks like (moebius/grammar.h), of the same model; the sequence holds it. Tokens that
     * end the answer are drawn only where it is complete, and an answer that can have no more text ends by
     * itself (MB_FINISHED_STOP). NULL: any text. */
    struct mb_grammar *grammar;
    int grammar_after_think; /* the grammar begins after "</think>" in the answer */
} mb_request;

/* Fills sampling and stop behaviour from the model's generation_config.json; without one: greedy. A
 * setting that the file has wrong becomes NaN (top_k: -1), which mb_submit refuses: set your own. */
MB_API void mb_request_init(const mb_model *model, mb_request *request);

/* Queues a sequence; *id names it until mb_release. MB_ERR_ARGUMENT: bad request (the sentence names the
 * field). MB_ERR_CAPACITY: it can never fit, or the queue is full (the sentence says which). Thread-safe. */
MB_API mb_status mb_submit(mb_session *session, const mb_request *request, uint64_t *id);

/* Runs one batch: decodes first, then prefill chunks up to the token budget. With two steps in flight it also
 * starts the next batch, and returns while the device works on that one. *n_unfinished: sequences still
 * waiting or running afterwards; 0 only when nothing is in flight either (it may be NULL). One thread at a
 * time; a second caller gets MB_ERR_STATE. On failure the sequences of the steps in flight end in state
 * MB_FAILED. */
MB_API mb_status mb_step(mb_session *session, int *n_unfinished);

typedef enum mb_state {
    MB_WAITING,         /* queued */
    MB_RUNNING,         /* prompt or answer in progress */
    MB_FINISHED_STOP,   /* an end-of-text or stop token came */
    MB_FINISHED_LENGTH, /* max_new_tokens reached */
    MB_CANCELLED,
    MB_FAILED /* mb_get_failure says why */
} mb_state;

typedef struct mb_token {
    int32_t id;
    /* Natural log of the token's probability at temperature 1, before penalties and truncation. */
    float logprob;
} mb_token;

/* Moves up to `capacity` tokens not yet read into `tokens`; never blocks. Thread-safe. MB_ERR_NOT_FOUND: no
 * such sequence. */
MB_API mb_status mb_read(mb_session *session, uint64_t id, mb_token *tokens, size_t capacity,
                         size_t *n_tokens, mb_state *state);

/* Why a sequence is in state MB_FAILED, as a status and a sentence (mb_last_error); MB_OK: it is not.
 * MB_ERR_ARGUMENT: its grammar, logit_bias and what min_new_tokens bans together forbid every token, or the grammar
 * cannot be followed. MB_ERR_NUMERIC: its logits are not numbers. Else what the step failed with.
 * MB_ERR_NOT_FOUND: no such sequence. Thread-safe. */
MB_API mb_status mb_get_failure(mb_session *session, uint64_t id);

typedef struct mb_usage {
    int64_t n_prompt;        /* tokens */
    int64_t n_cached_tokens; /* of these, taken from the prefix cache when the sequence first ran */
    int64_t n_generated;     /* tokens so far, read or not */
    int32_t n_preemptions;   /* how often the sequence was put back into the queue */
} mb_usage;

/* What a sequence has used so far. Thread-safe. MB_ERR_NOT_FOUND: no such sequence. */
MB_API mb_status mb_get_usage(mb_session *session, uint64_t id, mb_usage *usage);

/* Ends a sequence in any state; its KV blocks are free when this returns, or after the steps in flight. What
 * it produced can still be read. Waits for its on_logprobs, never for a step. Thread-safe. */
MB_API mb_status mb_cancel(mb_session *session, uint64_t id);

/* Forgets the sequence (cancels it first if it runs, as mb_cancel). Thread-safe. */
MB_API mb_status mb_release(mb_session *session, uint64_t id);

/* ---- Waiting ------------------------------------------------------------------------------------------ */

/* A waiter lets threads sleep until some of its sequences have news: tokens to read, or an end. Every
 * request names at most one waiter. One waiter with all sequences suits an event loop; one waiter for each
 * thread that serves a request suits a thread pool, and news wakes that thread alone. All calls are
 * thread-safe. Close a waiter before its session, when no thread waits on it; sequences that still name it
 * go on without. */
MB_API mb_status mb_waiter_open(mb_session *session, mb_waiter **waiter);
MB_API void mb_waiter_close(mb_waiter *waiter); /* NULL allowed */

typedef struct mb_news {
    uint64_t id;
    void *user; /* the request's waiter_user */
} mb_news;

/* Blocks until a sequence of the waiter has news, then hands out up to `capacity` >= 1 such sequences, each
 * once, in the order of their news. *n_news is 0 when timeout_ms passed first (negative: never; 0: only
 * looks) or mb_waiter_wake was called. A sequence whose news was handed out comes again when there is more;
 * so read it with mb_read until that gives fewer tokens than asked for. Several threads may wait on one
 * waiter; each piece of news goes to one of them. News may come before mb_submit has returned. mb_release
 * forgets news that was not handed out: no mb_wait that begins afterwards speaks of the sequence, so what
 * waiter_user points at may then be freed by the thread that waits. */
MB_API mb_status mb_wait(mb_waiter *waiter, int64_t timeout_ms, mb_news *news, size_t capacity,
                         size_t *n_news);

/* Makes one mb_wait return, at once if a thread waits, else the next. */
MB_API mb_status mb_waiter_wake(mb_waiter *waiter);

/* For the thread that steps: blocks until there is work for mb_step, timeout_ms passed (negative: never; 0:
 * only looks) or mb_session_wake was called. *n_unfinished is as mb_step's. A loop that never polls:
 *
 *     while (mb_session_wait(session, -1, &n_unfinished) == MB_OK && !atomic_load(&is_stopping))
 *         if (n_unfinished > 0)
 *             mb_step(session, NULL);
 */
MB_API mb_status mb_session_wait(mb_session *session, int64_t timeout_ms, int *n_unfinished);

/* Makes one mb_session_wait return, at once if the thread waits, else its next. Thread-safe. */
MB_API mb_status mb_session_wake(mb_session *session);

typedef struct mb_session_stats {
    int32_t n_waiting, n_running;
    /* Blocks of 64 tokens. Free ones may hold cached prefixes; these give way when a sequence needs them. */
    int64_t kv_blocks_total, kv_blocks_free;
    /* Since the session was opened. Prompt tokens are those computed or found in the prefix cache, each
     * once. */
    uint64_t n_steps, n_prompt_tokens, n_generated_tokens;
    uint64_t n_preemptions;
    uint64_t n_prefix_queries, n_prefix_hits; /* prompt tokens looked up in the prefix cache, and found */
} mb_session_stats;

MB_API void mb_session_get_stats(mb_session *session, mb_session_stats *stats); /* thread-safe */

/* Where the memory of the model's device went, in bytes. */
typedef struct mb_session_memory {
    uint64_t weight_bytes; /* of the model, shared by its sessions; on the CPU also those in mapped files */
    uint64_t buffer_bytes; /* of a step: activations, workspaces, logits, inputs */
    uint64_t kv_bytes;     /* of kv_tokens tokens */
    int64_t kv_tokens;
    int64_t step_tokens; /* most in one step: max_step_tokens, or what max_sequences chunks can fill */
    uint64_t device_bytes, free_bytes; /* of the device, now, whoever uses it; 0: not known */
} mb_session_memory;

MB_API void mb_session_get_memory(const mb_session *session, mb_session_memory *memory); /* thread-safe */

#ifdef __cplusplus
}
#endif
#endif
