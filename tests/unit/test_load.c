/* The load generator without a server: responses and events in pieces of any size,
 * plans, bodies, summaries. */
#include <jansson.h>
#include <math.h>
#include <netinet/in.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/alloc.h"
#include "load/address.h"
#include "load/events.h"
#include "load/plan.h"
#include "load/response.h"
#include "load/summary.h"
#include "moebius/moebius.h"

typedef struct body {
    char bytes[4096];
    size_t n_bytes;
    int n_pieces;
} body;

static void collect(void *context, const char *bytes, size_t n_bytes) {
    body *all = context;
    assert_true(all->n_bytes + n_bytes <= sizeof all->bytes);
    memcpy(all->bytes + all->n_bytes, bytes, n_bytes);
    all->n_bytes += n_bytes;
    all->n_pieces++;
}

static load_response response;

/* Takes the text in pieces of `step` bytes; the body goes to *all. Answers how many bytes were taken. */
static size_t take(const char *text, size_t step, body *all) {
    size_t n = strlen(text), at = 0;
    *all = (body){0};
    load_response_begin(&response);
    while (at < n && response.state != LOAD_COMPLETE && response.problem == NULL)
        at += load_response_take(&response, text + at, n - at < step ? n - at : step, collect, all);
    return at;
}

static void test_responses_in_pieces(void **state) {
    static const struct {
        const char *text, *body;
        int status, keeps_alive;
    } cases[] = {
        {"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "hello", 200, 1},
        {"HTTP/1.1 200\ncontent-length:5 \n\nhello", "hello", 200, 1},
        {"HTTP/1.0 404 Not Found\r\nContent-Length: 0\r\n\r\n", "", 404, 0},
        {"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 1\r\n\r\nx", "x", 200, 0},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0a;x=1\r\n0123456789\r\n0\r\n\r\n",
         "abc0123456789", 200, 1},
        {"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n1\r\na\r\n0\r\nTrailer: x\r\n\r\n", "a", 200,
         1},
        {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n", "", 204, 1},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        for (size_t step = 1; step < 200; step = step * 2 + 1) {
            body all;
            assert_int_equal(take(cases[i].text, step, &all), strlen(cases[i].text));
            assert_null(response.problem);
            assert_int_equal(response.state, LOAD_COMPLETE);
            assert_int_equal(response.status, cases[i].status);
            assert_int_equal(response.keeps_alive, cases[i].keeps_alive);
            assert_int_equal(all.n_bytes, strlen(cases[i].body));
            assert_memory_equal(all.bytes, cases[i].body, all.n_bytes);
        }
    }
}

static void test_a_body_may_last_to_the_end_of_the_connection(void **state) {
    body all;
    (void)state;
    take("HTTP/1.1 200 OK\r\n\r\nall of it", 7, &all);
    assert_int_equal(response.state, LOAD_BODY_CLOSE);
    assert_true(load_response_end(&response));
    assert_memory_equal(all.bytes, "all of it", 9);
    take("HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", 7, &all);
    assert_false(load_response_end(&response));
}

static void test_bytes_after_a_response_are_left(void **state) {
    static const char text[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 500";
    body all;
    (void)state;
    assert_int_equal(take(text, sizeof text, &all), sizeof text - 1 - strlen("HTTP/1.1 500"));
}

static void test_malformed_responses(void **state) {
    static const char *const texts[] = {
        "SSH-2.0-x\r\n",
        "HTTP/2 200\r\n",
        "HTTP/1.1 2000 OK\r\n",
        "HTTP/1.1 OK\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
    };
    static char long_text[LOAD_LINE_BYTES + 100], many[20 + 4 * LOAD_MAX_HEADERS + 100];
    body all;
    (void)state;
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        take(texts[i], 5, &all);
        assert_non_null(response.problem);
    }
    memset(long_text, 'a', sizeof long_text - 1);
    take(long_text, 1000, &all);
    assert_non_null(response.problem);
    strcpy(many, "HTTP/1.1 200 OK\r\n");
    for (int i = 0; i <= LOAD_MAX_HEADERS; i++)
        strcat(many, "a:\r\n");
    take(many, 1000, &all);
    assert_non_null(response.problem);
}

static void collect_line(void *context, const char *bytes, size_t n_bytes) {
    collect(context, bytes, n_bytes);
    collect(context, "|", 1);
}

