/* conversation_file.c - conversations as files: a JSON array of messages, as in OpenAI's API. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/file.h"
#include "cli/conversation.h"
#include "cli/output.h"

enum { MAX_FILE_BYTES = 64 << 20 };

/* The array in a file, or the one called `name` in the file's object; freed with json_decref, NULL after a
 * reported failure. `wanted` says what the array holds. */
static json_t *read_array(const char *path, const char *name, const char *wanted) {
    char *bytes;
    size_t n_bytes;
    json_error_t error;
    if (mb_file_read(path, MAX_FILE_BYTES, &bytes, &n_bytes) != MB_OK) {
        cli_report_failure();
        return NULL;
    }
    if (mb_bom_check(path, bytes, n_bytes) != MB_OK) {
        mb_free(bytes);
        cli_report_failure();
        return NULL;
    }
    json_t *document = json_loadb(bytes, n_bytes, 0, &error);
    mb_free(bytes);
    json_t *array = json_is_object(document) ? json_object_get(document, name) : document;
    if (document == NULL)
        cli_failure("%s: line %d: %s; give a JSON array of %s", path, error.line, error.text, wanted);
    else if (!json_is_array(array))
        cli_failure("%s: there are no %s: give a JSON array of %s", path, wanted, wanted);
    json_t *result = json_is_array(array) ? json_incref(array) : NULL;
    json_decref(document);
    return result;
}

int cli_conversation_read_tools(cli_conversation *conversation, const char *path) {
    json_malloc_t allocate;
    json_free_t release;
    json_t *tools = read_array(path, "tools", "definitions of tools");
    if (tools == NULL)
        return CLI_FAILED;
    char *text = json_dumps(tools, JSON_COMPACT);
    json_decref(tools);
    conversation->tools_json = text != NULL ? mb_strdup(text) : NULL;
    json_get_alloc_funcs(&allocate, &release);
    release(text);
    return conversation->tools_json != NULL ? CLI_OK : cli_failure("no memory for the tools");
}

int cli_conversation_load(cli_conversation *conversation, const mb_model *model, const char *path) {
    cli_conversation loaded = {.messages = read_array(path, "messages", "messages")};
    char *prompt = NULL;
    int status = loaded.messages != NULL ? CLI_OK : CLI_FAILED;
    if (status == CLI_OK && json_array_size(loaded.messages) > 0)
        status = cli_conversation_render(&loaded, model, 1, &prompt);
    mb_free_text(prompt);
    if (status == CLI_OK) {
        json_t *former = conversation->messages;
        conversation->messages = loaded.messages;
        loaded.messages = former;
    }
    cli_conversation_close(&loaded);
    return status;
}

/* A file of another kind must not be lost to a mistyped name. */
static int check_replacement(const char *path) {
    struct stat info;
    if (stat(path, &info) != 0)
        return errno == ENOENT ? CLI_OK : cli_failure("%s: %s", path, strerror(errno));
    json_t *messages = S_ISREG(info.st_mode) ? json_load_file(path, 0, NULL) : NULL;
    int is_ours = json_is_array(messages) && (json_array_size(messages) == 0 ||
                                              json_object_get(json_array_get(messages, 0), "role") != NULL);
    json_decref(messages);
    return is_ours ? CLI_OK
                   : cli_failure("%s is there already and holds no conversation; give another name", path);
}

int cli_conversation_save(const cli_conversation *conversation, const char *path) {
    char fresh[PATH_MAX];
    int status = check_replacement(path);
    if (status != CLI_OK)
        return status;
    if (snprintf(fresh, sizeof fresh, "%s.%ld", path, (long)getpid()) >= (int)sizeof fresh)
        return cli_failure("the name is too long");
    /* Written whole, then renamed: the former file is lost only when the new one is there. */
    int fd = open(fresh, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    FILE *file = fd >= 0 ? fdopen(fd, "w") : NULL;
    int written = 0;
    if (file != NULL) {
        written = json_dumpf(conversation->messages, file, JSON_INDENT(1)) == 0 && fputc('\n', file) != EOF;
        written = fclose(file) == 0 && written && rename(fresh, path) == 0;
    } else if (fd >= 0) {
        close(fd);
    }
    if (written)
        return CLI_OK;
    int reason = errno;
    if (fd >= 0)
        unlink(fresh);
    return cli_failure("%s: %s", path, reason != 0 ? strerror(reason) : "it could not be written");
}
