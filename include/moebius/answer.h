/*
 * answer.h - the parts of an answer: reasoning, content and calls of tools, found while the text streams.
 *
 * A model writes one text. A client wants its parts: what stands in <think>, what is said to the user, and
 * each <tool_call> as a name and JSON arguments. The parser takes the text piece by piece, in any pieces,
 * and returns events. Joined, the events are the same for every division of the text. The shortest use:
 *
 *     mb_answer_formats formats;  mb_answer_options options;  mb_answer_parser *parser;
 *     mb_answer_formats_of(model, &formats);                       // once for each model
 *     mb_answer_options_init(&formats, &options);
 *     options.tools_json = tools;                                  // the request's, or NULL
 *     options.in_reasoning = mb_answer_prompt_opens_reasoning(prompt);
 *     mb_answer_open(&options, &parser);
 *     for each piece of the answer:
 *         mb_answer_push(parser, text, n_bytes);  while (mb_answer_next(parser, &event)) ...
 *     mb_answer_finish(parser);  while (mb_answer_next(parser, &event)) ...
 *     mb_answer_close(parser);
 *
 * How to decode: the parser works on text, because <think> and <tool_call> are single tokens in Qwen3 and
 * plain text elsewhere. Decode with mb_decoder and skip_special = !formats.tags_are_special: in Qwen3's
 * tokenizers the tags are added tokens that are not special, so they survive. Stop strings and end-of-text
 * tokens are cut off before.
 *
 * Reasoning. <think> at the start of the answer opens it, or the prompt did. </think> ends it. New lines
 * right after <think>, before </think> and after </think> belong to the tags. An answer that ends within
 * reasoning is all reasoning. A <think> elsewhere is content.
 *
 * Calls, when there are tools. Both forms are recognised in every answer:
 *
 *     <tool_call>
 *     {"name": "get_weather", "arguments": {"city": "Oslo"}}
 *     </tool_call>
 *
 *     <tool_call>
 *     <function=get_weather>
 *     <parameter=city>
 *     Oslo
 *     </parameter>
 *     </function>
 *     </tool_call>
 *
 * - One new line before <tool_call> belongs to the tag. White space alone, between calls and around them,
 *   is nothing.
 * - JSON: "arguments" goes out as it is spelled, but raw control characters in strings become escapes.
 *   Without "arguments", or null: {}. A string that holds a JSON object counts as the object. Other keys
 *   are ignored. A missing last brace or </tool_call> is forgiven once the arguments are complete, and so
 *   are several objects in one block.
 * - XML: the types that the tool's JSON schema allows decide how VALUE becomes JSON. A string is VALUE
 *   itself, without the new line at either end. For other types VALUE is read as JSON (True, False and None
 *   as Python spells them, too). What does not fit becomes a string when it is no JSON, so a call is always
 *   valid JSON, and the tool says what is wrong. A parameter that the schema does not know is a string,
 *   unless it is a JSON array or object. </parameter> ends a value only where the next parameter or
 *   </function> follows. A <function=NAME> at the start of a line without <tool_call> is a call when NAME
 *   is a tool of the request.
 * - In reasoning, a <tool_call> at the start of a line is a call when it names a tool of the request;
 *   reasoning goes on after it. Any other is reasoning.
 * - A malformed or unfinished block is text: all of it comes as content (in reasoning: as reasoning), from
 *   <tool_call> to where it broke, and the rest is parsed as usual. When the call had begun already,
 *   MB_ANSWER_BROKEN says so first: an answer that is sent whole leaves the call out; one that streams has
 *   sent a part of it.
 */
#ifndef MOEBIUS_ANSWER_H
#define MOEBIUS_ANSWER_H

#include "moebius/grammar.h"
#include "moebius/moebius.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- What a model writes ------------------------------------------------------------------------------ */

typedef enum mb_reasoning_format {
    MB_REASONING_NONE,  /* <think> is content */
    MB_REASONING_THINK, /* <think>...</think> */
} mb_reasoning_format;

typedef enum mb_tool_format {
    MB_TOOLS_NONE, /* the chat template knows no tools; <tool_call> is recognised all the same */
    MB_TOOLS_JSON, /* Qwen3, Hermes */
    MB_TOOLS_XML,  /* Qwen3-Coder */
} mb_tool_format;

typedef struct mb_answer_formats {
    mb_reasoning_format reasoning;
    mb_tool_format tools;
    int tags_are_special; /* decode with skip_special = 0, or the tags are lost */
} mb_answer_formats;

/* What the model's chat template makes of a conversation with reasoning and a call tells the formats.
 * Without a template that renders: none. Takes some renderings: ask once. Fails when memory runs out. */
MB_API mb_status mb_answer_formats_of(const mb_model *model, mb_answer_formats *formats);

/* By vLLM's names of parsers: "qwen3", "deepseek_r1" (reasoning); "hermes", "qwen3_coder", "qwen3_xml"
 * (tools). A name of NULL leaves its part of *formats as it is, "none" sets none. MB_ERR_NOT_FOUND tells
 * the known names. */
