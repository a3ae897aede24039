/*
 * json_alloc.h - lets jansson use our allocator during our own calls.
 *
 * jansson has one pair of allocation functions for the whole process, and the program that uses this
 * library may use jansson as well. So our pair is installed only between enter and leave. Even then the
 * pair looks at the calling thread: a thread between enter and leave gets our allocator, every other thread
 * gets the functions that the program had set. A tree that was made between enter and leave must be freed
 * between enter and leave. The program must not call json_set_alloc_funcs while another of its threads is
 * in a function of this library.
 */
#ifndef MB_MODEL_JSON_ALLOC_H
#define MB_MODEL_JSON_ALLOC_H

/* Calls must not be nested. */
void mb_json_enter(void);
/* 1 when an allocation of this thread failed since mb_json_enter: jansson does not always say so. */
int mb_json_leave(void);

#endif
