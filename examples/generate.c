/* generate.c - answers one prompt with a model: generate DIRECTORY ["prompt"] */
#include <moebius/moebius.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void check(mb_status status) {
    if (status == MB_OK)
        return;
    fprintf(stderr, "generate: %s\n", mb_last_error());
    exit(1);
}

int main(int argc, char **argv) {
    enum { MAX_PROMPT = 4096, MAX_NEW = 64 };
    mb_model *model;
    mb_session *session;
    mb_decoder *decoder;
    check(mb_model_open(argc > 1 ? argv[1] : "models/demo", NULL, &model));
    check(mb_session_open(model, NULL, &session));
    check(mb_decoder_open(model, 1, &decoder));

    /* A real program escapes its text for JSON; this one takes text without quotes and backslashes. */
    char messages[MAX_PROMPT], *text;
    snprintf(messages, sizeof messages, "[{\"role\": \"user\", \"content\": \"%s\"}]",
             argc > 2 ? argv[2] : "What is 12 + 30?");
    mb_chat_options chat;
    mb_chat_options_init(&chat);
    chat.enable_thinking = 0;
    check(mb_chat_render(model, messages, &chat, &text));
    int32_t ids[MAX_PROMPT];
    size_t n_ids;
    check(mb_tokenize(model, text, strlen(text), 1, ids, MAX_PROMPT, &n_ids));
    mb_free_text(text);

    uint64_t id;
    mb_request request;
    mb_request_init(model, &request);
    request.ids = ids;
    request.n_ids = n_ids;
    request.max_new_tokens = MAX_NEW;
    request.sampling.temperature = 0; /* greedy */
    check(mb_submit(session, &request, &id));
    for (mb_state state = MB_WAITING; state == MB_WAITING || state == MB_RUNNING;) {
        mb_token token;
        size_t n_tokens, n_bytes;
        const char *piece = "";
        check(mb_step(session, NULL)); /* draws at most one token for each sequence */
        check(mb_read(session, id, &token, 1, &n_tokens, &state));
        if (n_tokens)
            check(mb_decoder_push(decoder, token.id, &piece, &n_bytes));
        fputs(piece, stdout);
        fflush(stdout);
    }
    putchar('\n');
    mb_decoder_close(decoder);
    mb_session_close(session);
    mb_model_close(model);
}
