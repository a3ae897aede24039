/* Requests as readers see them: fields, defaults, and what is refused; and the text that
 * replies are made of. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "server/generation.h"
#include "server/json_read.h"

static const char *const names[] = {"demo", "alias", NULL};
static server_reading reading = {.context = 256, .longest_token = 16, .names = names};

static int open_model(void **state) {
    mb_model_options options;
    (void)state;
    mb_model_options_init(&options);
    options.load = MB_LOAD_TEXT;
    if (mb_model_open("models/demo", &options, &reading.model) != MB_OK ||
        mb_answer_formats_of(reading.model, &reading.formats) != MB_OK)
        return -1;
    mb_model_get_info(reading.model, &reading.info);
    return 0;
}

static int close_model(void **state) {
    (void)state;
    mb_model_close(reading.model);
    return 0;
}

/* Reads a body that must be accepted. */
static server_generation accept(int is_chat, const char *text) {
    server_problem problem = {0};
    server_generation generation;
    json_t *body = server_json_parse(text, strlen(text), &problem);
    assert_non_null(body);
    server_generation_init(&generation, reading.model);
    int status = is_chat ? server_read_chat(&reading, body, &generation, &problem)
                         : server_read_completion(&reading, body, &generation, &problem);
    if (status != 0)
        fail_msg("%s: %s", problem.field, problem.message);
    json_decref(body);
    return generation;
}

static void refuse(int is_chat, const char *text, int status, const char *field) {
    server_problem problem = {0};
    server_generation generation;
    json_t *body = server_json_parse(text, strlen(text), &problem);
    server_generation_init(&generation, reading.model);
    if (body != NULL)
        assert_int_equal(is_chat ? server_read_chat(&reading, body, &generation, &problem)
                                 : server_read_completion(&reading, body, &generation, &problem),
                         -1);
    assert_int_equal(problem.status, status);
    assert_string_equal(problem.field, field);
    assert_true(strlen(problem.message) > 10);
    server_generation_free(&generation);
    json_decref(body);
}

static void test_defaults(void **state) {
    (void)state;
    server_generation g = accept(0, "{\"prompt\":[1,2,3]}");
    assert_int_equal(g.n_prompts, 1);
    assert_int_equal(g.prompts[0].n_ids, 3);
    assert_int_equal(g.prompts[0].max_new_tokens, 16);
    assert_int_equal(g.n_answers, 1);
    assert_int_equal(g.top_logprobs, -1);
    assert_int_equal(g.prompt_logprobs, -1);
    assert_string_equal(g.model, "demo");
    assert_true(g.skip_special && !g.stream && !g.echo && !g.parses);
    assert_float_equal(g.request.sampling.temperature, 0.7, 1e-6); /* generation_config.json */
    assert_int_equal(g.request.sampling.top_k, 20);
    server_generation_free(&g);
}

static void test_all_fields(void **state) {
    (void)state;
    server_generation g = accept(
        0,
        "{\"model\":\"alias\",\"prompt\":[[1],[2,3]],\"n\":3,\"max_tokens\":20,\"min_tokens\":2,\"seed\":-5,\"temperature\":0.5,"
        "\"top_k\":-1,\"top_p\":0.25,\"min_p\":0.125,\"repetition_penalty\":1.5,\"presence_penalty\":-1,"
        "\"frequency_penalty\":1,\"stop\":[\"a\",\"bc\"],\"stop_token_ids\":[4,5],\"logit_bias\":{\"6\":-7},"
        "\"ignore_eos\":true,\"include_stop_str_in_output\":true,\"skip_special_tokens\":false,\"logprobs\":2,"
        "\"echo\":true,\"stream\":true,\"stream_options\":{\"include_usage\":true},\"priority\":-3,\"user\":\"u\"}");
    const mb_sampling *sampling = &g.request.sampling;
    assert_string_equal(g.model, "alias");
    assert_int_equal(g.n_prompts, 2);
    assert_int_equal(g.prompts[1].ids[1], 3);
    assert_true(g.prompts[1].text != NULL && g.prompts[1].n_bytes > 0); /* decoded, to be echoed */
    assert_int_equal(g.n_answers, 3);
    assert_int_equal(g.min_new_tokens, 2);
    assert_true(sampling->seed == (uint64_t)-5);
    assert_int_equal(sampling->top_k, 0);
    assert_float_equal(sampling->top_p, 0.25, 0);
    assert_float_equal(sampling->min_p, 0.125, 0);
    assert_float_equal(sampling->repetition_penalty, 1.5, 0);
    assert_float_equal(sampling->presence_penalty, -1, 0);
    assert_float_equal(sampling->frequency_penalty, 1, 0);
    assert_int_equal(g.n_stops, 2);
    assert_string_equal(g.stops[1], "bc");
    assert_int_equal(g.request.n_stop_ids, 2);
    assert_int_equal(g.request.stop_ids[1], 5);
    assert_int_equal(sampling->n_logit_bias, 1);
    assert_float_equal(sampling->logit_bias[0].bias, -7, 0);
    assert_true(g.request.ignore_eos && g.include_stop && !g.skip_special && g.echo && g.stream &&
                g.include_usage);
    assert_int_equal(g.top_logprobs, 2);
    assert_int_equal(g.prompt_logprobs, 2);
    assert_int_equal(g.request.priority, -3);
    server_generation_free(&g);
}

