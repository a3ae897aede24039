#include "engine/pace.h"

#include <math.h>

enum {
    MAX_TIMING =
        2, /* pauses to time decoding: the second step in flight is planned before the first is timed */
    MAX_OWED = 8,    /* pauses after a mixed step */
    MAX_MIXED = 32,  /* mixed steps before decoding is timed again */
    PROBE = 128,     /* mixed steps before one has the least tokens */
    FIRST_WORK = 32, /* in a step, when its time is not known */
};

void mb_pace_init(mb_pace *pace, double max_slowdown, double double_at, int32_t least_tokens) {
    *pace = (mb_pace){.max_slowdown = max_slowdown,
                      .double_at = double_at,
                      .least_tokens = least_tokens > 1 ? least_tokens : 1};
}

double mb_pace_token_work(const mb_pace *pace, int64_t position) {
    return pace->double_at > 0 ? 1 + (double)position / pace->double_at : 1;
}

/* Batches that differ by more than half are not compared. */
static int is_like(int32_t n_decodes, int32_t others) {
    return 2 * n_decodes <= 3 * others + 1 && 2 * others <= 3 * n_decodes + 1;
}

static int must_pause(const mb_pace *pace, int32_t n_decodes) {
    int is_timed =
        pace->decode_seconds > 0 && pace->n_mixed < MAX_MIXED && is_like(n_decodes, pace->n_decodes);
    return pace->n_pauses < (is_timed ? pace->n_owed : MAX_TIMING);
}

double mb_pace_prefill_work(mb_pace *pace, int32_t n_decodes) {
    if (pace->max_slowdown == 0)
        return INFINITY;
    if (must_pause(pace, n_decodes)) {
        pace->n_pauses++;
        return 0;
    }
    pace->n_pauses = 0;
    pace->n_owed = 0;
    pace->budget = 0;
    pace->n_mixed++;
    if (pace->n_until_probe-- <= 0) {
        pace->n_until_probe = PROBE;
        return pace->least_tokens;
    }
    if (pace->decode_seconds == 0 || pace->seconds_per_work == 0)
        return fmax(FIRST_WORK, 2.0 * pace->least_tokens);
    double decode = pace->decode_seconds;
    if (n_decodes < pace->n_decodes) /* at the worst, the time is all theirs */
        decode *= (double)n_decodes / pace->n_decodes;
    double spare = (pace->max_slowdown - 1) * decode, least = pace->least_seconds;
    pace->budget = 0.75 * spare; /* because a step's time varies */
    double more = pace->budget - least;
    if (more < 0.2 * spare)
        more = fmax(0.4 * least, 0.2 * spare);
    /* At least so much that it is known again what the tokens beyond the least cost. */
    return pace->least_tokens + fmax(more / pace->seconds_per_work, pace->least_tokens - 1);
}

void mb_pace_spend(mb_pace *pace, double work) {
    double more = fmax(work - pace->least_tokens, 0) * pace->seconds_per_work;
    if (pace->budget > 0)
        pace->n_owed =
            (int32_t)fmin(fmax(ceil((pace->least_seconds + more) / pace->budget) - 1, 0), MAX_OWED);
}

/* Moves the figure towards a new measurement. One that is far off may be an accident, such as another program
 * on the machine, so it counts as no more than `most` times the figure and no less than half of the
 * figure. */
static double follow(double figure, double measured, double most, double weight) {
    return figure + weight * (fmin(fmax(measured, 0.5 * figure), most * figure) - figure);
}

/* A step that took too long is more likely an accident than one that took too little time. So the figure
 * falls fast and rises slowly, and the limit is kept rather than missed. */
static void learn_decode(mb_pace *pace, int32_t n_decodes, double seconds) {
    double known = pace->decode_seconds;
    if (known == 0 || !is_like(n_decodes, pace->n_decodes)) {
        pace->decode_seconds = seconds;
        pace->n_until_probe = 0;
    } else {
        pace->decode_seconds = follow(known, seconds, 2, seconds < known ? 0.5 : 0.25);
    }
    pace->n_decodes = n_decodes;
    pace->n_mixed = 0;
}

static void learn_least(mb_pace *pace, double added) {
    double measured = fmin(added, MAX_OWED * pace->decode_seconds), known = pace->least_seconds;
    pace->least_seconds = known == 0 ? measured : known + 0.5 * (measured - known);
}

static void learn_mixed(mb_pace *pace, const mb_step_load *load, double seconds) {
    double added = fmax(seconds - pace->decode_seconds, 0), known = pace->seconds_per_work;
    double more = fmax(load->prefill_work - pace->least_tokens, 0);
    if (load->prefill_work <= 1.5 * pace->least_tokens) {
        if (2 * load->prefill_tokens > pace->least_tokens)
            learn_least(pace, fmax(added - known * more, 0));
    } else if (added < pace->least_seconds) {
        learn_least(pace, added);
    } else {
        double measured = (added - pace->least_seconds) / more;
        pace->seconds_per_work = known == 0 ? measured : follow(known, measured, 4, 0.25);
    }
}

void mb_pace_learn(mb_pace *pace, const mb_step_load *load, double seconds) {
    if (!(seconds > 0))
        return;
    if (load->prefill_tokens == 0 && load->n_decodes > 0) {
        learn_decode(pace, load->n_decodes, seconds);
    } else if (load->n_decodes > 0 && pace->decode_seconds > 0) {
        learn_mixed(pace, load, seconds);
    } else if (load->prefill_tokens > 0 && load->n_decodes == 0) {
        /* A first guess: the step's fixed cost is in its time, but many tokens at once are cheaper. */
        double measured = seconds / load->prefill_work;
        if (pace->seconds_per_work == 0 || measured < pace->seconds_per_work / 4)
            pace->seconds_per_work = measured;
    }
}