MB_API mb_status mb_answer_formats_by_name(const char *reasoning, const char *tools,
                                           mb_answer_formats *formats);

/* 1 when the rendered prompt ends in an open <think>, as Qwen3-Thinking-2507's does. */
MB_API int mb_answer_prompt_opens_reasoning(const char *prompt);

/* ---- tool_choice -------------------------------------------------------------------------------------- */

typedef enum mb_tool_use {
    MB_TOOL_USE_NONE,   /* no calls: give neither the template nor the parser the tools */
    MB_TOOL_USE_FREE,   /* the model decides */
    MB_TOOL_USE_FORCED, /* the answer is one call or several and nothing else: *structure is the grammar */
} mb_tool_use;

/*
 * tool_choice as in the OpenAI API, as JSON text: "none", "auto", "required" (at least one call),
 * {"type": "function", "function": {"name": NAME}} (one call of this tool), or {"type": "allowed_tools",
 * "allowed_tools": {"mode": "auto" or "required", "tools": [{"type": "function", "function": {"name":
 * NAME}}, ...]}}. NULL and "null": "auto" when there are tools, else "none". With parallel = 0 one call is
 * forced, not several.
 *
 * *structure: a text for MB_GRAMMAR_STRUCTURE when *use is MB_TOOL_USE_FORCED, else NULL; free with
 * mb_free_text. In the JSON form the arguments follow the tool's schema. In the XML form the required
 * parameters are there, and a value that may be a string is any text; other values follow their schema.
 *
 * MB_ERR_ARGUMENT: a tool_choice of another form, one that needs tools and has none, a tool that is not
 * there, or tools that mb_answer_open refuses. MB_ERR_FORMAT: not JSON.
 */
MB_API mb_status mb_answer_tool_choice(const mb_answer_formats *formats, const char *tools_json,
                                       const char *tool_choice, int parallel, mb_tool_use *use,
                                       char **structure);

/* Where a grammar of the answer begins: after </think> when the model reasons and the prompt has not closed
 * the reasoning, as Qwen3's with enable_thinking = 0 does. */
MB_API mb_grammar_start mb_answer_grammar_start(const mb_answer_formats *formats, const char *prompt);

/* ---- The parser --------------------------------------------------------------------------------------- */

typedef struct mb_answer_options {
    mb_answer_formats formats;
    int in_reasoning;       /* the prompt opened <think> */
    const char *tools_json; /* the request's tools as in the OpenAI API; NULL: none, <tool_call> is content */
    int one_call;           /* parallel_tool_calls = false: MB_ANSWER_STOP after the first call */
    uint64_t id_seed;       /* of the calls' ids; 0: random */
} mb_answer_options;

MB_API void mb_answer_options_init(const mb_answer_formats *formats, mb_answer_options *options);

typedef struct mb_answer_parser mb_answer_parser; /* one thread at a time */

/* MB_ERR_FORMAT: tools_json is not JSON. MB_ERR_ARGUMENT: it is not an array of
 * {"type": "function", "function": {"name", "description", "parameters"}}; the sentence names the place. */
MB_API mb_status mb_answer_open(const mb_answer_options *options, mb_answer_parser **parser);
MB_API void mb_answer_close(mb_answer_parser *parser); /* NULL allowed */

/* The next piece of the answer. Whole characters in, whole characters out; any bytes are safe. After
 * MB_ANSWER_STOP everything is ignored. MB_ERR_STATE: after mb_answer_finish, or after a failure
 * (MB_ERR_MEMORY). */
MB_API mb_status mb_answer_push(mb_answer_parser *parser, const char *text, size_t n_bytes);
/* The answer is over: what was held back comes out. */
MB_API mb_status mb_answer_finish(mb_answer_parser *parser);

typedef enum mb_answer_event_kind {
    MB_ANSWER_REASONING, /* text: more reasoning */
    MB_ANSWER_CONTENT,   /* text: more content */
    MB_ANSWER_CALL,      /* a call begins: call, id, name */
    MB_ANSWER_ARGUMENTS, /* text: more of the call's arguments; joined they are a JSON object */
    MB_ANSWER_CALL_END,  /* the call is complete */
    MB_ANSWER_BROKEN,    /* the call that began is malformed or unfinished; its text follows as content */
    MB_ANSWER_STOP,      /* one_call: the first call is complete: cancel the sequence, nothing more comes */
} mb_answer_event_kind;

typedef struct mb_answer_event {
    mb_answer_event_kind kind;
    const char *text; /* [n_bytes], zero-terminated; "" where the kind has none */
    size_t n_bytes;
    int32_t call;     /* number of the call, from 0; -1 for reasoning, content and stop */
    const char *id;   /* MB_ANSWER_CALL: "call_" and 24 letters and digits; else NULL */
    const char *name; /* MB_ANSWER_CALL: of the tool, never empty; else NULL */
} mb_answer_event;

/* Moves the next event to *event and returns 1; 0 when there is none. Neighbours of one kind come as one
 * event. The pointers are valid until the next push, finish or close. */
MB_API int mb_answer_next(mb_answer_parser *parser, mb_answer_event *event);

#ifdef __cplusplus
}
#endif
#endif
