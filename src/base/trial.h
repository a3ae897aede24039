/* trial.h - a draft's switches: NAME=0 in the environment takes a change out. Not for main. */
#ifndef MB_BASE_TRIAL_H
#define MB_BASE_TRIAL_H

#include <stdlib.h>

static inline int mb_trial(const char *name) {
    const char *value = getenv(name);
    return !value || atoi(value) != 0;
}

#endif
