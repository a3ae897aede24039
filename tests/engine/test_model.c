/* Opening models: what is missing or wrong is said in one sentence, options are honoured, info is right. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "support/generation.h"

static char directory[TINY_PATH];
static tiny_checkpoint options;

static int write_checkpoint(void **state) {
    (void)state;
    tiny_directory_make(directory);
    tiny_checkpoint_init(&options);
    options.n_layers = 3;
    options.decoder_sparse_step = 2; /* layers 0 and 2 dense */
    options.dtype = "BF16";
    options.extra_config = "\"eos_token_id\": 3";
    tiny_checkpoint_write(&options, directory);
    return 0;
}

static int remove_checkpoint(void **state) {
    (void)state;
    tiny_directory_remove(directory);
    return 0;
}

static void expect_failure(const char *path, const mb_model_options *with, mb_status status,
                           const char *word) {
    mb_model *model = (mb_model *)1;
    assert_int_equal(mb_model_open(path, with, &model), status);
    assert_null(model);
    if (!strstr(mb_last_error(), word))
        fail_msg("\"%s\" does not mention \"%s\"", mb_last_error(), word);
}

static void test_wrong_directories(void **state) {
    (void)state;
    char path[TINY_PATH + 64];
    expect_failure("/no/such/model", NULL, MB_ERR_IO, "/no/such/model: no such directory");
    snprintf(path, sizeof path, "%s/config.json", directory);
    expect_failure(path, NULL, MB_ERR_IO, "not a directory");
    expect_failure("", NULL, MB_ERR_ARGUMENT, "directory");
    expect_failure(NULL, NULL, MB_ERR_ARGUMENT, "directory");
    char empty[TINY_PATH];
    tiny_directory_make(empty);
    expect_failure(empty, NULL, MB_ERR_IO, "config.json");
    tiny_directory_remove(empty);
}

static void test_unknown_options(void **state) {
    (void)state;
    expect_failure(directory, &(mb_model_options){.device = "cpu", .dtype = "int7"}, MB_ERR_ARGUMENT, "fp32");
    expect_failure(directory, &(mb_model_options){.device = "cpu", .dtype = "fp8_e4m3"}, MB_ERR_ARGUMENT,
                   "bf16");
    expect_failure(directory, &(mb_model_options){.device = "cpu", .n_threads = -1}, MB_ERR_ARGUMENT,
                   "n_threads");
    expect_failure(directory, &(mb_model_options){.device = "abacus"}, MB_ERR_ARGUMENT, "abacus");
    expect_failure(directory, &(mb_model_options){.chat_template = "esperanto"}, MB_ERR_NOT_FOUND, "qwen3");
}

static void test_info(void **state) {
    (void)state;
    mb_model *model;
    assert_int_equal(mb_model_open(directory, &(mb_model_options){.device = "cpu"}, &model), MB_OK);
    mb_model_info info;
    mb_model_get_info(model, &info);
    assert_string_equal(info.architecture, "Qwen3MoeForCausalLM");
    assert_string_equal(info.device, "cpu");
    assert_string_equal(info.dtype, "fp32");
    assert_string_equal(info.weight_dtype, "bf16");
    assert_int_equal(info.n_layers, 3);
    assert_int_equal(info.n_moe_layers, 1);
    assert_int_equal(info.hidden, options.hidden);
    assert_int_equal(info.n_heads, options.n_heads);
    assert_int_equal(info.n_kv_heads, options.n_kv_heads);
    assert_int_equal(info.head_dim, options.head_dim);
    assert_int_equal(info.n_experts, options.n_experts);
    assert_int_equal(info.top_k, options.top_k);
    assert_int_equal(info.moe_intermediate, options.moe_intermediate);
    assert_int_equal(info.intermediate, options.intermediate);
    assert_int_equal(info.vocab, options.vocab);
    assert_int_equal(info.max_positions, options.max_positions);
    /* the parameters counted by hand */
    uint64_t h = (uint64_t)options.hidden, d = (uint64_t)options.head_dim;
    uint64_t q = (uint64_t)options.n_heads * d, kv = (uint64_t)options.n_kv_heads * d;
    uint64_t attention = 2 * h + h * (q + 2 * kv) + 2 * d + q * h;
    uint64_t expert = 3 * h * (uint64_t)options.moe_intermediate, n_experts = (uint64_t)options.n_experts;
    uint64_t moe = n_experts * h + n_experts * expert, dense = 3 * h * (uint64_t)options.intermediate;
    uint64_t head = (uint64_t)options.vocab * h;
    assert_int_equal(info.n_parameters, 3 * attention + moe + 2 * dense + 2 * head + h);
    uint64_t idle =
        (n_experts - (uint64_t)options.top_k) * expert + head - h; /* and one embedding row is read */
    assert_int_equal(info.n_active_parameters, info.n_parameters - idle);
    assert_int_equal(info.kv_bytes_per_token, 3 * 2 * kv * 4);
    assert_true(info.weight_bytes >= 2 * info.n_parameters);
    assert_true(info.device_memory_bytes > 0 && info.device_free_bytes <= info.device_memory_bytes);
    assert_int_equal(info.n_eos_ids, 1);
    assert_int_equal(info.eos_ids[0], 3);
    assert_false(info.has_tokenizer);
    assert_false(info.has_chat_template);
    mb_model_close(model);
}

