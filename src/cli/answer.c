#include "cli/answer.h"

#include <string.h>

#include "base/alloc.h"
#include "cli/output.h"

int cli_answer_open(cli_answer *answer, const mb_model *model, const cli_texts *stop_texts, int what) {
    *answer = (cli_answer){.print = (what & CLI_ANSWER_PRINT) != 0, .keep = (what & CLI_ANSWER_KEEP) != 0};
    answer->dim = answer->print && *cli_output_faint() != '\0';
    if (mb_decoder_open(model, 1, &answer->decoder) != MB_OK ||
        mb_stop_text_open(stop_texts->items, stop_texts->count, &answer->stops) != MB_OK)
        return cli_report_failure();
    return CLI_OK;
}

void cli_answer_close(cli_answer *answer) {
    mb_decoder_close(answer->decoder);
    mb_stop_text_close(answer->stops);
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
    if (n_bytes == 0)
        return CLI_OK;
    if (answer->dim)
        show(answer, text, n_bytes);
    else if (answer->print)
        cli_print_text(text, n_bytes);
    cli_flush();
    if (!answer->keep)
        return CLI_OK;
    if (mb_grow((void **)&answer->text, &answer->capacity, answer->n_text + n_bytes, 1) != 0)
        return cli_failure("no memory for an answer of %zu bytes", answer->n_text + n_bytes);
    memcpy(answer->text + answer->n_text, text, n_bytes);
    answer->n_text += n_bytes;
    return CLI_OK;
}

/* Text from the decoder, before it was searched for stop texts. */
static cli_go search(cli_answer *answer, const char *piece, size_t n_piece) {
    const char *text;
    size_t n_bytes;
    if (mb_stop_text_push(answer->stops, piece, n_piece, &text, &n_bytes) != MB_OK) {
        cli_report_failure();
        return CLI_GO_FAILED;
    }
    if (take_text(answer, text, n_bytes) != CLI_OK)
        return CLI_GO_FAILED;
    return mb_stop_text_found(answer->stops) >= 0 ? CLI_GO_ENOUGH : CLI_GO_ON;
}

cli_go cli_answer_push(void *user, const mb_token *token) {
    cli_answer *answer = user;
    const char *text;
    size_t n_bytes;
    if (mb_decoder_push(answer->decoder, token->id, &text, &n_bytes) != MB_OK) {
        cli_report_failure();
        return CLI_GO_FAILED;
    }
    return search(answer, text, n_bytes);
}

int cli_answer_finish(cli_answer *answer) {
    const char *text;
    size_t n_bytes;
    if (mb_decoder_finish(answer->decoder, &text, &n_bytes) != MB_OK)
        return cli_report_failure();
    int status = search(answer, text, n_bytes) != CLI_GO_FAILED ? CLI_OK : CLI_FAILED;
    answer->stop = mb_stop_text_found(answer->stops);
    mb_stop_text_finish(answer->stops, &text, &n_bytes);
    if (status == CLI_OK)
        status = take_text(answer, text, n_bytes);
    if (!answer->print)
        return status;
    cli_print_text(next_tag(answer), answer->n_held);
    answer->n_held = 0;
    set_thinking(answer, 0);
    cli_print("\n");
    cli_flush();
    return status;
}
