#include "cli/batch_lines.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/alloc.h"
#include "cli/line_reader.h"
#include "cli/options.h"
#include "cli/output.h"
#include "server/offline.h"

/* Every line of OUT begins with this; what is torn is the beginning of such a line. */
static const char ANSWER_BEGINS[] = "{\"id\": \"batch_req_";

/* ---- A set of keys ------------------------------------------------------------------------------------ */

/* 128 bits of a custom_id or of a line's number. Two of a billion have the same by chance
 * once in 10^20 batches. */
typedef struct key {
    uint64_t low, high; /* both 0: an empty place */
} key;

typedef struct key_set {
    key *places;
    size_t n, n_places; /* a power of two, at most half full */
} key_set;

static key key_of(const char *bytes, size_t n_bytes, uint64_t seed) {
    XXH128_hash_t hash = XXH3_128bits_withSeed(bytes, n_bytes, seed);
    return (key){hash.low64 | 1, hash.high64};
}

static key key_of_id(const char *custom_id) {
    return key_of(custom_id, strlen(custom_id), 0);
}

static key key_of_number(uint64_t number) {
    return key_of((const char *)&number, sizeof number, 1);
}

static key *find_place(const key_set *set, key wanted) {
    size_t i = (size_t)wanted.high & (set->n_places - 1);
    while (set->places[i].low != 0 &&
           (set->places[i].low != wanted.low || set->places[i].high != wanted.high))
        i = (i + 1) & (set->n_places - 1);
    return &set->places[i];
}

static int has_key(const key_set *set, key wanted) {
    return set->n > 0 && find_place(set, wanted)->low != 0;
}

/* 1: added, 0: it was there, -1: no memory, which is reported. */
static int add_key(key_set *set, key added) {
    if (2 * (set->n + 1) > set->n_places) {
        key_set larger = {.n = set->n, .n_places = set->n_places > 0 ? 2 * set->n_places : 1024};
        larger.places = mb_calloc(larger.n_places, sizeof *larger.places);
        if (larger.places == NULL) {
            cli_failure("no memory for the custom_ids of %zu lines", set->n);
            return -1;
        }
        for (size_t i = 0; i < set->n_places; i++)
            if (set->places[i].low != 0)
                *find_place(&larger, set->places[i]) = set->places[i];
        mb_free(set->places);
        *set = larger;
    }
    key *place = find_place(set, added);
    if (place->low != 0)
        return 0;
    *place = added;
    set->n++;
    return 1;
}

/* ---- OUT ---------------------------------------------------------------------------------------------- */

/* The key of an answer. 0 when the line is no answer of a batch. */
static int key_of_answer(const char *line, size_t length, key *found) {
    json_t *answer = line != NULL ? json_loadb(line, length, 0, NULL) : NULL;
    const json_t *error = json_object_get(answer, "error");
    const json_t *number = json_object_get(error, "line");
    const char *custom_id = json_string_value(json_object_get(answer, "custom_id"));
    int is_answer = json_object_get(answer, "response") != NULL && error != NULL;
    if (is_answer && json_is_integer(number))
        *found = key_of_number((uint64_t)json_integer_value(number));
    else if (is_answer && custom_id != NULL)
        *found = key_of_id(custom_id);
    else
        is_answer = 0;
    json_decref(answer);
    return is_answer;
}

/* A line without line break at the end of OUT: half an answer, which is cut off. Something
 * else is not touched. */
static int cut_torn_line(const cli_line_reader *reader, const char *line, size_t length) {
    size_t n = length < sizeof ANSWER_BEGINS - 1 ? length : sizeof ANSWER_BEGINS - 1;
    if (line == NULL || memcmp(line, ANSWER_BEGINS, n) != 0)
        return cli_failure("%s does not end with an answer of moebius batch; give another file",
                           reader->path);
    if (ftruncate(reader->fd, reader->offset - (int64_t)length) != 0 || lseek(reader->fd, 0, SEEK_END) < 0)
        return cli_failure("%s: %s", reader->path, strerror(errno));
    return CLI_OK;
}