/* Headers alone give the same figures; no file of weights at all still gives the tokenizer and the rest. */
static void test_open_without_weights(void **state) {
    (void)state;
    char path[TINY_PATH + 64];
    mb_model *model;
    mb_session *session = (mb_session *)1;
    mb_model_info all, sizes, text;
    size_t n_bytes;
    char *tokenizer = tiny_file_read("tests/golden/tokenizer", "tokenizer.json", &n_bytes);
    options.vocab = 4000;
    tiny_checkpoint_write(&options, directory);
    tiny_file_write(directory, "tokenizer.json", tokenizer, n_bytes);
    free(tokenizer);
    assert_int_equal(mb_model_open(directory, &(mb_model_options){.device = "cpu"}, &model), MB_OK);
    mb_model_get_info(model, &all);
    assert_string_equal(all.weight_dtype, "bf16");
    mb_model_close(model);

    mb_model_options with = {.device = "cpu", .load = MB_LOAD_SIZES};
    assert_int_equal(mb_model_open(directory, &with, &model), MB_OK);
    mb_model_get_info(model, &sizes);
    assert_int_equal(sizes.n_parameters, all.n_parameters);
    assert_int_equal(sizes.n_active_parameters, all.n_active_parameters);
    assert_int_equal(sizes.weight_bytes, all.weight_bytes);
    assert_string_equal(sizes.weight_dtype, "bf16");
    assert_string_equal(sizes.device, "cpu");
    assert_true(sizes.device_free_bytes > 0);
    assert_int_equal(mb_session_open(model, NULL, &session), MB_ERR_STATE);
    assert_null(session);
    assert_non_null(strstr(mb_last_error(), "without its weights"));
    mb_model_close(model);

    snprintf(path, sizeof path, "%s/model.safetensors", directory);
    assert_int_equal(truncate(path, 1000), 0);
    expect_failure(directory, &with, MB_ERR_FORMAT, "download it again");
    with.load = MB_LOAD_TEXT;
    with.device = "cuda:99"; /* is not even looked for */
    for (int i = 0; i < 2; i++) {
        assert_int_equal(mb_model_open(directory, &with, &model), MB_OK);
        mb_model_get_info(model, &text);
        assert_int_equal(text.hidden, all.hidden);
        assert_int_equal(text.weight_bytes + text.n_parameters + text.device_free_bytes, 0);
        assert_string_equal(text.device, "none");
        assert_int_equal(text.kv_bytes_per_token, all.kv_bytes_per_token);
        int32_t ids[16];
        size_t n_ids;
        assert_int_equal(mb_tokenize(model, "hello", 5, 0, ids, 16, &n_ids), MB_OK);
        assert_int_equal(mb_session_open(model, NULL, &session), MB_ERR_STATE);
        mb_request request;
        mb_request_init(model, &request);
        mb_model_close(model);
        unlink(path);
    }
    with.load = (mb_load)7;
    expect_failure(directory, &with, MB_ERR_ARGUMENT, "load is 7");
}

static void test_without_tokenizer(void **state) {
    (void)state;
    mb_model *model;
    assert_int_equal(mb_model_open(directory, &(mb_model_options){.device = "cpu"}, &model), MB_OK);
    int32_t ids[8];
    size_t n;
    const char *bytes;
    mb_decoder *decoder = (mb_decoder *)1;
    char *text = (char *)1;
    assert_int_equal(mb_tokenize(model, "a", 1, 0, ids, 8, &n), MB_ERR_UNSUPPORTED);
    assert_non_null(strstr(mb_last_error(), "tokenizer.json"));
    assert_int_equal(mb_token_bytes(model, 1, &bytes, &n, NULL), MB_ERR_UNSUPPORTED);
    assert_int_equal(mb_decoder_open(model, 0, &decoder), MB_ERR_UNSUPPORTED);
    assert_null(decoder);
    assert_int_equal(mb_chat_render(model, "[]", NULL, &text), MB_ERR_UNSUPPORTED);
    assert_null(text);
    mb_model_close(model);
}

