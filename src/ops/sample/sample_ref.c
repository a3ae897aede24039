#include "ops/sample/sample.h"

#include "base/arena.h"
#include "ops/common/parallel.h"
#include "ops/common/tensor.h"
#include "ops/common/workspace.h"
#include "ops/sample/log_sum_exp.h"
#include "ops/sample/philox.h"

#include <float.h>
#include <inttypes.h>
#include <math.h>

/*
 * One row: the adjusted logits are copied to the workspace, then divided by the temperature and taken
 * relative to the maximum, so that token i has weight e^z[i] and the best one weight 1. Every filter is then
 * a place in the one order of candidates (larger z first, then lower id): the last candidate that is kept.
 * The draw walks the kept tokens in id order; one whose cumulative weight first exceeds u * total is taken.
 */
typedef struct candidate {
    float z;
    int32_t id;
} candidate;

typedef struct row_buffers {
    float *z;              /* [V] */
    candidate *candidates; /* [V] */
} row_buffers;

static int comes_before(candidate a, candidate b) {
    return a.z > b.z || (a.z == b.z && a.id < b.id);
}

/* Ids outside of the vocabulary are passed over. */
static void adjust_logits(const mb_sample_row *row, int32_t vocab, float *z) {
    for (int32_t id = 0; row->seen && id < vocab; id++) {
        int32_t seen = row->seen[id], count = seen / 2;
        if (seen == 0)
            continue;
        float penalty = row->repetition_penalty;
        float logit = z[id] > 0 ? z[id] / penalty : z[id] * penalty;
        if (count > 0)
            logit -= row->presence_penalty + row->frequency_penalty * (float)count;
        z[id] = logit;
    }
    for (int32_t i = 0; i < row->n_bias; i++)
        if (row->bias_ids[i] >= 0 && row->bias_ids[i] < vocab)
            z[row->bias_ids[i]] += row->biases[i];
    for (int32_t i = 0; row->allowed && i < vocab; i++)
        if (!(row->allowed[i / 32] >> (i % 32) & 1) && z[i] < INFINITY) /* a NaN stays for find_best to see */
            z[i] = -INFINITY;
}

/* The largest logit, the first of equal ones; -1 when there is a NaN, a +infinity, or only -infinity. */
static int32_t find_best(const float *z, int32_t vocab) {
    int32_t best = 0, usable = 1;
    for (int32_t i = 0; i < vocab; i++) {
        usable &= z[i] < INFINITY; /* false for NaN too */
        if (z[i] > z[best])
            best = i;
    }
    return usable && z[best] > -INFINITY ? best : -1;
}

/* Lets heap[i] sink until both its children come after it. */
static void sink(candidate *heap, int32_t n, int32_t i) {
    candidate sinking = heap[i];
    for (int32_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && comes_before(heap[child + 1], heap[child]))
            child++;
        if (!comes_before(heap[child], sinking))
            break;
        heap[i] = heap[child];
    }
    heap[i] = sinking;
}

/* Takes the first candidate off the heap of n and puts it behind what remains, at heap[n - 1]. */
static candidate pop(candidate *heap, int32_t n) {
    candidate first = heap[0];
    heap[0] = heap[n - 1];
    sink(heap, n - 1, 0);
    heap[n - 1] = first;
    return first;
}

/* The last candidate that top_k and then top_p keep. A heap gives the candidates in order; building it is
 * O(V), and only what is kept is ever taken off it. */
static candidate find_cutoff(const mb_sample_row *row, int32_t vocab, const float *z, candidate *heap) {
    int32_t top_k = row->top_k > 0 && row->top_k < vocab ? row->top_k : vocab;
    double total = 0, weight = 0;
    for (int32_t i = 0; i < vocab; i++) {
        heap[i] = (candidate){z[i], i};
        total += (double)mb_exp(z[i]);
    }
    for (int32_t i = vocab / 2 - 1; i >= 0; i--)
        sink(heap, vocab, i);

    int32_t n_taken = 0;
    if (top_k < vocab) { /* top_p is a share of what top_k leaves */
        for (total = 0; n_taken < top_k; n_taken++)
            total += (double)mb_exp(pop(heap, vocab - n_taken).z);
        if (!(row->top_p < 1.0f))
            return heap[vocab - n_taken];
    }
    for (int32_t i = 0; i < top_k; i++) {
        candidate next = i < n_taken ? heap[vocab - 1 - i] : pop(heap, vocab - i);
        weight += (double)mb_exp(next.z);
        if (weight >= (double)row->top_p * total)
            return next;
    }
    return heap[vocab - top_k];
}

