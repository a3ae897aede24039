/* chatml.h - recognises plain ChatML templates, in whatever way their Jinja is written. */
#ifndef MB_MODEL_CHATML_H
#define MB_MODEL_CHATML_H

#include <stddef.h>

/*
 * Whether the Jinja template renders every conversation as
 *
 *     <|im_start|>ROLE\nCONTENT<|im_end|>\n         for each message
 *     <|im_start|>assistant\n                       when a generation prompt is wanted
 *
 * The template may be written as any mixture of text, outputs, + or ~, m['role'] or m.role, white space
 * control, comments, and a default for add_generation_prompt. With branches, filters, calls or other
 * variables it is another template. No memory is allocated, and every text is safe to give.
 */
int mb_chatml_recognise(const char *jinja, size_t n_bytes);

#endif
