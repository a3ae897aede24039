/* name_list.h - names for one line of a warning: as many as fit, and how many there are. */
#ifndef MB_MODEL_NAME_LIST_H
#define MB_MODEL_NAME_LIST_H

#include <stddef.h>

typedef struct mb_name_list {
    char text[640]; /* "a", "b" and 7 more */
    size_t n_chars, n_names, n_shown;
} mb_name_list; /* zero: empty */

void mb_name_list_add(mb_name_list *list, const char *name);
/* The names as a sentence has them; lives in the list. */
const char *mb_name_list_text(mb_name_list *list);

#endif
