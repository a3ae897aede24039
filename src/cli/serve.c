/* moebius serve: a model behind HTTP. */
#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/file.h"
#include "cli/commands.h"
#include "cli/engine_settings.h"
#include "cli/model_settings.h"
#include "cli/output.h"
#include "server/server.h"

typedef struct settings {
    const char *host, *api_key_file;
    cli_integer port, max_queue, shutdown_timeout, receive_timeout;
    cli_texts api_keys, names;
    cli_number max_decode_slowdown;
    int access_log;
    cli_engine_settings engine;
    cli_model_settings model;
} settings;

static const cli_option http_options[] = {
    {.name = "host",
     .value_name = "ADDRESS",
     .kind = CLI_TEXT,
     .offset = offsetof(settings, host),
     .fallback = "127.0.0.1",
     .help =
         "Address to listen on. 0.0.0.0 is every IPv4 address of the machine, :: every address: give an API "
         "key then."},
    {.name = "port",
     .value_name = "N",
     .kind = CLI_INTEGER,
     .offset = offsetof(settings, port),
     .minimum = 0,
     .maximum = 65535,
     .fallback = "8000",
     .help = "Port to listen on; 0 lets the system choose a free one, which is printed."},
    {.name = "api-key",
     .value_name = "KEY",
     .kind = CLI_TEXTS,
     .offset = offsetof(settings, api_keys),
     .help =
         "Clients must send this key (Authorization: Bearer KEY) for everything but /health and the page. It can be given "
         "several times. Other users of the machine can see a command line: --api-key-file is safer."},
    {.name = "api-key-file",
     .value_name = "FILE",
     .kind = CLI_TEXT,
     .offset = offsetof(settings, api_key_file),
     .help = "The same, with the keys in FILE, one a line."},
    {.name = "served-model-name",
     .value_name = "NAME",
     .kind = CLI_TEXTS,
     .offset = offsetof(settings, names),
     .help =
         "Name of the model in requests and replies. It can be given several times; replies of /v1/models begin "
         "with the first. \"*\" serves every name. Without it: the name of DIR."},
    {.name = "max-queue",
     .value_name = "N",
     .kind = CLI_INTEGER,
     .offset = offsetof(settings, max_queue),
     .minimum = 0,
     .maximum = 100000,
     .fallback = "128",
     .help = "Requests that may wait beyond those that run; more are answered with 503 and Retry-After."},
    {.name = "shutdown-timeout",
     .value_name = "SECONDS",
     .kind = CLI_INTEGER,
     .offset = offsetof(settings, shutdown_timeout),
     .minimum = 0,
     .maximum = 86400,
     .fallback = "30",
     .help =
         "After SIGTERM or SIGINT, running requests may go on for so long. A second signal ends the server now."},
    {.name = "receive-timeout",
     .value_name = "SECONDS",
     .kind = CLI_INTEGER,
     .offset = offsetof(settings, receive_timeout),
     .minimum = 1,
     .maximum = 86400,
     .fallback = "60",
     .help =
         "A client has so long to send the headers of a request, and again for its body; it may pause as long "
         "between two requests, or while it reads a reply."},
    {.name = "access-log",
     .kind = CLI_FLAG,
     .offset = offsetof(settings, access_log),
     .help = "Print a line on stderr for each request."},
    {0},
};

static const cli_option schedule_options[] = {
    {.name = "max-decode-slowdown",
     .value_name = "FACTOR",
     .kind = CLI_NUMBER,
     .offset = offsetof(settings, max_decode_slowdown),
     .minimum = 0,
     .maximum = 1000,
     .fallback = "2",
     .help =
         "While answers are written, so much of waiting prompts is taken into a step as lets it last FACTOR times "
         "as long as without. Smaller: answers flow more evenly; larger: first tokens come sooner. More than 1, or "
         "0 for no limit. While prompts are more than half as many as the answers that are written, a GPU takes whole steps of them."},
    {0},
};

static const cli_group groups[] = {
    {"HTTP", http_options, 0},
    {"Scheduling", schedule_options, 0},
    {"Answers", cli_answer_options, offsetof(settings, engine)},
    {"Engine", cli_engine_options, offsetof(settings, engine)},
    {"Model", cli_model_options, offsetof(settings, model)},
};

