/*
 * chat_builtin.c - chat templates of our own writing, for checkpoints without one: --chat-template NAME.
 *
 *   qwen3            Qwen3's hybrids: the turns behind the last question keep their thinking;
 *                    enable_thinking = false opens the answer with an empty think block
 *   qwen3-thinking   the same turns; the answer always opens with <think>
 *   qwen3-instruct   turns as they are
 *   chatml           turns as they are, of any role; no tools
 */
#include <string.h>

#include "model/chat/chat_template.h"

/* Renders as Qwen's three templates do, which share all but what `style` chooses. */
/* clang-format off */
#define QWEN(style) \
    "{%- set style = '" style "' -%}\n" \
    "{%- macro open(role) -%}{{ '<|im_start|>' ~ role }}{%- endmacro -%}\n" \
    "{%- set close = '<|im_end|>\\n' -%}\n" \
    "{%- set n = messages | length -%}\n" \
    "{%- set has_system = messages[0].role == 'system' -%}\n" \
    "\n" \
    "{#- Opening: the system message, with the tool definitions behind it -#}\n" \
    "{%- if tools -%}\n" \
    "    {{- open('system') ~ '\\n' -}}\n" \
    "    {%- if has_system -%}{{- messages[0].content + '\\n\\n' -}}{%- endif -%}\n" \
    "    {{- '# Tools\\n\\nYou may call one or more functions to assist with the user query.\\n\\n' -}}\n" \
    "    {{- 'You are provided with function signatures within <tools></tools> XML tags:\\n<tools>' -}}\n" \
    "    {%- for tool in tools -%}{{- '\\n' -}}{{- tool | tojson -}}{%- endfor -%}\n" \
    "    {{- '\\n</tools>\\n\\nFor each function call, return a json object with function name and arguments ' -}}\n" \
    "    {{- 'within <tool_call></tool_call> XML tags:\\n' -}}\n" \
    "    {{- '<tool_call>\\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\\n</tool_call>' ~ close -}}\n" \
    "{%- elif has_system -%}\n" \
    "    {{- open('system') + '\\n' + messages[0].content + close -}}\n" \
    "{%- endif -%}\n" \
    "\n" \
    "{#- Thinking is kept only behind the last question of the user; a tool response in a user's turn is no question -#}\n" \
    "{%- set last = namespace(question=n - 1, found=false) -%}\n" \
    "{%- for i in range(n - 1, -1, -1) -%}\n" \
    "    {%- set m = messages[i] -%}\n" \
    "    {%- if not last.found and m.role == 'user' and m.content is string -%}\n" \
    "        {%- if not (m.content.startswith('<tool_response>') and m.content.endswith('</tool_response>')) -%}\n" \
    "            {%- set last.found = true -%}\n" \
    "            {%- set last.question = i -%}\n" \
    "        {%- endif -%}\n" \
    "    {%- endif -%}\n" \
    "{%- endfor -%}\n" \
    "\n" \
    "{%- for m in messages -%}\n" \
    "    {%- set i = loop.index0 -%}\n" \
    "    {%- set text = m.content if m.content is string else '' -%}\n" \
    "    {%- if m.role == 'user' or (m.role == 'system' and i > 0) -%}\n" \
    "        {{- open(m.role) ~ '\\n' ~ text ~ close -}}\n" \
    "    {%- elif m.role == 'assistant' -%}\n" \
    "        {%- set thought = '' -%}\n" \
    "        {%- if style == 'instruct' -%}\n" \
    "        {%- elif m.reasoning_content is string -%}\n" \
    "            {%- set thought = m.reasoning_content -%}\n" \
    "        {%- elif '</think>' in text -%}\n" \
    "            {%- set parts = text.split('</think>') -%}\n" \
    "            {%- set thought = parts[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') -%}\n" \
    "            {%- set text = parts[-1].lstrip('\\n') -%}\n" \
    "        {%- endif -%}\n" \
    "        {{- open('assistant') ~ '\\n' -}}\n" \
    "        {%- if style != 'instruct' and i > last.question and (thought or i == n - 1) -%}\n" \
    "            {{- '<think>\\n' ~ thought.strip('\\n') ~ '\\n</think>\\n\\n' ~ text.lstrip('\\n') -}}\n" \
    "        {%- else -%}\n" \
    "            {{- text -}}\n" \
    "        {%- endif -%}\n" \
    "        {%- for call in m.tool_calls or [] -%}\n" \
    "            {%- set function = call.function or call -%}\n" \
    "            {{- '\\n' if text or not loop.first -}}\n" \
    "            {{- '<tool_call>\\n{\"name\": \"' ~ function.name ~ '\", \"arguments\": ' -}}\n" \
    "            {{- function.arguments if function.arguments is string else function.arguments | tojson -}}\n" \
    "            {{- '}\\n</tool_call>' -}}\n" \
    "        {%- endfor -%}\n" \
    "        {{- close -}}\n" \
    "    {%- elif m.role == 'tool' -%}\n" \
    "        {{- open('user') if i == 0 or messages[i - 1].role != 'tool' -}}\n" \
    "        {{- '\\n<tool_response>\\n' ~ text ~ '\\n</tool_response>' -}}\n" \
    "        {{- close if i == n - 1 or messages[i + 1].role != 'tool' -}}\n" \
    "    {%- endif -%}\n" \
    "{%- endfor -%}\n" \
    "\n" \
    "{%- if add_generation_prompt -%}\n" \
    "    {{- open('assistant') ~ '\\n' -}}\n" \
    "    {%- if style == 'thinking' -%}\n" \
    "        {{- '<think>\\n' -}}\n" \
    "    {%- elif style == 'hybrid' and enable_thinking is defined and enable_thinking is false -%}\n" \
    "        {{- '<think>\\n\\n</think>\\n\\n' -}}\n" \
    "    {%- endif -%}\n" \
    "{%- endif -%}\n"
/* clang-format on */

static const struct {
    const char *name, *text;
} templates[] = {
    {"qwen3", QWEN("hybrid")},
    {"qwen3-instruct", QWEN("instruct")},
    {"qwen3-thinking", QWEN("thinking")},
    {"chatml", "{%- for m in messages -%}\n"
               "{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' -}}\n"
               "{%- endfor -%}\n"
               "{{- '<|im_start|>assistant\\n' if add_generation_prompt -}}\n"},
};

const char *mb_chat_template_builtin(const char *name) {
    for (size_t i = 0; i < sizeof templates / sizeof *templates; i++)
        if (strcmp(templates[i].name, name) == 0)
            return templates[i].text;
    return NULL;
}
