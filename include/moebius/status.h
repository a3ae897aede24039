/*
 * status.h - result codes of every moebius call.
 *
 * A call that can fail returns an mb_status. 0 is success. On failure mb_last_error() holds one sentence
 * for this thread: what went wrong, where, and what to do about it.
 */
#ifndef MOEBIUS_STATUS_H
#define MOEBIUS_STATUS_H

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define MB_API __attribute__((visibility("default")))
#else
#define MB_API
#endif

/* X(name, value, sentence): the enum, the names and the texts are all made from this list. */
#define MB_STATUS_LIST(X)                                                                              \
    X(MB_OK, 0, "success")                                                                             \
    X(MB_ERR_ARGUMENT, 1, "an argument is outside of its documented range")                            \
    X(MB_ERR_MEMORY, 2, "memory could not be allocated")                                               \
    X(MB_ERR_IO, 3, "a file or stream could not be read or written")                                   \
    X(MB_ERR_FORMAT, 4, "a file does not follow its format")                                           \
    X(MB_ERR_CONFIG, 5, "a model's configuration is missing, out of range or contradicts its weights") \
    X(MB_ERR_UNSUPPORTED, 6, "valid, but this build of moebius cannot do it")                          \
    X(MB_ERR_CAPACITY, 7, "a buffer, queue or cache is too small for the request")                     \
    X(MB_ERR_NOT_FOUND, 8, "the named thing does not exist")                                           \
    X(MB_ERR_STATE, 9, "the call is not allowed in the object's present state")                        \
    X(MB_ERR_DEVICE, 10, "the device or its driver reported an error")                                 \
    X(MB_ERR_NUMERIC, 11, "a computation gave NaN or infinity")                                        \
    X(MB_ERR_INTERNAL, 12, "a bug in moebius; please report it")

typedef enum mb_status {
#define X(name, value, text) name = value,
    MB_STATUS_LIST(X)
#undef X
} mb_status;

/* The code's name ("MB_ERR_FORMAT") and its sentence. Never NULL, also for unknown codes. Thread-safe. */
MB_API const char *mb_status_name(mb_status status);
MB_API const char *mb_status_text(mb_status status);

/* The sentence of this thread's last failed call; "" when none failed yet. It is valid until this
 * thread's next call that fails. A call that succeeds leaves the sentence as it is. */
MB_API const char *mb_last_error(void);

#ifdef __cplusplus
}
#endif
#endif
