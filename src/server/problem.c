#include "server/problem.h"

#include <stdarg.h>
#include <stdio.h>

int server_refuse(server_problem *problem, int status, const char *field, const char *format, ...) {
    va_list arguments;
    if (problem->status != 0)
        return -1;
    problem->status = status;
    snprintf(problem->field, sizeof problem->field, "%s", field != NULL ? field : "");
    va_start(arguments, format);
    vsnprintf(problem->message, sizeof problem->message, format, arguments);
    va_end(arguments);
    return -1;
}

/* The names that vLLM uses; OpenAI's clients decide by the status. */
static const char *type_of(int status) {
    switch (status) {
    case 401:
        return "AuthenticationError";
    case 404:
        return "NotFoundError";
    case 405:
        return "MethodNotAllowedError";
    case 413:
    case 431:
        return "RequestTooLargeError";
    case 503:
        return "ServiceUnavailableError";
    default:
        return status < 500 ? "BadRequestError" : "InternalServerError";
    }
}

void server_problem_write(const server_problem *problem, server_text *text) {
    server_text_puts(text, "{\"error\":{\"message\":");
    server_text_json_string(text, problem->message);
    server_text_printf(text, ",\"type\":\"%s\",\"param\":", type_of(problem->status));
    if (problem->field[0] != '\0')
        server_text_json_string(text, problem->field);
    else
        server_text_puts(text, "null");
    server_text_printf(text, ",\"code\":%d}}", problem->status);
}
