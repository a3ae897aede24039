/*
 * Every allocation fails once, and from then on: a model is opened, a chat is rendered and tokenized, tokens
 * are made and decoded. For each k, the k-th allocation is refused, alone or with all that follow. Then
 * nothing may leak, the call must say MB_ERR_MEMORY with a sentence, and, when memory is there again, the
 * same handle must do the same call. An allocation that is not essential (the pattern compiler's fast path)
 * may be refused without anybody noticing: then the results must be those of an undisturbed run.
 */
#include <jansson.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/status.h"
#include "moebius/moebius.h"
#include "support/tiny_checkpoint.h"

enum { MAX_IDS = 2048 };

static struct {
    atomic_llong n_calls, n_live, n_refused;
    long long first_refused, last_refused;
} memory;

static void *failing_allocate(void *user, void *pointer, size_t n_bytes) {
    (void)user;
    if (n_bytes == 0) {
        atomic_fetch_sub(&memory.n_live, 1);
        free(pointer);
        return NULL;
    }
    long long call = atomic_fetch_add(&memory.n_calls, 1) + 1;
    if (call >= memory.first_refused && call <= memory.last_refused) {
        atomic_fetch_add(&memory.n_refused, 1);
        return NULL;
    }
    void *block = realloc(pointer, n_bytes);
    if (block && !pointer)
        atomic_fetch_add(&memory.n_live, 1);
    return block;
}

static void refuse(long long first, long long last) {
    atomic_store(&memory.n_calls, 0);
    atomic_store(&memory.n_refused, 0);
    memory.first_refused = first;
    memory.last_refused = last;
}

/* The first failure of a scenario, or what it made. */
typedef struct outcome {
    mb_status status;
    size_t n_ids;
    int32_t ids[MAX_IDS], drawn;
    int was_again; /* the call that failed once failed again although memory was there */
    char sentence[1024];
} outcome;

static int failed(outcome *o, mb_status status) {
    if (status == MB_OK)
        return 0;
    if (o->status == MB_OK) {
        o->status = status;
        snprintf(o->sentence, sizeof o->sentence, "%s", mb_last_error());
    }
    return 1;
}

/* Evaluates the call; when it fails for want of memory, a second time. Goes to `done` when that fails too. */
#define CALL(expression)                                                                     \
    do {                                                                                     \
        if (failed(&o, expression) && failed(&o, expression)) {                              \
            o.was_again = memory.last_refused == memory.first_refused; /* memory was back */ \
            goto done;                                                                       \
        }                                                                                    \
    } while (0)

static char directory[TINY_PATH];
static const char no_sentence[] = "(no sentence)";

static outcome run_scenario(void) {
    static const char messages[] = "[{\"role\": \"system\", \"content\": \"Be brief.\"},"
                                   " {\"role\": \"user\", \"content\": \"caf\\u00e9 and 12 + 30?\"}]";
    outcome o = {0};
    mb_model *model = NULL;
    mb_session *session = NULL;
    mb_waiter *waiter = NULL;
    mb_decoder *decoder = NULL;
    char *text = NULL;
    const mb_model_options model_options = {.device = "cpu", .n_threads = 1};
    mb_session_options session_options;
    mb_session_options_init(&session_options);
    session_options.kv_tokens = 512;
    session_options.max_step_tokens = 64;
    session_options.max_sequences = 2;
    CALL(mb_model_open(directory, &model_options, &model));
    CALL(mb_session_open(model, &session_options, &session));
    CALL(mb_waiter_open(session, &waiter));
    CALL(mb_decoder_open(model, 0, &decoder));
    mb_chat_options chat;
    mb_chat_options_init(&chat);
    chat.tools_json = "[{\"type\": \"function\", \"function\": {\"name\": \"add\", \"parameters\": {}}}]";
    CALL(mb_chat_render(model, messages, &chat, &text));
    size_t n_read, n_bytes;
    CALL(mb_tokenize(model, text, strlen(text), 1, o.ids, MAX_IDS, &o.n_ids));

    mb_request request;
    mb_request_init(model, &request);
    request.ids = o.ids;
    request.n_ids = o.n_ids < 100 ? o.n_ids : 100;
    request.max_new_tokens = 1;
    request.ignore_eos = 1;
    request.sampling.repetition_penalty = 1.1f;
    request.waiter = waiter;
    uint64_t id;
    CALL(mb_submit(session, &request, &id));
    mb_state state;
    mb_token token;
    do {
        CALL(mb_step(session, NULL));
        CALL(mb_read(session, id, &token, 1, &n_read, &state));
    } while (state == MB_WAITING || state == MB_RUNNING);
    mb_news news;
    size_t n_news;
    CALL(mb_wait(waiter, 0, &news, 1, &n_news));
    assert_int_equal(n_news, 1);
    assert_int_equal(state, MB_FINISHED_LENGTH);
    assert_int_equal(n_read, 1);
    o.drawn = token.id;
    const char *piece;
    CALL(mb_decoder_push(decoder, o.ids[0], &piece, &n_bytes));
    CALL(mb_decoder_finish(decoder, &piece, &n_bytes));
done:
    mb_free_text(text);
    mb_decoder_close(decoder);
    mb_waiter_close(waiter);
    mb_session_close(session);
    mb_model_close(model);
    return o;
}