/* A tokenizer that cannot be used leaves a model of token ids; the functions of text say why. */
static void test_unusable_tokenizer(void **state) {
    (void)state;
    static const struct {
        const char *name, *bytes;
        mb_status status;
        const char *sentence;
    } cases[] = {
        {"tokenizer.json", "{\"model\": ", MB_ERR_FORMAT, "tokenizer.json: not valid JSON"},
        {"tokenizer.json", "{\"model\": {\"type\": \"Unigram\"}}", MB_ERR_UNSUPPORTED,
         "\"model\" is \"Unigram\""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tiny_text_write(directory, cases[i].name, cases[i].bytes);
        mb_model *model;
        mb_model_info info;
        int32_t ids[8];
        size_t n;
        const char *bytes;
        mb_decoder *decoder;
        assert_int_equal(mb_model_open(directory, &(mb_model_options){.device = "cpu"}, &model), MB_OK);
        mb_model_get_info(model, &info);
        assert_false(info.has_tokenizer);
        assert_non_null(strstr(info.tokenizer_problem, cases[i].sentence));
        assert_int_equal(mb_tokenize(model, "a", 1, 0, ids, 8, &n), cases[i].status);
        assert_non_null(strstr(mb_last_error(), cases[i].sentence));
        assert_int_equal(mb_token_bytes(model, 1, &bytes, &n, NULL), cases[i].status);
        assert_int_equal(mb_decoder_open(model, 0, &decoder), cases[i].status);
        assert_non_null(strstr(mb_last_error(), cases[i].sentence));
        mb_model_close(model);
    }
}

/* So does a chat template. */
static void test_unusable_chat_template(void **state) {
    (void)state;
    tiny_text_write(directory, "tokenizer_config.json", "{\"chat_template\": 3}");
    mb_model *model;
    mb_model_info info;
    char *text;
    assert_int_equal(mb_model_open(directory, &(mb_model_options){.device = "cpu"}, &model), MB_OK);
    mb_model_get_info(model, &info);
    assert_false(info.has_chat_template);
    assert_true(info.has_unknown_chat_template);
    assert_null(info.tokenizer_problem);
    assert_int_equal(mb_chat_render(model, "[]", NULL, &text), MB_ERR_FORMAT);
    assert_non_null(strstr(mb_last_error(), "\"chat_template\" is 3; it must be a string"));
    assert_null(text);
    mb_model_close(model);
    assert_int_equal(
        mb_model_open(directory, &(mb_model_options){.device = "cpu", .chat_template = "qwen3"}, &model),
        MB_OK);
    assert_int_equal(mb_chat_render(model, "[{\"role\": \"user\", \"content\": \"a\"}]", NULL, &text), MB_OK);
    mb_free_text(text);
    mb_model_close(model);
}

static void test_request_defaults_come_from_generation_config(void **state) {
    (void)state;
    mb_model *model;
    mb_request request;
    assert_int_equal(mb_model_open(directory, &(mb_model_options){.device = "cpu"}, &model), MB_OK);
    mb_request_init(model, &request);
    assert_true(request.sampling.temperature == 0); /* greedy */
    assert_true(request.sampling.top_p == 1 && request.sampling.repetition_penalty == 1);
    mb_model_close(model);
    tiny_text_write(directory, "generation_config.json",
                    "{\"do_sample\": true, \"temperature\": 0.6, \"top_k\": 20, \"top_p\": 0.95, "
                    "\"eos_token_id\": [5, 6]}");
    assert_int_equal(mb_model_open(directory, &(mb_model_options){.device = "cpu"}, &model), MB_OK);
    mb_request_init(model, &request);
    assert_true(request.sampling.temperature == 0.6f);
    assert_true(request.sampling.top_p == 0.95f);
    assert_int_equal(request.sampling.top_k, 20);
    assert_false(request.ignore_eos);
    mb_model_info info;
    mb_model_get_info(model, &info);
    assert_int_equal(info.n_eos_ids, 2);
    assert_int_equal(info.eos_ids[1], 6);
    mb_model_close(model);
}

/* A setting that the request can override does not stop the model from opening; used as
 * it is, it is refused. */
static void test_wrong_generation_settings_open(void **state) {
    (void)state;
    mb_model *model;
    mb_request request;
    uint64_t id;
    const int32_t ids[] = {1, 2};
    tiny_text_write(directory, "generation_config.json",
                    "{\"do_sample\": true, \"temperature\": 0.7, \"top_p\": 7, \"eos_token_id\": \"</s>\"}");
    assert_int_equal(mb_model_open(directory, &(mb_model_options){.device = "cpu"}, &model), MB_OK);
    mb_model_info info;
    mb_model_get_info(model, &info);
    assert_int_equal(info.n_eos_ids, 1);
    assert_int_equal(info.eos_ids[0], 3); /* config.json's */
    mb_session *session = session_with(model, 0, 0, 0, 256);
    mb_request_init(model, &request);
    request.ids = ids;
    request.n_ids = 2;
    assert_int_equal(mb_submit(session, &request, &id), MB_ERR_ARGUMENT);
    assert_non_null(strstr(mb_last_error(), "top_p is nan"));
    request.sampling.top_p = 0.9f;
    assert_int_equal(mb_submit(session, &request, &id), MB_OK);
    mb_session_close(session);
    mb_model_close(model);
    static const char *const broken[] = {
        "{\"top_p\": ", "", "[]", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"};
    for (size_t i = 0; i < sizeof broken / sizeof *broken; i++) { /* a warning, and the defaults */
        tiny_text_write(directory, "generation_config.json", broken[i]);
        assert_int_equal(mb_model_open(directory, NULL, &model), MB_OK);
        mb_request_init(model, &request);
        assert_true(request.sampling.top_p == 1 && request.sampling.temperature == 0);
        mb_model_close(model);
    }
}

/* Half precision stays near fp32. With all experts chosen, because rounding may turn a close choice of the
 * router, and then the difference is as large as that between two experts. */
static void test_compute_types(void **state) {
    (void)state;
    static const char *const names[] = {"fp32", "bf16", "fp16"};
    static const float tolerances[] = {0, 0.1f, 0.01f};
    static const int32_t ids[] = {1, 5, 9, 13, 2, 8};
    tiny_checkpoint all_experts = options;
    all_experts.top_k = all_experts.n_experts;
    tiny_checkpoint_write(&all_experts, directory);
    generation runs[3];
    for (int i = 0; i < 3; i++) {
        mb_model *model;
        assert_int_equal(
            mb_model_open(directory, &(mb_model_options){.device = "cpu", .dtype = names[i]}, &model), MB_OK);
        mb_model_info info;
        mb_model_get_info(model, &info);
        assert_string_equal(info.dtype, names[i]);
        generation_init(&runs[i], model, ids, 6, 0);
        generation_keep_logprobs(&runs[i], 1);
        mb_session *session = session_with(model, 0, 0, 0, 0);
        generation_run_alone(&runs[i], session);
        mb_session_close(session);
        mb_model_close(model);
        assert_int_equal(runs[i].n_rows, 6);
        float worst = 0;
        for (int j = 0; j < 6 * options.vocab; j++) {
            float difference = runs[i].rows[j] - runs[0].rows[j];
            difference = difference < 0 ? -difference : difference;
            worst = !(difference <= worst) ? difference : worst;
        }
        assert_true(worst <= tolerances[i]);
        assert_int_equal(worst > 0, i > 0); /* and it really computes in another type */
    }
    for (int i = 0; i < 3; i++)
        generation_free(&runs[i]);
}

static void test_version(void **state) {
    (void)state;
    assert_true(mb_version()[0] >= '0' && mb_version()[0] <= '9');
}

#define FRESH(test) cmocka_unit_test_setup_teardown(test, write_checkpoint, remove_checkpoint)

int main(void) {
    const struct CMUnitTest tests[] = {
        FRESH(test_wrong_directories),
        FRESH(test_unknown_options),
        FRESH(test_info),
        FRESH(test_open_without_weights),
        FRESH(test_without_tokenizer),
        FRESH(test_unusable_tokenizer),
        FRESH(test_unusable_chat_template),
        FRESH(test_request_defaults_come_from_generation_config),
        FRESH(test_wrong_generation_settings_open),
        FRESH(test_compute_types),
        FRESH(test_version),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