static int read_answers(const char *path, int fd, key_set *answered) {
    cli_line_reader reader;
    const char *line;
    size_t length, number = 0;
    int status = CLI_OK, got = 0;
    key found;
    cli_line_reader_open(&reader, path, fd);
    while (status == CLI_OK && (got = cli_line_reader_next(&reader, &line, &length)) == 1) {
        number++;
        if (!reader.line_is_whole)
            status = cut_torn_line(&reader, line, length);
        else if (!key_of_answer(line, length, &found))
            status = cli_failure("%s: line %zu is no answer of a batch; give another file", path, number);
        else if (add_key(answered, found) < 0)
            status = CLI_FAILED;
    }
    cli_line_reader_close(&reader);
    return got < 0 ? CLI_FAILED : status;
}

/* ---- IN ----------------------------------------------------------------------------------------------- */

/* Some editors of Windows begin a file with a byte order mark. */
static void skip_mark(const char **line, size_t *length, size_t number) {
    if (number == 1 && *line != NULL && *length >= 3 && memcmp(*line, "\xef\xbb\xbf", 3) == 0) {
        *line += 3;
        *length -= 3;
    }
}

static int is_blank(const char *line, size_t length) {
    for (size_t i = 0; i < length; i++)
        if (line[i] != ' ' && line[i] != '\t' && line[i] != '\r')
            return 0;
    return line != NULL;
}

/* The JSON of a line of IN, within the bounds that the server's requests have; NULL: error.text says why not. */
static json_t *load_request(const char *line, size_t length, json_error_t *error) {
    *error = (json_error_t){.text = "the line is too long"};
    if (line == NULL || server_offline_check(line, length, error->text, sizeof error->text) != 0)
        return NULL;
    return json_loadb(line, length, 0, error);
}

/* The state of a line of IN; `seen`: the custom_ids of the lines before. -1: no memory. */
static int find_state(const char *line, size_t length, size_t number, const key_set *answered,
                      key_set *seen) {
    json_error_t error;
    json_t *request = load_request(line, length, &error);
    const char *custom_id = json_string_value(json_object_get(request, "custom_id"));
    key name = custom_id != NULL ? key_of_id(custom_id) : key_of_number(number);
    int is_new = custom_id != NULL ? add_key(seen, name) : 1;
    json_decref(request);
    if (is_new < 0)
        return -1;
    if (has_key(answered, is_new ? name : key_of_number(number)))
        return BATCH_ANSWERED;
    return is_new ? BATCH_OPEN : BATCH_TWICE;
}

static int read_requests(batch_lines *lines, const char *path, int fd, const key_set *answered) {
    cli_line_reader reader;
    key_set seen = {0};
    const char *line;
    size_t length;
    int status = CLI_OK, got = 0;
    cli_line_reader_open(&reader, path, fd);
    while (status == CLI_OK && (got = cli_line_reader_next(&reader, &line, &length)) == 1) {
        skip_mark(&line, &length, lines->n + 1);
        int state =
            is_blank(line, length) ? BATCH_EMPTY : find_state(line, length, lines->n + 1, answered, &seen);
        if (state < 0) {
            status = CLI_FAILED;
        } else if (mb_grow((void **)&lines->states, &lines->capacity, lines->n + 1, 1) != 0) {
            status = cli_failure("%s: no memory for %zu lines", path, lines->n);
        } else {
            lines->states[lines->n++] = (uint8_t)state;
            lines->n_wanted += state != BATCH_EMPTY;
            lines->n_answered += state == BATCH_ANSWERED;
        }
    }
    cli_line_reader_close(&reader);
    mb_free(seen.places);
    return got < 0 ? CLI_FAILED : status;
}

int batch_lines_survey(batch_lines *lines, const char *in_path, int in, const char *out_path, int out) {
    key_set answered = {0};
    *lines = (batch_lines){0};
    int status = read_answers(out_path, out, &answered);
    if (status == CLI_OK)
        status = read_requests(lines, in_path, in, &answered);
    mb_free(answered.places);
    return status;
}

void batch_lines_free(batch_lines *lines) {
    mb_free(lines->states);
    *lines = (batch_lines){0};
}

/* ---- One request -------------------------------------------------------------------------------------- */

__attribute__((format(printf, 3, 4))) static void refuse(batch_request *request, const char *code,
                                                         const char *format, ...) {
    va_list arguments;
    request->code = code;
    va_start(arguments, format);
    vsnprintf(request->message, sizeof request->message, format, arguments);
    va_end(arguments);
}

/* Bytes of the text's whole characters within the first `most` bytes. */
static int cut_text(const char *text, size_t most) {
    size_t n = strnlen(text, most);
    while (n > 0 &&
           ((unsigned char)text[n] & 0xc0) == 0x80) /* the byte after the cut goes on with a character */
        n--;
    return (int)n;
}

