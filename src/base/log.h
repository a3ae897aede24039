/* log.h - diagnostics on stderr, level from MOEBIUS_LOG (error, warn, info, debug; default warn). */
#ifndef MB_BASE_LOG_H
#define MB_BASE_LOG_H

typedef enum mb_log_level { MB_LOG_ERROR, MB_LOG_WARN, MB_LOG_INFO, MB_LOG_DEBUG } mb_log_level;

/* Logs one line, with a single write: lines of several threads do not mix. */
__attribute__((format(printf, 2, 3))) void mb_log(mb_log_level level, const char *format, ...);

#endif
