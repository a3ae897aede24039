#include "cli/answer.h"

#include <string.h>

#include "base/alloc.h"
#include "cli/output.h"

int cli_answer_open(cli_answer *answer, const mb_model *model, int keep) {
    *answer = (cli_answer){.dim = *cli_output_faint() != '\0', .keep = keep};
    return mb_decoder_open(model, 1, &answer->decoder) == MB_OK ? CLI_OK : cli_report_failure();
}

void cli_answer_close(cli_answer *answer) {
    mb_decoder_close(answer->decoder);
    mb_free(answer->text);
    *answer = (cli_answer){0};
}

static const char *next_tag(const cli_answer *answer) {
    return answer->thinking ? "</think>" : "<think>";
}

static void set_thinking(cli_answer *answer, int thinking) {
    int changes = answer->thinking != thinking;
    answer->thinking = thinking;
    if (answer->dim && changes)
        cli_print("%s", thinking ? cli_output_faint() : cli_output_normal());
}

void cli_answer_begin(cli_answer *answer, const char *prompt) {
    static const char opening[] = "<think>\n";
    size_t length = strlen(prompt), tail = sizeof opening - 1;
    answer->n_text = 0;
    answer->n_held = 0;
    set_thinking(answer, length >= tail && strcmp(prompt + length - tail, opening) == 0);
}

/* Prints text, but holds back what may become a tag. Both tags begin with the only '<' that they have.
 * So when the held part turns out not to be a tag, the part is printed as it is, and the search starts
 * anew. */
static void show(cli_answer *answer, const char *text, size_t n_bytes) {
    size_t start = 0; /* of what is neither printed nor held */
    for (size_t i = 0; i < n_bytes; i++) {
        const char *tag = next_tag(answer);
        if (answer->n_held > 0 && text[i] != tag[answer->n_held]) {
            cli_print_text(tag, answer->n_held);
            answer->n_held = 0;
        }
        if (text[i] != tag[answer->n_held])
            continue;
        cli_print_text(text + start, i - start);
        start = i + 1;
        if (tag[++answer->n_held] != '\0')
            continue;
        answer->n_held = 0;
        if (answer->thinking) {
            cli_print_text(tag, strlen(tag));
            set_thinking(answer, 0);
        } else {
            set_thinking(answer, 1);
            cli_print_text(tag, strlen(tag));
        }
    }
    cli_print_text(text + start, n_bytes - start);
}

static int take_text(cli_answer *answer, const char *text, size_t n_bytes) {
    if (answer->dim)
        show(answer, text, n_bytes);
    else
        cli_print_text(text, n_bytes);
    cli_flush();
    if (!answer->keep || n_bytes == 0)
        return CLI_OK;
    if (mb_grow((void **)&answer->text, &answer->capacity, answer->n_text + n_bytes, 1) != 0)
        return cli_failure("no memory for an answer of %zu bytes", answer->n_text + n_bytes);
    for (size_t i = 0; i < n_bytes; i++)
        if (text[i] != '\0') /* a prompt is zero-terminated text: the answer goes into the next one without */
            answer->text[answer->n_text++] = text[i];
    return CLI_OK;
}

int cli_answer_push(void *user, int32_t id) {
    cli_answer *answer = user;
    const char *text;
    size_t n_bytes;
    if (mb_decoder_push(answer->decoder, id, &text, &n_bytes) != MB_OK)
        return cli_report_failure();
    return take_text(answer, text, n_bytes);
}

int cli_answer_finish(cli_answer *answer) {
    const char *text;
    size_t n_bytes;
    if (mb_decoder_finish(answer->decoder, &text, &n_bytes) != MB_OK)
        return cli_report_failure();
    int status = take_text(answer, text, n_bytes);
    cli_print_text(next_tag(answer), answer->n_held);
    answer->n_held = 0;
    set_thinking(answer, 0);
    cli_print("\n");
    cli_flush();
    return status;
}