static void test_events_in_pieces(void **state) {
    static const char text[] =
        ": hello\r\n\r\ndata: one\r\n\r\nevent: x\ndata:two\n\ndata: \n\nid: 4\ndata: three: 3\n\ndata: cut";
    (void)state;
    for (size_t step = 1; step < sizeof text; step++) {
        load_events events = {0};
        body all = {0};
        for (size_t at = 0; at < sizeof text - 1; at += step) {
            size_t n = sizeof text - 1 - at;
            load_events_take(&events, text + at, n < step ? n : step, collect_line, &all);
        }
        assert_int_equal(all.n_bytes, strlen("one|two||three: 3|"));
        assert_memory_equal(all.bytes, "one|two||three: 3|", all.n_bytes);
        load_events_free(&events);
    }
}

static load_chunk chunk_of(const char *data) {
    load_chunk chunk;
    load_chunk_read(data, strlen(data), &chunk);
    return chunk;
}

static void test_what_a_chunk_says(void **state) {
    load_chunk chunk;
    (void)state;
    assert_true(chunk_of("[DONE]").is_done);
    assert_true(chunk_of("{\"choices\":[{\"text\":\"a\",\"index\":0}],\"usage\":null}").has_text);
    assert_true(chunk_of("{\"choices\": [{\"delta\": {\"content\": \"a\"}}]}").has_text);
    assert_true(
        chunk_of(
            "{\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\",\"reasoning_content\":\"a\"}}]}")
            .has_text);
    assert_true(chunk_of("{\"choices\":[{\"delta\":{\"tool_calls\":[{\"index\":0}]}}]}").has_text);
    assert_false(
        chunk_of(
            "{\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"logprobs\":{\"content\":[]}}]}")
            .has_text);
    assert_false(chunk_of("{\"choices\":[{\"delta\":{\"content\":null,\"tool_calls\":[]}}]}").has_text);
    /* A text that looks like keys is text. */
    chunk = chunk_of("{\"choices\":[{\"text\":\"\\\"usage\\\":{\\\"error\\\":1}\"}]}");
    assert_true(chunk.has_text && !chunk.has_usage && !chunk.is_error);
    chunk = chunk_of("{\"x\":\"\\\"content\\\": \\\"a\\\"\"}");
    assert_false(chunk.has_text);
    chunk = chunk_of(
        "{\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":5,\"prompt_tokens_details\":"
        "{\"cached_tokens\":4}}}");
    assert_true(chunk.has_usage && chunk.n_prompt == 7 && chunk.n_output == 5 && chunk.n_cached == 4);
    chunk = chunk_of(
        "{\"usage\":{\"prompt_tokens\":-7,\"completion_tokens\":\"x\",\"prompt_tokens_details\":[]}}");
    assert_true(chunk.has_usage && chunk.n_prompt == 0 && chunk.n_output == 0 && chunk.n_cached == 0);
    chunk = chunk_of("{\"error\":{\"message\":\"no room\"}}");
    assert_true(chunk.is_error);
    assert_string_equal(chunk.message, "no room");
    assert_string_equal(chunk_of("{\"error\":{}}").message, "an error without a message");
    assert_false(chunk_of("{\"error\":").is_error);
    assert_false(chunk_of("").has_text);
}

static void test_messages_of_error_replies(void **state) {
    char message[200];
    (void)state;
    load_error_message("{\"error\":{\"message\":\"bad\"}}", 27, message, sizeof message);
    assert_string_equal(message, "bad");
    load_error_message("Bad gateway\n<more>", 18, message, sizeof message);
    assert_string_equal(message, "Bad gateway");
    load_error_message("", 0, message, sizeof message);
    assert_string_equal(message, "");
}

/* ---- Plans */

enum { MANY = 20000 };
static load_planned planned[MANY], again[MANY];

