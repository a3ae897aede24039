/* answer_parts.h - an answer's events as one line of text, for any division of the answer. */
#ifndef TESTS_SUPPORT_ANSWER_PARTS_H
#define TESTS_SUPPORT_ANSWER_PARTS_H

#include "moebius/answer.h"

/* Pushes the text in pieces: piece k is pieces[k % n_pieces] bytes long (n_pieces 0: the whole text).
 * Returns the events in their order, neighbours of one kind joined, freed with free():
 *
 *     R(reasoning)C(content)T0(name)A0(arguments)E0 B0 S      B: broken, S: stop
 * / */
char *answer_parts(const mb_answer_options *options, const char *text, size_t n_bytes, const size_t *pieces,
                   size_t n_pieces);

#endif