enum { N_BYTES = 256, N_MERGES = 16 };

/* The demo model's tokenizer with fewer merges, so that there are not too many allocations to refuse. */
static void write_small_tokenizer(void) {
    json_t *root = json_load_file("models/demo/tokenizer.json", 0, NULL);
    json_t *model = json_object_get(root, "model"), *vocab = json_object_get(model, "vocab");
    json_t *merges = json_object_get(model, "merges"), *added = json_object_get(root, "added_tokens"), *item;
    assert_true(json_array_size(merges) > N_MERGES);
    while (json_array_size(merges) > N_MERGES)
        json_array_remove(merges, json_array_size(merges) - 1);
    const char *token;
    void *next;
    json_object_foreach_safe(vocab, next, token, item) if (json_integer_value(item) >= N_BYTES + N_MERGES)
        json_object_del(vocab, token);
    assert_int_equal(json_object_size(vocab), N_BYTES + N_MERGES);
    size_t i;
    json_array_foreach(added, i, item)
        json_object_set_new(item, "id", json_integer((json_int_t)(N_BYTES + N_MERGES + i)));
    char *text = json_dumps(root, 0);
    tiny_text_write(directory, "tokenizer.json", text);
    free(text);
    json_decref(root);
}

/* The demo model's, with the added tokens' ids of the small tokenizer: in the order of the file, as there. */
static void write_tokenizer_config(void) {
    json_t *root = json_load_file("models/demo/tokenizer_config.json", 0, NULL), *token;
    json_t *small = json_object();
    const char *former_id;
    json_object_foreach(json_object_get(root, "added_tokens_decoder"), former_id, token) {
        char id[16];
        snprintf(id, sizeof id, "%zu", (size_t)N_BYTES + N_MERGES + json_object_size(small));
        json_object_set(small, id, token);
    }
    assert_true(json_object_size(small) > 0);
    json_object_set_new(root, "added_tokens_decoder", small);
    char *text = json_dumps(root, 0);
    tiny_text_write(directory, "tokenizer_config.json", text);
    free(text);
    json_decref(root);
}

/* A tiny checkpoint with every optional file. */
static int write_checkpoint(void **state) {
    (void)state;
    tiny_directory_make(directory);
    tiny_checkpoint options;
    tiny_checkpoint_init(&options);
    options.vocab = 300;
    options.n_experts = 2;
    options.n_shards = 2;
    tiny_checkpoint_write(&options, directory);
    write_small_tokenizer();
    write_tokenizer_config();
    tiny_text_write(directory, "generation_config.json", "{\"do_sample\": true, \"temperature\": 0.6}");
    mb_set_allocator(failing_allocate, NULL);
    return 0;
}

static int remove_checkpoint(void **state) {
    (void)state;
    mb_set_allocator(NULL, NULL);
    tiny_directory_remove(directory);
    return 0;
}

static void check_outcome(const outcome *o, const outcome *undisturbed, int once, long long k) {
    if (atomic_load(&memory.n_live) != 0)
        fail_msg("allocation %lld refused: %lld blocks leaked (%s)", k, atomic_load(&memory.n_live),
                 o->sentence);
    if (o->status == MB_OK && once) {
        assert_int_equal(o->drawn, undisturbed->drawn);
        assert_int_equal(o->n_ids, undisturbed->n_ids);
        assert_memory_equal(o->ids, undisturbed->ids, o->n_ids * sizeof *o->ids);
        return;
    }
    if (o->status != MB_ERR_MEMORY)
        fail_msg("allocation %lld refused: %s (%s)", k, mb_status_name(o->status), o->sentence);
    if (strcmp(o->sentence, no_sentence) == 0 || o->sentence[0] == '\0')
        fail_msg("allocation %lld refused: there is no sentence", k);
    if (o->was_again)
        fail_msg("allocation %lld refused once, but the call failed again: %s", k, mb_last_error());
}

/* One k after the other until no allocation is refused any more; returns how many there are. */
static long long torture(int once) {
    refuse(INT64_MAX, INT64_MAX);
    const outcome undisturbed = run_scenario();
    if (undisturbed.status != MB_OK)
        fail_msg("with memory: %s", undisturbed.sentence);
    int n_tolerated = 0;
    for (long long k = 1;; k++) {
        refuse(k, once ? k : INT64_MAX);
        mb_fail(MB_OK, "%s", no_sentence);
        const outcome o = run_scenario();
        if (atomic_load(&memory.n_refused) == 0) {
            assert_int_equal(o.status, MB_OK);
            print_message("%lld allocations, %d of them not essential\n", k - 1, n_tolerated);
            return k - 1;
        }
        check_outcome(&o, &undisturbed, once, k);
        n_tolerated += o.status == MB_OK;
    }
}

static void test_each_allocation_fails_once(void **state) {
    (void)state;
    assert_true(torture(1) > 100);
}

static void test_all_allocations_fail_from_one_on(void **state) {
    (void)state;
    assert_true(torture(0) > 100);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_allocation_fails_once),
        cmocka_unit_test(test_all_allocations_fail_from_one_on),
    };
    return cmocka_run_group_tests(tests, write_checkpoint, remove_checkpoint);
}