static void test_arrivals(void **state) {
    load_plan_options options = {.n_requests = MANY, .rate = 10, .n_prompt = 5, .n_output = 6, .seed = 3};
    double sum_of_squares = 0;
    (void)state;
    load_plan_make(&options, planned);
    assert_true(planned[0].at_s == 0);
    for (int i = 1; i < MANY; i++) {
        double gap = planned[i].at_s - planned[i - 1].at_s;
        assert_true(gap >= 0);
        sum_of_squares += gap * gap;
        assert_int_equal(planned[i].n_prompt, 5);
    }
    double mean = planned[MANY - 1].at_s / (MANY - 1);
    assert_true(fabs(mean - 0.1) < 0.005);
    /* Exponential: the mean of the squares is twice the square of the mean. */
    assert_true(fabs(sum_of_squares / (MANY - 1) - 0.02) < 0.002);
    load_plan_make(&options, again);
    assert_memory_equal(planned, again, sizeof planned);
    options.seed = 4;
    load_plan_make(&options, again);
    assert_true(memcmp(planned, again, sizeof planned) != 0);
}

static void test_sharegpt_lengths(void **state) {
    load_plan_options options = {.prompts = LOAD_SHAREGPT,
                                 .n_requests = MANY,
                                 .n_longest = 1000000,
                                 .seed = 1,
                                 .n_prompt = 1,
                                 .n_output = 1};
    double in = 0, out = 0;
    (void)state;
    load_plan_make(&options, planned);
    for (int i = 0; i < MANY; i++) {
        in += planned[i].n_prompt;
        out += planned[i].n_output;
    }
    assert_true(fabs(in / MANY - 164) < 12);
    assert_true(fabs(out / MANY - 339) < 15);
    options.n_longest = 100;
    load_plan_make(&options, planned);
    for (int i = 0; i < MANY; i++)
        assert_true(planned[i].n_prompt >= 4 && planned[i].n_prompt <= 100 && planned[i].n_output <= 100);
}

static json_t *body_of(const load_plan_options *options, const load_planned *item, int32_t i) {
    char *text = load_plan_body(options, item, i);
    assert_non_null(text);
    json_t *parsed = json_loads(text, 0, NULL);
    assert_non_null(parsed);
    mb_free(text);
    return parsed;
}

static int same_tokens(const json_t *a, const json_t *b, size_t from, size_t to) {
    for (size_t i = from; i < to; i++)
        if (!json_equal(json_array_get(a, i), json_array_get(b, i)))
            return 0;
    return 1;
}

static void test_bodies_of_completions(void **state) {
    load_plan_options options = {.prompts = LOAD_SHARED_PREFIX,
                                 .n_prefix = 50,
                                 .n_prefixes = 2,
                                 .vocabulary = 300,
                                 .model_json = "\"a \\\"b\\\"\"",
                                 .temperature = 0.5,
                                 .content_seed = 9};
    load_planned first = {.n_prompt = 20, .n_output = 7, .i_prefix = 1}, other = first;
    (void)state;
    json_t *a = body_of(&options, &first, 0), *b = body_of(&options, &first, 1);
    assert_string_equal(json_string_value(json_object_get(a, "model")), "a \"b\"");
    assert_int_equal(json_integer_value(json_object_get(a, "max_tokens")), 7);
    assert_true(json_is_true(json_object_get(a, "stream")) && json_is_true(json_object_get(a, "ignore_eos")));
    const json_t *x = json_object_get(a, "prompt"), *y = json_object_get(b, "prompt");
    assert_int_equal(json_array_size(x), 70);
    for (size_t i = 0; i < 70; i++)
        assert_in_range(json_integer_value(json_array_get(x, i)), 0, 299);
    assert_true(same_tokens(x, y, 0, 50));
    assert_false(same_tokens(x, y, 50, 70));
    json_decref(b);
    options.first_request = 1;
    json_t *second = body_of(&options, &first, 0);
    options.first_request = 0;
    b = body_of(&options, &first, 1);
    assert_true(json_equal(second, b));
    json_decref(second);
    json_decref(b);
    other.i_prefix = 0;
    b = body_of(&options, &other, 0);
    assert_false(same_tokens(x, json_object_get(b, "prompt"), 0, 50));
    json_decref(b);
    options.prompts = LOAD_FIXED;
    options.stops_at_eos = 1;
    b = body_of(&options, &first, 0);
    assert_int_equal(json_array_size(json_object_get(b, "prompt")), 20);
    assert_null(json_object_get(b, "ignore_eos"));
    json_decref(a);
    json_decref(b);
}

