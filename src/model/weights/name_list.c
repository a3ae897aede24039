#include "model/weights/name_list.h"

#include <stdio.h>
#include <string.h>

#include "model/json.h"

enum { SHOWN = 160, ROOM_FOR_COUNT = 40 };

void mb_name_list_add(mb_name_list *list, const char *name) {
    char shown[SHOWN];
    size_t n = strlen(mb_quote(shown, sizeof shown, name)) + 2;
    list->n_names++;
    if (list->n_shown + 1 < list->n_names || list->n_chars + n > sizeof list->text - ROOM_FOR_COUNT)
        return;
    list->n_chars += (size_t)snprintf(list->text + list->n_chars, sizeof list->text - list->n_chars, "%s%s",
                                      list->n_shown > 0 ? ", " : "", shown);
    list->n_shown++;
}

const char *mb_name_list_text(mb_name_list *list) {
    if (list->n_shown < list->n_names)
        snprintf(list->text + list->n_chars, sizeof list->text - list->n_chars, " and %zu more",
                 list->n_names - list->n_shown);
    return list->text;
}
