/*
 * json_alloc.h - jansson with our allocator, without taking jansson away from the program around us.
 *
 * jansson knows one pair of allocation functions for the whole process, and the program that uses this library
 * may use jansson too. So the pair is ours only between enter and leave, and even then it looks at the calling
 * thread: a thread inside gets our allocator, every other thread the functions that the program had set.
 * A tree that was made inside must be freed inside. The program must not call json_set_alloc_funcs while
 * another of its threads is in a function of this library.
 */
#ifndef MB_MODEL_JSON_ALLOC_H
#define MB_MODEL_JSON_ALLOC_H

/* Not to be nested. */
void mb_json_enter(void);
/* 1 when an allocation of this thread failed since mb_json_enter: jansson does not always say so. */
int mb_json_leave(void);

#endif
