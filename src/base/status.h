/* Internal side of status.h: how a failure is recorded. */
#ifndef MB_BASE_STATUS_H
#define MB_BASE_STATUS_H

#include "moebius/status.h"

#ifdef __cplusplus /* kernels' launchers record failures too */
extern "C" {
#endif

/* Records this thread's error sentence and returns `status`, so that callers write
 *     return mb_fail(MB_ERR_FORMAT, "%s: header is %zu bytes, more than the file", path, n);
 * The sentence says what, where and what to do; no trailing newline. Never allocates. */
__attribute__((format(printf, 2, 3))) mb_status mb_fail(mb_status status, const char *format, ...);

/* Puts "context: " before the sentence of the failure just recorded, for callers that know more. */
__attribute__((format(printf, 2, 3))) mb_status mb_fail_context(mb_status status, const char *format, ...);

/* MB_ERR_ARGUMENT when an argument of a public call is NULL; what: "mb_submit: request". */
mb_status mb_need(const void *argument, const char *what);

/* Returns from the calling function when `expression` fails. */
#define MB_TRY(expression)                       \
    do {                                         \
        mb_status mb_try_status_ = (expression); \
        if (mb_try_status_ != MB_OK)             \
            return mb_try_status_;               \
    } while (0)

#ifdef __cplusplus
}
#endif

#endif
