#include "cli/model_settings.h"

#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "cli/output.h"

#define FIELD(name) offsetof(cli_model_settings, name)

const cli_option cli_model_options[] = {
    {.name = "device",
     .value_name = "DEVICE",
     .kind = CLI_CHOICE,
     .offset = FIELD(device),
     .choices = "cpu|cuda|cuda:N",
     .help = "Where the model runs. Without it: the GPU when there is one, else the CPU."},
    {.name = "dtype",
     .value_name = "TYPE",
     .kind = CLI_CHOICE,
     .offset = FIELD(dtype),
     .choices = "fp32|bf16|fp16",
     .help = "Type that activations are computed in; weights keep the type they have in the checkpoint. "
             "Without it: fp32 on the CPU, bf16 on a GPU."},
    {.name = "quant",
     .value_name = "TYPE",
     .kind = CLI_CHOICE,
     .offset = FIELD(quant),
     .choices = "fp8",
     .help = "Make the matrices of attention and experts fp8 while they load, with a scale for each block of "
             "128x128: half the memory of bf16. Without it: weights keep their type."},
    {.name = "kv-dtype",
     .value_name = "TYPE",
     .kind = CLI_CHOICE,
     .offset = FIELD(kv_dtype),
     .choices = "fp8",
     .help =
         "Keep the KV cache in fp8, in a half or a quarter of the memory: all layers but the first, whose "
         "keys and values follow from token and position alone, so that an error there repeats. Without it: "
         "in the type that is computed in."},
    {.name = "threads",
     .value_name = "N",
     .kind = CLI_INTEGER,
     .offset = FIELD(n_threads),
     .minimum = 1,
     .maximum = 1024,
     .help = "CPU threads. Without it: one for each core that the process may use."},
    {.name = "chat-template",
     .value_name = "FILE",
     .kind = CLI_TEXT,
     .offset = FIELD(chat_template),
     .help = "Use the Jinja chat template in FILE, or a known one by its name (qwen3, qwen3-instruct, "
             "qwen3-thinking, chatml), in place of the checkpoint's own."},
    {.letter = 'q',
     .name = "quiet",
     .kind = CLI_FLAG,
     .offset = FIELD(quiet),
     .help = "No progress bar and no line of figures; errors are still printed."},
    {0},
};

/* ---- Progress ----------------------------------------------------------------------------------------- */

enum { BAR_CELLS = 30 };

typedef struct progress {
    double started, drawn; /* seconds; drawn 0: not yet */
} progress;

/* Only loads that take long enough to wonder about get a bar, redrawn at most ten times a second. */
static void draw_progress(void *user, uint64_t done_bytes, uint64_t total_bytes) {
    progress *bar = user;
    double now = cli_now(), part = total_bytes > 0 ? (double)done_bytes / (double)total_bytes : 1;
    if (now - bar->started < 0.3 || now - bar->drawn < 0.1)
        return;
    bar->drawn = now;
    char cells[BAR_CELLS + 1];
    for (int i = 0; i < BAR_CELLS; i++)
        cells[i] = i < (int)(part * BAR_CELLS) ? '#' : '.';
    cells[BAR_CELLS] = '\0';
    fprintf(stderr, "\rloading weights [%s] %3.0f %%  %.1f of %.1f GB", cells, 100 * part,
            (double)done_bytes / 1e9, (double)total_bytes / 1e9);
    fflush(stderr);
}

int cli_folder_of_config(const char *path, char *folder, size_t capacity) {
    const char *slash = strrchr(path, '/');
    const char *name = slash != NULL ? slash + 1 : path;
    struct stat facts;
    if (strcmp(name, "config.json") != 0 || stat(path, &facts) != 0 || !S_ISREG(facts.st_mode))
        return 0;
    /* With its slash at the end, so that "/config.json" lies in "/". */
    const int length = slash != NULL ? snprintf(folder, capacity, "%.*s", (int)(name - path), path)
                                     : snprintf(folder, capacity, ".");
    return length >= 0 && (size_t)length < capacity;
}

int cli_open_model(const char *directory, const cli_model_settings *settings, mb_model **model) {
    return cli_open_part(directory, settings, MB_LOAD_ALL, model);
}

int cli_open_part(const char *directory, const cli_model_settings *settings, mb_load load, mb_model **model) {
    progress bar = {.started = cli_now()};
    mb_model_options options;
    mb_model_options_init(&options);
    options.device = settings->device;
    options.dtype = settings->dtype;
    options.quant = settings->quant;
    options.kv_dtype = settings->kv_dtype;
    options.chat_template = settings->chat_template;
    options.n_threads = (int)settings->n_threads.value;
    options.load = load;
    if (!settings->quiet && cli_messages_are_terminal() && cli_terminal_is_smart()) {
        options.progress = draw_progress;
        options.progress_user = &bar;
    }
    char folder[PATH_MAX];
    if (load == MB_LOAD_RANDOM && cli_folder_of_config(directory, folder, sizeof folder))
        directory = folder;
    char *found;
    *model = NULL;
    mb_status status = mb_find_model(directory, &found);
    if (status == MB_OK)
        status = mb_model_open(found, &options, model);
    mb_free_text(found);
    if (bar.drawn > 0)
        fprintf(stderr, "\r\033[K");
    return status == MB_OK ? CLI_OK : cli_report_failure();
}
