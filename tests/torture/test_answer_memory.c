/* Every allocation of the answer's parser and of tool_choice fails, once or with all that follow: the call
 * says MB_ERR_MEMORY with a sentence, or the parts are those of an undisturbed run, and nothing leaks. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/status.h"
#include "moebius/answer.h"

static struct { long long n_calls, n_live, n_refused, first_refused, last_refused; } memory;

static void *failing_allocate(void *user, void *pointer, size_t n_bytes) {
    (void)user;
    if (n_bytes == 0) {
        memory.n_live--;
        free(pointer);
        return NULL;
    }
    long long call = ++memory.n_calls;
    if (call >= memory.first_refused && call <= memory.last_refused) {
        memory.n_refused++;
        return NULL;
    }
    void *block = realloc(pointer, n_bytes);
    memory.n_live += block && !pointer;
    return block;
}

static const char tools[] =
    "[{\"type\": \"function\", \"function\": {\"name\": \"f\", \"parameters\": {\"type\": \"object\", \"properties\": {\"s\": "
    "{\"type\": \"string\"}, \"e\": {\"type\": \"string\", \"enum\": [\"a\"]}, \"i\": {\"type\": \"integer\"}}}}}]";

static const char answer[] =
    "<think>\nHm.\n\nSo.\n</think>\n\nLet me see.\n"
    "<tool_call>\n{\"arguments\": {\"s\": \"x\"}, \"name\": \"f\"}\n</tool_call>\n"
    "<tool_call>\n{\"name\": \"f\", \"arguments\": \"{}\"}\n</tool_call>\n"
    "<tool_call>\n<function=f>\n<parameter=s>\nlong\n</parameter>\n<parameter=i>\n17\n</parameter>\n"
    "</function>\n</tool_call>\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"s\": broken\n</tool_call>\nend";

typedef struct outcome {
    mb_status status;
    size_t n;
    char parts[2048];
} outcome;

static void take(mb_answer_parser *parser, outcome *o) {
    mb_answer_event event;
    while (mb_answer_next(parser, &event))
        o->n += (size_t)snprintf(o->parts + o->n, sizeof o->parts - o->n, "%d(%s%s)", (int)event.kind,
                                 event.name ? event.name : "", event.text);
}

static outcome run(void) {
    outcome o = {.status = MB_OK};
    mb_answer_formats formats = {MB_REASONING_THINK, MB_TOOLS_JSON, 0};
    mb_answer_parser *parser = NULL;
    mb_answer_options options;
    mb_answer_options_init(&formats, &options);
    options.tools_json = tools;
    options.id_seed = 1;
    o.status = mb_answer_open(&options, &parser);
    for (size_t at = 0; at < sizeof answer - 1 && o.status == MB_OK; at += 20) {
        size_t n = sizeof answer - 1 - at;
        o.status = mb_answer_push(parser, answer + at, n < 20 ? n : 20);
        take(parser, &o);
    }
    if (o.status == MB_OK)
        o.status = mb_answer_finish(parser);
    if (parser)
        take(parser, &o);
    mb_answer_close(parser);
    for (int xml = 0; xml < 2 && o.status == MB_OK; xml++) {
        mb_tool_use use;
        char *structure;
        formats.tools = xml ? MB_TOOLS_XML : MB_TOOLS_JSON;
        o.status = mb_answer_tool_choice(&formats, tools, "\"required\"", 1, &use, &structure);
        o.n += (size_t)snprintf(o.parts + o.n, sizeof o.parts - o.n, "%s", structure ? structure : "");
        mb_free_text(structure);
    }
    assert_true(o.n < sizeof o.parts);
    return o;
}

static void torture(int once) {
    memory.first_refused = memory.last_refused = INT64_MAX;
    const outcome undisturbed = run();
    assert_int_equal(undisturbed.status, MB_OK);
    for (long long k = 1;; k++) {
        memory.n_calls = memory.n_refused = 0;
        memory.first_refused = k;
        memory.last_refused = once ? k : INT64_MAX;
        mb_fail(MB_OK, "(no sentence)");
        const outcome o = run();
        if (memory.n_live != 0)
            fail_msg("allocation %lld refused: %lld blocks leaked", k, memory.n_live);
        if (memory.n_refused == 0) {
            assert_true(k > 50);
            return;
        }
        if (o.status == MB_OK)
            assert_string_equal(o.parts, undisturbed.parts);
        else if (o.status != MB_ERR_MEMORY || strcmp(mb_last_error(), "(no sentence)") == 0)
            fail_msg("allocation %lld refused: %s (%s)", k, mb_status_name(o.status), mb_last_error());
    }
}

static void test_each_allocation_fails_once(void **state) {
    (void)state;
    torture(1);
}

static void test_all_allocations_fail_from_one_on(void **state) {
    (void)state;
    torture(0);
}

static int set_allocator(void **state) {
    (void)state;
    mb_set_allocator(failing_allocate, NULL);
    return 0;
}

static int restore_allocator(void **state) {
    (void)state;
    mb_set_allocator(NULL, NULL);
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_each_allocation_fails_once),
        cmocka_unit_test(test_all_allocations_fail_from_one_on),
    };
    return cmocka_run_group_tests(tests, set_allocator, restore_allocator);
}
