#include "engine/pace.h"

#include <math.h>

enum {
    MAX_TIMING =
        2, /* pauses to time decoding: the second step in flight is planned before the first is timed */
    MAX_OWED = 8,    /* pauses after a mixed step */
    MAX_MIXED = 32,  /* mixed steps before decoding is timed again */
    PROBE = 128,     /* mixed steps before one does no work */
    FIRST_WORK = 32, /* in a step, when its time is not known */
};

void mb_pace_init(mb_pace *pace, double max_slowdown, double double_at) {
    *pace = (mb_pace){.max_slowdown = max_slowdown, .double_at = double_at};
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
    pace->allowed = 0;
    pace->n_mixed++;
    if (pace->n_until_probe-- <= 0) {
        pace->n_until_probe = PROBE;
        return 1;
    }
    if (pace->decode_seconds == 0 || pace->seconds_per_work == 0)
        return FIRST_WORK;
    double decode = pace->decode_seconds;
    if (n_decodes < pace->n_decodes) /* at the worst, the time is all theirs */
        decode *= (double)n_decodes / pace->n_decodes;
    /* Of the limit four fifths, because a step's time varies. */
    double spare = (pace->max_slowdown - 1) * decode;
    double fixed = pace->fixed_seconds, room = 0.8 * spare - fixed;
    if (room < 0.3 * spare) {
        room = 0.5 * spare;
        pace->n_owed = (int32_t)fmin(ceil((fixed + room) / (0.8 * spare)) - 1, MAX_OWED);
    }
    pace->allowed = room / pace->seconds_per_work;
    return pace->allowed;
}

void mb_pace_spend(mb_pace *pace, double work) {
    if (pace->allowed > 0 && work > pace->allowed)
        pace->n_owed = (int32_t)fmin(pace->n_owed + ceil(work / pace->allowed) - 1, MAX_OWED);
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
    if (known == 0 || !is_like(n_decodes, pace->n_decodes))
        pace->decode_seconds = seconds;
    else
        pace->decode_seconds = follow(known, seconds, 2, seconds < known ? 0.5 : 0.25);
    pace->n_decodes = n_decodes;
    pace->n_mixed = 0;
}

static void learn_mixed(mb_pace *pace, const mb_step_load *load, double seconds) {
    double added = fmax(seconds - pace->decode_seconds, 0), known = pace->seconds_per_work;
    if (load->prefill_tokens == 1) {
        double fixed = fmax(added - known * load->prefill_work, 0);
        pace->fixed_seconds += 0.5 * (fmin(fixed, MAX_OWED * pace->decode_seconds) - pace->fixed_seconds);
        return;
    }
    double measured = fmax(added - pace->fixed_seconds, 0) / load->prefill_work;
    pace->seconds_per_work = known == 0 ? measured : follow(known, measured, 4, 0.25);
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