/* A field that must be a string; NULL with the request refused. */
static const char *need_string(batch_request *request, const char *field) {
    const json_t *value = json_object_get(request->document, field);
    if (request->code != NULL)
        return NULL;
    if (value == NULL)
        refuse(request, "missing_required_parameter", "%s is missing", field);
    else if (!json_is_string(value))
        refuse(request, "invalid_type", "%s must be a string", field);
    return json_string_value(value);
}

void batch_request_read(batch_request *request, const char *line, size_t length, size_t number,
                        batch_line_state state) {
    json_error_t error;
    skip_mark(&line, &length, number);
    *request = (batch_request){.document = load_request(line, length, &error)};
    if (request->document == NULL && (json_error_code(&error) == json_error_null_character ||
                                      json_error_code(&error) == json_error_null_byte_in_key))
        refuse(request, "invalid_json_line",
               "a text in line %zu has the character \\u0000, which is not supported; take it out", number);
    else if (!json_is_object(request->document))
        refuse(request, "invalid_json_line", "line %zu is no JSON object%s%s", number,
               request->document == NULL ? ": " : "", request->document == NULL ? error.text : "");
    request->custom_id = need_string(request, "custom_id");
    request->has_number = request->custom_id == NULL;
    const char *method = need_string(request, "method");
    request->url = need_string(request, "url");
    if (request->code == NULL && strcmp(method, "POST") != 0)
        refuse(request, "invalid_method", "method is \"%.*s\"; it must be POST", cut_text(method, 100),
               method);
    request->body = json_object_get(request->document, "body");
    if (request->code == NULL && !json_is_object(request->body))
        refuse(request, request->body == NULL ? "missing_required_parameter" : "invalid_type",
               "body must be the request's JSON object");
    if (state == BATCH_TWICE) {
        request->has_number = 1;
        refuse(request, "duplicate_custom_id",
               "an earlier line has this custom_id; answers could not be told apart");
    }
}

void batch_request_free(batch_request *request) {
    json_decref(request->document);
    *request = (batch_request){0};
}

static char *quote(const char *text) {
    json_t *string = text != NULL ? json_string(text) : json_null();
    char *quoted = string != NULL ? json_dumps(string, JSON_ENCODE_ANY) : NULL;
    json_decref(string);
    return quoted;
}

static void free_quoted(char *quoted) {
    json_malloc_t allocate;
    json_free_t release;
    json_get_alloc_funcs(&allocate, &release);
    if (quoted != NULL)
        release(quoted);
}

/* The body may be larger than an int says, so printf cannot write it. */
static size_t write_response(char *line, size_t capacity, const char *custom_id, size_t number, int status,
                             const char *body, size_t n_body) {
    static const char end[] = "}, \"error\": null}\n";
    size_t n = (size_t)snprintf(line, capacity,
                                "%s%zu\", \"custom_id\": %s, \"response\": {\"status_code\": %d, "
                                "\"request_id\": \"batch_req_%zu\", \"body\": ",
                                ANSWER_BEGINS, number, custom_id, status, number);
    memcpy(line + n, body, n_body);
    memcpy(line + n + n_body, end, sizeof end - 1);
    return n + n_body + sizeof end - 1;
}

char *batch_answer_line(const batch_request *request, size_t number, int status, const char *body,
                        size_t n_body, size_t *length) {
    char place[64] = "", *line = NULL, *custom_id = quote(request->custom_id);
    char *message = quote(request->message);
    if (request->has_number)
        snprintf(place, sizeof place, ", \"line\": %zu", number);
    size_t capacity =
        512 + (custom_id != NULL ? strlen(custom_id) : 0) + (message != NULL ? strlen(message) : 0) + n_body;
    if (custom_id != NULL && message != NULL)
        line = mb_malloc(capacity);
    if (line != NULL && request->code != NULL)
        *length =
            (size_t)snprintf(line, capacity,
                             "%s%zu\", \"custom_id\": %s, \"response\": null, \"error\": {\"code\": \"%s\", "
                             "\"message\": %s%s}}\n",
                             ANSWER_BEGINS, number, custom_id, request->code, message, place);
    else if (line != NULL)
        *length = write_response(line, capacity, custom_id, number, status, body, n_body);
    free_quoted(custom_id);
    free_quoted(message);
    return line;
}