/* ---- Keys --------------------------------------------------------------------------------------------- */

/* Keys of the command line and of the file; the last is NULL. `text` owns those of the file. */
typedef struct key_list {
    const char **items;
    size_t count;
    char *text;
} key_list;

static int add_key(key_list *to, const char *key) {
    const char **items = mb_realloc(to->items, (to->count + 2) * sizeof *items);
    if (items == NULL)
        return cli_failure("no memory for the API keys");
    to->items = items;
    items[to->count++] = key;
    items[to->count] = NULL;
    return CLI_OK;
}

static int read_keys(const settings *given, key_list *found) {
    enum { MAX_KEY_FILE = 1 << 20 };
    int status = CLI_OK;
    size_t n_bytes;
    for (size_t i = 0; i < given->api_keys.count && status == CLI_OK; i++)
        status = add_key(found, given->api_keys.items[i]);
    if (given->api_key_file == NULL || status != CLI_OK)
        return status;
    if (mb_file_read(given->api_key_file, MAX_KEY_FILE, &found->text, &n_bytes) != MB_OK)
        return cli_report_failure();
    if (mb_bom_check(given->api_key_file, found->text, n_bytes) != MB_OK)
        return cli_report_failure();
    size_t before = found->count;
    for (char *rest = found->text, *key; (key = strtok_r(rest, "\r\n", &rest)) != NULL && status == CLI_OK;) {
        key += strspn(key, " \t");
        size_t length = strlen(key);
        while (length > 0 && (key[length - 1] == ' ' || key[length - 1] == '\t'))
            key[--length] = '\0';
        if (length > 0)
            status = add_key(found, key);
    }
    if (status == CLI_OK && found->count == before)
        return cli_failure("%s has no API key; write one a line, or leave --api-key-file out",
                           given->api_key_file);
    return status;
}

/* ---- Running ------------------------------------------------------------------------------------------ */

/* Until a signal comes, and then until the running requests have ended. The signals are blocked. */
static int wait_for_end(const settings *given, mb_server *server, const sigset_t *signals) {
    const struct timespec moment = {.tv_nsec = 20 * 1000 * 1000};
    int number;
    while (sigwait(signals, &number) != 0)
        ;
    server_begin_shutdown(server);
    double end = cli_now() + (double)given->shutdown_timeout.value;
    fprintf(stderr, "moebius: shutting down; running requests have %d s\n",
            (int)given->shutdown_timeout.value);
    while (!server_is_idle(server) && cli_now() < end)
        if (sigtimedwait(signals, NULL, &moment) > 0)
            _exit(CLI_INTERRUPTED);
    server_end_requests(server);
    for (end = cli_now() + 1; !server_is_idle(server) && cli_now() < end;) /* clients read the last events */
        if (sigtimedwait(signals, NULL, &moment) > 0)
            _exit(CLI_INTERRUPTED);
    return CLI_OK;
}

static void print_memory(const mb_model *model, const mb_server *server) {
    char weights[CLI_SIZE_TEXT], kv[CLI_SIZE_TEXT], buffers[CLI_SIZE_TEXT], left[CLI_SIZE_TEXT],
        all[CLI_SIZE_TEXT];
    mb_model_info info;
    mb_session_memory memory;
    mb_model_get_info(model, &info);
    server_memory(server, &memory);
    fprintf(stderr,
            "moebius: memory of %s: weights %s, KV cache %s for %" PRId64
            " tokens, buffers %s; %s of %s are free\n",
            info.device, cli_size_text(memory.weight_bytes, weights), cli_size_text(memory.kv_bytes, kv),
            memory.kv_tokens, cli_size_text(memory.buffer_bytes, buffers),
            cli_size_text(memory.free_bytes, left), cli_size_text(memory.device_bytes, all));
}

