/* filters.h - the filters of lists (filters_lists.c), for the table in filters.c. */
#ifndef MB_MODEL_JINJA_FILTERS_H
#define MB_MODEL_JINJA_FILTERS_H

#include "model/jinja/function.h"

mb_status jinja_filter_first(const jinja_given *given, jinja_value *result);
mb_status jinja_filter_last(const jinja_given *given, jinja_value *result);
mb_status jinja_filter_list(const jinja_given *given, jinja_value *result);
mb_status jinja_filter_reverse(const jinja_given *given, jinja_value *result);
mb_status jinja_filter_items(const jinja_given *given, jinja_value *result);
mb_status jinja_filter_dictsort(const jinja_given *given, jinja_value *result);
mb_status jinja_filter_sort(const jinja_given *given, jinja_value *result);
mb_status jinja_filter_unique(const jinja_given *given, jinja_value *result);
mb_status jinja_filter_min(const jinja_given *given, jinja_value *result);
mb_status jinja_filter_max(const jinja_given *given, jinja_value *result);
mb_status jinja_filter_sum(const jinja_given *given, jinja_value *result);
mb_status jinja_filter_join(const jinja_given *given, jinja_value *result);
mb_status jinja_filter_map(const jinja_given *given, jinja_value *result);
mb_status jinja_filter_select(const jinja_given *given, jinja_value *result);
mb_status jinja_filter_reject(const jinja_given *given, jinja_value *result);
mb_status jinja_filter_selectattr(const jinja_given *given, jinja_value *result);
mb_status jinja_filter_rejectattr(const jinja_given *given, jinja_value *result);

#endif
