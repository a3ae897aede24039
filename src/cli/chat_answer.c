/* chat_answer.c - one question of moebius chat, from the conversation to the answer on the screen. */
#include <inttypes.h>
#include <string.h>

#include "base/alloc.h"
#include "cli/chat_state.h"
#include "cli/interrupt.h"
#include "cli/output.h"

static void print_figures(const chat_state *chat) {
    const cli_figures *figures = &chat->figures;
    if (chat->given->model.quiet || !cli_messages_are_terminal())
        return;
    fprintf(stderr, "%s%zu prompt tokens, %zu generated tokens, %.1f output tokens/s, first token %.3f s",
            cli_messages_faint(), figures->n_prompt, figures->n_new, cli_output_rate(figures),
            figures->n_new > 0 ? figures->first - figures->submitted : 0.0);
    if (figures->n_cached > 0)
        fprintf(stderr, ", %zu from the cache", figures->n_cached);
    fprintf(stderr, "%s%s\n", figures->state == MB_CANCELLED ? ", interrupted" : "", cli_messages_normal());
}

/* Decides how long the answer to a prompt may get: -n, or all that the context has left. */
static int find_room(const chat_state *chat, size_t n_prompt, int64_t *n_new) {
    const cli_integer *wanted = &chat->given->sampling.max_new_tokens;
    int64_t room = chat->context - (int64_t)n_prompt;
    if (wanted->given && wanted->value > room)
        return cli_failure("the conversation of %zu tokens and an answer of up to %" PRId64
                           " (-n) do not fit the context of %" PRId64 "; /reset starts a new one",
                           n_prompt, wanted->value, chat->context);
    if (!wanted->given && room <= 0)
        return cli_failure("the conversation has %zu tokens and no longer fits the context of %" PRId64
                           "; /reset starts a new one",
                           n_prompt, chat->context);
    *n_new = wanted->given ? wanted->value : room;
    return CLI_OK;
}

static void explain_length(const chat_state *chat) {
    if (chat->figures.state != MB_FINISHED_LENGTH)
        return;
    if (chat->given->sampling.max_new_tokens.given)
        chat_remark("[The answer ends here: the limit of -n is reached.]");
    else
        chat_remark("[The answer ends here: the context is full. /reset starts a new conversation.]");
}

/* A prompt is zero-terminated text: the answer goes into the next one without zero bytes. */
static void drop_zero_bytes(cli_answer *answer) {
    size_t n_kept = 0;
    for (size_t i = 0; i < answer->n_text; i++)
        if (answer->text[i] != '\0')
            answer->text[n_kept++] = answer->text[i];
    answer->n_text = n_kept;
}

/* Answers the rendered prompt. What was written of the answer, even nothing, joins the conversation. */
static int answer_prompt(chat_state *chat, const char *prompt, const cli_ids *ids) {
    mb_request request;
    mb_request_init(chat->model, &request);
    request.ids = ids->items;
    request.n_ids = ids->count;
    int status = cli_apply_sampling(&chat->given->sampling, &request);
    if (status == CLI_OK)
        status = find_room(chat, ids->count, &request.max_new_tokens);
    if (status != CLI_OK)
        return status;
    request.sampling.seed += chat->n_again; /* with --seed, another answer all the same */
    cli_answer_begin(&chat->answer, prompt);
    status = cli_generate(chat->session, &request, cli_answer_push, &chat->answer, &chat->figures);
    if ((status == CLI_OK || chat->figures.n_new > 0) && cli_answer_finish(&chat->answer) != CLI_OK)
        status = CLI_FAILED;
    cli_interrupt_clear(); /* a Ctrl-C since the question was meant for this answer */
    if (status != CLI_OK)
        return status;
    explain_length(chat);
    print_figures(chat);
    drop_zero_bytes(&chat->answer);
    return cli_conversation_add(&chat->conversation, "the answer", "assistant", chat->answer.text,
                                chat->answer.n_text);
}

static int answer_conversation(chat_state *chat) {
    char *prompt = NULL;
    cli_ids ids = {0};
    int status = cli_conversation_render(&chat->conversation, chat->model, chat->thinking, &prompt);
    if (status == CLI_OK)
        status = cli_encode(chat->model, prompt, strlen(prompt), 1, &ids);
    if (status == CLI_OK)
        status = answer_prompt(chat, prompt, &ids);
    mb_free(ids.items);
    mb_free_text(prompt);
    return status;
}

/* The question as a message: what was attached, an empty line, and what was typed. */
static int add_question(chat_state *chat, const char *question, size_t n_bytes) {
    if (chat->attached == NULL)
        return cli_conversation_add(&chat->conversation, "the question", "user", question, n_bytes);
    size_t n = chat->n_attached + n_bytes;
    char *text = mb_malloc(n);
    if (text == NULL)
        return cli_failure("no memory for a question of %zu bytes", n);
    memcpy(text, chat->attached, chat->n_attached);
    memcpy(text + chat->n_attached, question, n_bytes);
    int status = cli_conversation_add(&chat->conversation, "the question", "user", text, n);
    mb_free(text);
    return status;
}

/* A question that could not be answered is taken back: the next one finds the conversation as it was. */
void chat_ask(chat_state *chat, const char *question, size_t n_bytes) {
    int status = add_question(chat, question, n_bytes);
    chat->n_again = 0;
    if (status == CLI_OK) {
        status = answer_conversation(chat);
        if (status != CLI_OK)
            cli_conversation_drop_last(&chat->conversation);
    }
    if (status == CLI_OK) {
        mb_free(chat->attached);
        chat->attached = NULL;
        chat->n_attached = 0;
    }
    chat->failed |= status != CLI_OK;
}

void chat_ask_again(chat_state *chat) {
    json_t *former = cli_conversation_take_answer(&chat->conversation);
    if (!cli_conversation_has_question(&chat->conversation)) {
        chat_remark("[There is no question yet.]");
    } else {
        chat->n_again++;
        if (answer_conversation(chat) == CLI_OK) {
            json_decref(former);
            return;
        }
        chat->failed = 1;
    }
    cli_conversation_put_back(&chat->conversation, former);
}