static int serve(const settings *given, const char *directory, const key_list *keys, mb_model *model) {
    char name[256];
    const char *names[2] = {name, NULL};
    const char **all_names = names;
    mb_server *server = NULL;
    sigset_t signals;
    server_settings wanted = {.host = given->host,
                              .port = (int)given->port.value,
                              .keys = keys->count > 0 ? keys->items : NULL,
                              .max_model_len = given->engine.max_model_len.value,
                              .max_queue = (int32_t)given->max_queue.value,
                              .receive_timeout_s = (double)given->receive_timeout.value,
                              .access_log = given->access_log};
    int status = cli_apply_engine(&given->engine, model, &wanted.session, &wanted.formats);
    if (status != CLI_OK)
        return status;
    wanted.session.max_decode_slowdown = (float)given->max_decode_slowdown.value;
    cli_name_of_path(directory, name, sizeof name);
    if (given->names.count > 0) {
        all_names = mb_calloc(given->names.count + 1, sizeof *all_names);
        if (all_names == NULL)
            return cli_failure("no memory for the model's names");
        memcpy(all_names, given->names.items, given->names.count * sizeof *all_names);
    }
    wanted.names = all_names;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    pthread_sigmask(SIG_BLOCK, &signals, NULL); /* before there are threads, which inherit it */
    status = server_open(model, &wanted, &server) == MB_OK ? CLI_OK : cli_report_failure();
    if (status == CLI_OK) {
        if (!given->model.quiet)
            print_memory(model, server);
        int is_ipv6 = strchr(given->host, ':') != NULL;
        cli_print("moebius: serving %s on http://%s%s%s:%d\n", all_names[0], is_ipv6 ? "[" : "", given->host,
                  is_ipv6 ? "]" : "", server_port(server));
        cli_flush();
        status = wait_for_end(given, server, &signals);
    }
    server_close(server);
    if (all_names != names)
        mb_free(all_names);
    return status;
}

static int check_slowdown(const settings *given) {
    double slowdown = given->max_decode_slowdown.value;
    if (slowdown == 0 || slowdown > 1)
        return -1;
    return cli_usage_error(&cli_serve_command, "--max-decode-slowdown: give more than 1, or 0 for no limit");
}

static int check_names(const settings *given, const char *directory) {
    for (size_t i = 0; i < given->names.count; i++)
        if (!cli_is_utf8(given->names.items[i]))
            return cli_usage_error(&cli_serve_command, "--served-model-name: the name is not valid UTF-8");
    return given->names.count > 0 ? CLI_OK : cli_check_name_of_path(directory, "give --served-model-name");
}

static int serve_main(int argc, char **argv) {
    settings given = {0};
    const char *directory;
    mb_model *model = NULL;
    key_list keys = {0};
    int status = cli_parse(&cli_serve_command, argc, argv, &given, &directory);
    if (status >= 0)
        return status;
    status = cli_check_engine(&cli_serve_command, &given.engine);
    if (status < 0)
        status = check_slowdown(&given);
    if (status < 0)
        status = check_names(&given, directory);
    if (status == CLI_OK)
        status = read_keys(&given, &keys);
    if (status == CLI_OK)
        status = cli_open_for_engine(directory, &given.model, &given.engine, &model);
    if (status == CLI_OK)
        status = serve(&given, directory, &keys, model);
    mb_model_close(model);
    mb_free(keys.items);
    mb_free(keys.text);
    cli_settings_free(&cli_serve_command, &given);
    return status;
}

const cli_command cli_serve_command = {
    .name = "serve",
    .summary = "answer requests over HTTP, as OpenAI's API",
    .synopsis = "moebius serve DIR [OPTIONS]",
    .description =
        "Opens the checkpoint in DIR and answers the requests of OpenAI's clients: /v1/chat/completions, "
        "/v1/completions and /v1/responses, and of Anthropic's: /v1/messages; streamed or not. A page for a browser is at /, Prometheus finds /metrics, and /health and "
        "/ready tell whether the server lives and is ready.\n"
        "\n"
        "The options have the names that vLLM gives them where they mean the same. Each can also be set by an "
        "environment variable: MOEBIUS_MAX_QUEUE stands for --max-queue.\n"
        "\n"
        "After SIGTERM or Ctrl-C the server takes no new requests, lets the running ones end, and exits with 0.",
    .examples =
        "moebius serve models/demo\n"
        "moebius serve Qwen3-30B-A3B --host 0.0.0.0 --api-key-file keys.txt\n"
        "curl localhost:8000/v1/chat/completions -d '{\"messages\": [{\"role\": \"user\", \"content\": \"Hello!\"}]}'",
    .groups = groups,
    .n_groups = CLI_COUNT(groups),
    .reads_environment = 1,
    .main = serve_main,
};