static void test_chat(void **state) {
    (void)state;
    server_generation g =
        accept(1, "{\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\",\"text\":\"a\"},"
                  "{\"type\":\"text\",\"text\":\"b\"}]}]}");
    assert_non_null(strstr(g.prompts[0].text, "<|im_start|>user\na\nb<|im_end|>\n<|im_start|>assistant\n"));
    assert_int_equal(g.prompts[0].max_new_tokens, 256 - (int64_t)g.prompts[0].n_ids);
    assert_true(g.parses && !g.parse.in_reasoning);
    server_generation_free(&g);
    g = accept(
        1,
        "{\"messages\":[{\"role\":\"user\",\"content\":\"a\"}],\"chat_template_kwargs\":{\"enable_thinking\":false}}");
    assert_non_null(strstr(g.prompts[0].text, "<think>\n\n</think>\n\n"));
    server_generation_free(&g);
}

static void test_salts(void **state) {
    (void)state;
    server_generation a = accept(0, "{\"prompt\":[1]}"), b = accept(0, "{\"prompt\":[1]}");
    server_generation c = accept(0, "{\"prompt\":[1],\"cache_salt\":\"x\"}");
    assert_true(a.request.cache_salt == b.request.cache_salt && a.request.cache_salt != c.request.cache_salt);
    server_generation_free(&a);
    server_generation_free(&b);
    server_generation_free(&c);
}

static void test_refusals(void **state) {
    (void)state;
    refuse(0, "{\"prompt\":[1],\"model\":\"other\"}", 404, "model");
    refuse(0, "{\"prompt\":[1],\"max_tokens\":256}", 400, "max_tokens");
    refuse(0, "{\"prompt\":[1],\"max_tokens\":\"2\"}", 400, "max_tokens");
    refuse(0, "{}", 400, "prompt");
    refuse(1, "{}", 400, "messages");
    refuse(1, "{\"messages\":[{\"role\":\"user\"}],\"n\":129}", 400, "n");
    refuse(0, "[1]", 400, "");
    refuse(0, "{\"prompt\":", 400, "");
    refuse(0, "", 400, "");
}

/* Depth is what the parser would recurse to: brackets in strings do not count. */
static void test_depth(void **state) {
    char text[1024];
    server_problem problem = {0};
    (void)state;
    for (int depth = 98; depth <= 101; depth++) {
        size_t n = 0;
        n += (size_t)snprintf(text, sizeof text, "{\"a\\\"[[[[\":");
        memset(text + n, '[', (size_t)depth);
        memset(text + n + depth, ']', (size_t)depth);
        n += 2 * (size_t)depth;
        text[n++] = '}';
        json_t *root = server_json_parse(text, n, &problem);
        assert_true((root != NULL) == (depth + 1 <= SERVER_JSON_DEPTH));
        json_decref(root);
    }
    assert_int_equal(problem.status, 400);
}

static void check_json(const char *bytes, size_t n_bytes, const char *expected) {
    server_text text = {0};
    server_text_json(&text, bytes, n_bytes);
    assert_false(text.failed);
    assert_int_equal(text.n_bytes, strlen(expected));
    assert_memory_equal(text.bytes, expected, text.n_bytes);
    server_text_free(&text);
}

static void test_json_text(void **state) {
    (void)state;
    check_json("", 0, "\"\"");
    check_json("a\"\\/\n\t\b\f\r\0\x1f\x7f", 12, "\"a\\\"\\\\/\\n\\t\\b\\f\\r\\u0000\\u001f\\u007f\"");
    check_json("\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80", 9, "\"\xc3\xa4\xe2\x82\xac\xf0\x9f\x98\x80\"");
    /* Not UTF-8: a surrogate, an overlong form, beyond Unicode, cut short. */
    check_json("\xed\xa0\x80", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"");
    check_json("\xc0\x80", 2, "\"\xef\xbf\xbd\xef\xbf\xbd\"");
    check_json("\xf4\x90\x80\x80", 4, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\"");
    check_json("\xe2\x82", 2, "\"\xef\xbf\xbd\xef\xbf\xbd\"");
}

static void test_json_numbers(void **state) {
    static const double values[] = {0.5, -1e-30, 1e300 * 1e300, -1e300 * 1e300};
    server_text text = {0};
    (void)state;
    for (size_t i = 0; i < 4; i++) {
        server_text_json_number(&text, values[i]);
        server_text_puts(&text, " ");
    }
    server_text_json_number(&text, (values[2] - values[2]));
    server_text_put(&text, "", 1);
    assert_string_equal(text.bytes, "0.5 -1e-30 -9999 -9999 -9999");
    server_text_free(&text);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_defaults),  cmocka_unit_test(test_all_fields),   cmocka_unit_test(test_chat),
        cmocka_unit_test(test_salts),     cmocka_unit_test(test_refusals),     cmocka_unit_test(test_depth),
        cmocka_unit_test(test_json_text), cmocka_unit_test(test_json_numbers),
    };
    return cmocka_run_group_tests(tests, open_model, close_model);
}
