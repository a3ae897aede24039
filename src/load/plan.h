/* plan.h - which requests are sent when: lengths, arrival times and prompts, all from one seed. */
#ifndef MB_LOAD_PLAN_H
#define MB_LOAD_PLAN_H

#include <stddef.h>
#include <stdint.h>

#include "base/status.h"

typedef enum load_prompts {
    LOAD_FIXED,         /* every prompt and answer has the given length */
    LOAD_SHAREGPT,      /* log-normal lengths, whose means are those of the ShareGPT conversations */
    LOAD_SHARED_PREFIX, /* as fixed, after a prefix that a group of prompts shares */
} load_prompts;

typedef enum load_endpoint { LOAD_COMPLETIONS, LOAD_CHAT } load_endpoint;

typedef struct load_plan_options {
    load_prompts prompts;
    load_endpoint endpoint;
    int32_t n_requests;
    double rate;                /* arrivals in a second, Poisson; 0: all at once (concurrency limits them) */
    int32_t n_prompt, n_output; /* tokens */
    int32_t n_prefix,
        n_prefixes;        /* of LOAD_SHARED_PREFIX: tokens of a prefix, and how many prefixes there are */
    int32_t n_longest;     /* of LOAD_SHAREGPT: the most tokens of a prompt, and of an answer */
    int32_t vocabulary;    /* of LOAD_COMPLETIONS: prompts are ids below this */
    uint64_t seed;         /* of lengths and arrivals */
    uint64_t content_seed; /* of the prompts' tokens */
    int32_t first_request; /* number of the first; from its number follow the tokens of a prompt's own */
    /* What every request says. */
    const char *model_json; /* the name as a JSON string, with its quotes */
    double temperature;
    int stops_at_eos;
} load_plan_options;

typedef struct load_planned {
    double at_s; /* after the start */
    int32_t n_prompt, n_output;
    int32_t i_prefix;
} load_planned;

/* Fills options->n_requests items, in the order of arrival. */
void load_plan_make(const load_plan_options *options, load_planned *items);

/* The JSON body of request i_request after the first: mb_malloc, ended by a zero. NULL: no memory. */
char *load_plan_body(const load_plan_options *options, const load_planned *item, int32_t i_request);

/* The path of the endpoint, after the base address. */
const char *load_endpoint_path(load_endpoint endpoint);

#endif