static int32_t draw(const mb_sample_row *row, int32_t vocab, float *z, candidate *candidates) {
    candidate cutoff = {-INFINITY, vocab};
    if (row->top_p < 1.0f || (row->top_k > 0 && row->top_k < vocab))
        cutoff = find_cutoff(row, vocab, z, candidates);
    float min_weight = row->min_p < 1.0f ? row->min_p : 1.0f;

    /* z becomes the weights of the kept tokens */
    double total = 0, cumulative = 0;
    int32_t last = -1;
    for (int32_t i = 0; i < vocab; i++) {
        float weight = mb_exp(z[i]);
        int kept = !comes_before(cutoff, (candidate){z[i], i}) && !(weight < min_weight);
        z[i] = kept ? weight : 0;
        total += (double)z[i];
    }
    double target = mb_philox_uniform(row->seed, row->position) * total;
    for (int32_t i = 0; i < vocab; i++) {
        if (z[i] <= 0)
            continue;
        cumulative += (double)z[i];
        last = i;
        if (cumulative > target)
            break;
    }
    return last;
}

typedef struct sampling {
    const mb_sample_args *args;
    row_buffers buffers; /* of row 0; the others' follow */
} sampling;

static void sample_row(const void *context, int64_t r) {
    const sampling *s = context;
    const mb_sample_args *args = s->args;
    const mb_sample_row *row = &args->rows[r];
    const float *logits = args->logits + r * args->vocab;
    float *z = s->buffers.z + r * args->vocab;
    memcpy(z, logits, (size_t)args->vocab * sizeof *z);
    adjust_logits(row, args->vocab, z);
    int32_t id = find_best(z, args->vocab);
    if (id >= 0 && row->temperature > 0) {
        /* -inf over an infinite one would be NaN */
        const float maximum = z[id], temperature = fminf(row->temperature, FLT_MAX);
        for (int32_t i = 0; i < args->vocab; i++)
            z[i] = (z[i] - maximum) / temperature;
        id = draw(row, args->vocab, z, s->buffers.candidates + r * args->vocab);
    }
    if (row->seen && id >= 0)
        row->seen[id] += 2;
    args->ids[r] = id;
    args->logprobs[r] =
        id < 0 ? -INFINITY : (float)((double)logits[id] - mb_log_sum_exp(logits, args->vocab));
}

static row_buffers cut_workspace(const mb_sample_args *args, mb_arena *arena) {
    size_t n = (size_t)args->n_rows, vocab = (size_t)args->vocab;
    row_buffers buffers;
    buffers.z = mb_arena_push(arena, n, vocab * sizeof *buffers.z);
    buffers.candidates = mb_arena_push(arena, n, vocab * sizeof *buffers.candidates);
    return buffers;
}

mb_status mb_sample_check_sizes(const mb_sample_args *args) {
    MB_REQUIRE(args->n_rows >= 0 && args->n_rows <= INT32_MAX, "sample: n_rows is %" PRId64, args->n_rows);
    MB_REQUIRE(args->vocab > 0, "sample: vocab is %d", args->vocab);
    return MB_OK;
}

mb_status mb_sample_check(const mb_sample_args *args) {
    MB_TRY(mb_sample_check_sizes(args));
    MB_REQUIRE(args->n_rows == 0 || (args->logits && args->rows && args->ids && args->logprobs),
               "sample: one of logits, rows, ids, logprobs is NULL");
    return MB_OK;
}

mb_status mb_sample_ref_workspace(const mb_sample_args *most, size_t *bytes) {
    MB_TRY(mb_sample_check_sizes(most));
    mb_arena arena;
    mb_arena_measure(&arena);
    cut_workspace(most, &arena);
    return mb_workspace_measured("sample", &arena, bytes);
}

mb_status mb_sample_ref(const mb_sample_args *args, void *workspace, size_t workspace_bytes,
                        mb_stream stream) {
    MB_TRY(mb_sample_check(args));
    if (args->n_rows == 0)
        return MB_OK;
    size_t needed;
    MB_TRY(mb_sample_ref_workspace(args, &needed));
    MB_TRY(mb_workspace_check("sample", workspace, workspace_bytes, needed));
    mb_arena arena;
    mb_arena_init(&arena, workspace, workspace_bytes, 1);
    sampling s = {args, cut_workspace(args, &arena)};
    mb_parallel_for(stream, 32.0 * (double)args->n_rows * args->vocab, args->n_rows, sample_row, &s);
    return MB_OK;
}