static void test_bodies_of_chats(void **state) {
    load_plan_options options = {.endpoint = LOAD_CHAT, .model_json = "\"m\""};
    load_planned item = {.n_prompt = 30, .n_output = 7};
    int n_spaces = 0;
    (void)state;
    json_t *a = body_of(&options, &item, 0);
    const json_t *message = json_array_get(json_object_get(a, "messages"), 0);
    assert_string_equal(json_string_value(json_object_get(message, "role")), "user");
    for (const char *at = json_string_value(json_object_get(message, "content")); *at != 0; at++)
        n_spaces += *at == ' ';
    assert_int_equal(n_spaces, 29);
    json_decref(a);
    assert_string_equal(load_endpoint_path(LOAD_CHAT), "/v1/chat/completions");
}

/* ---- Addresses and requests */

static void test_addresses_that_are_none(void **state) {
    static const char *const urls[] = {"https://127.0.0.1:8000", "", "http://", "http://user@127.0.0.1",
                                       "http://127.0.0.1:x"};
    load_address address = {0};
    (void)state;
    for (size_t i = 0; i < sizeof urls / sizeof *urls; i++)
        assert_int_not_equal(load_address_find(urls[i], &address), MB_OK);
}

static void test_requests(void **state) {
    load_address address = {.host = "h:1", .path = "/p", .key = "k"};
    size_t n;
    (void)state;
    char *text = load_address_request(&address, "/v1/x", "{}", &n);
    assert_int_equal(n, strlen(text));
    assert_non_null(strstr(text, "POST /p/v1/x HTTP/1.1\r\nHost: h:1\r\n"));
    assert_non_null(strstr(text, "\r\nAuthorization: Bearer k\r\n"));
    assert_non_null(strstr(text, "\r\nContent-Length: 2\r\n\r\n{}"));
    mb_free(text);
    address.key = NULL;
    text = load_address_request(&address, "/v1/x", NULL, &n);
    assert_true(strncmp(text, "GET /p/v1/x HTTP/1.1\r\n", 22) == 0 && strstr(text, "Authorization") == NULL);
    mb_free(text);
}

/* ---- Summaries */

static void test_spread(void **state) {
    double values[101];
    (void)state;
    for (int i = 0; i <= 100; i++)
        values[i] = (100 - i) * 1e-3;
    load_spread spread = load_spread_of(values, 101);
    assert_true(fabs(spread.mean - 50) < 1e-9 && fabs(spread.p50 - 50) < 1e-9 &&
                fabs(spread.p90 - 90) < 1e-9);
    assert_true(fabs(spread.p99 - 99) < 1e-9 && fabs(spread.max - 100) < 1e-9);
    double two[] = {2, 1};
    assert_true(fabs(load_spread_of(two, 2).p50 - 1500) < 1e-9);
    double one[] = {3};
    assert_true(load_spread_of(one, 1).p99 == 3000);
    assert_true(load_spread_of(NULL, 0).max == 0);
}

static void test_goodput(void **state) {
    load_result results[] = {
        {.first_s = 0.1, .whole_s = 1.1, .n_output = 11, .n_prompt = 3}, /* 100 ms for each token */
        {.first_s = 0.3, .whole_s = 0.5, .n_output = 11, .n_prompt = 3, .n_cached = 2},
        {.first_s = 0.1, .whole_s = 0.1, .n_output = 1, .n_prompt = 3},
        {.first_s = 0.1, .whole_s = 0.1, .n_output = 99, .failed = 1},
    };
    load_measured measured = {.results = results, .n_results = 4, .duration_s = 2};
    load_summary summary;
    (void)state;
    assert_int_equal(load_summarise(&measured, 200, 50, &summary), MB_OK);
    assert_int_equal(summary.n_completed, 3);
    assert_int_equal(summary.n_failed, 1);
    assert_int_equal(summary.n_good, 1);
    assert_true(summary.goodput_s == 0.5 && summary.output_tok_s == 11.5);
    assert_int_equal(summary.n_cached, 2);
    assert_true(fabs(summary.per_token.max - 100) < 1e-6);
    assert_int_equal(load_summarise(&measured, 0, 150, &summary), MB_OK);
    assert_int_equal(summary.n_good, 3);
    assert_int_equal(load_summarise(&measured, 200, 0, &summary), MB_OK);
    assert_int_equal(summary.n_good, 2);
}

/* ---- A run when memory runs out */

static const char stream[] =
    "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"
    "data: {\"choices\":[{\"text\":\"a\"}]}\n\ndata: {\"choices\":[{\"text\":\"b\"}]}\n\n"
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":2,\"completion_tokens\":2}}\n\n"
    "data: [DONE]\n\n";

/* Answers every connection with the stream, in pieces that cut lines. */
static void *answer_all(void *listener) {
    int fd;
    while ((fd = accept(*(int *)listener, NULL, NULL)) >= 0) {
        char request[8192];
        size_t n = 0;
        ssize_t got = 1;
        do {
            got = recv(fd, request + n, sizeof request - 1 - n, 0);
            n += got > 0 ? (size_t)got : 0;
            request[n] = 0;
        } while (got > 0 && strstr(request, "]}") == NULL); /* the end of the body */
        for (size_t at = 0; got > 0 && at < sizeof stream - 1; at += 60)
            if (send(fd, stream + at, sizeof stream - 1 - at < 60 ? sizeof stream - 1 - at : 60,
                     MSG_NOSIGNAL) < 0)
                break;
        close(fd);
    }
    return NULL;
}

typedef struct failing {
    int n_calls, fail_at, n_live;
} failing;

static void *allocate_or_fail(void *user, void *pointer, size_t n_bytes) {
    failing *record = user;
    if (n_bytes == 0) {
        record->n_live -= pointer != NULL;
        free(pointer);
        return NULL;
    }
    if (++record->n_calls == record->fail_at)
        return NULL;
    record->n_live += pointer == NULL;
    return realloc(pointer, n_bytes);
}

static int never(void) {
    return 0;
}

static void ignore(int32_t n_done, int32_t n_requests) {
    (void)n_done;
    (void)n_requests;
}

static void test_a_run_when_each_allocation_fails(void **state) {
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    load_address address = {.host = "127.0.0.1", .socket_bytes = sizeof any};
    load_plan_options plan = {
        .n_requests = 3, .n_prompt = 2, .n_output = 2, .vocabulary = 9, .model_json = "\"m\""};
    load_run_options options = {.concurrency = 2, .timeout_s = 60, .is_stopped = never, .report = ignore};
    pthread_t thread;
    int n_failed = 0, n_whole = 0;
    (void)state;
    assert_int_equal(bind(listener, (struct sockaddr *)&any, sizeof any), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&any, &address.socket_bytes), 0);
    assert_int_equal(listen(listener, 16), 0);
    memcpy(&address.socket_address, &any, sizeof any);
    assert_int_equal(pthread_create(&thread, NULL, answer_all, &listener), 0);
    for (int k = 1; n_whole < 2; k++) {
        failing record = {.fail_at = k};
        load_measured measured;
        load_summary summary;
        mb_set_allocator(allocate_or_fail, &record);
        mb_status status = load_run(&address, &plan, &options, &measured);
        if (status == MB_OK)
            status = load_summarise(&measured, 0, 0, &summary);
        if (status == MB_OK && record.n_calls < k) { /* nothing failed any more */
            n_whole++;
            assert_int_equal(summary.n_completed, 3);
            assert_int_equal(summary.n_output, 6);
            assert_int_equal(measured.n_gaps, 3);
        } else if (status != MB_OK) {
            n_failed++;
            assert_int_equal(status, MB_ERR_MEMORY);
        }
        load_measured_free(&measured);
        mb_set_allocator(NULL, NULL);
        assert_int_equal(record.n_live, 0);
    }
    assert_true(n_failed >= 6);
    shutdown(listener, SHUT_RDWR);
    pthread_join(thread, NULL);
    close(listener);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_responses_in_pieces),
        cmocka_unit_test(test_a_body_may_last_to_the_end_of_the_connection),
        cmocka_unit_test(test_bytes_after_a_response_are_left),
        cmocka_unit_test(test_malformed_responses),
        cmocka_unit_test(test_events_in_pieces),
        cmocka_unit_test(test_what_a_chunk_says),
        cmocka_unit_test(test_messages_of_error_replies),
        cmocka_unit_test(test_arrivals),
        cmocka_unit_test(test_sharegpt_lengths),
        cmocka_unit_test(test_bodies_of_completions),
        cmocka_unit_test(test_bodies_of_chats),
        cmocka_unit_test(test_addresses_that_are_none),
        cmocka_unit_test(test_requests),
        cmocka_unit_test(test_spread),
        cmocka_unit_test(test_goodput),
        cmocka_unit_test(test_a_run_when_each_allocation_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
