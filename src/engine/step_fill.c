/* step_fill.c - a planned batch becomes the arrays of a step's input buffer. */
#include <assert.h>
#include <string.h>

#include "engine/step.h"

static size_t mask_words(int32_t vocab) {
    return ((size_t)vocab + 31) / 32;
}

void mb_step_cut_inputs(mb_arena *arena, const mb_runner *runner, const mb_step_counts *n,
                        mb_step_inputs *in) {
    size_t n_tokens = (size_t)n->n_tokens, n_sequences = (size_t)n->n_sequences;
    size_t n_table = n_sequences * (size_t)n->max_blocks;
    size_t has_first = (size_t)mb_kv_layout_first_differs(&runner->kv.layout);
    in->ids = mb_arena_push(arena, n_tokens, sizeof *in->ids);
    in->draw_of = mb_arena_push(arena, n_tokens, sizeof *in->draw_of);
    in->positions = mb_arena_push(arena, n_tokens, sizeof *in->positions);
    in->slots = mb_arena_push(arena, n_tokens, sizeof *in->slots);
    in->q_start = mb_arena_push(arena, n_sequences + 1, sizeof *in->q_start);
    in->kv_len = mb_arena_push(arena, n_sequences, sizeof *in->kv_len);
    in->span_start = mb_arena_push(arena, n_sequences + 1, sizeof *in->span_start);
    in->block_table = mb_arena_push(arena, n_table, sizeof *in->block_table);
    in->first_slots = mb_arena_push(arena, has_first * n_tokens, sizeof *in->first_slots);
    in->first_block_table = mb_arena_push(arena, has_first * n_table, sizeof *in->first_block_table);
    in->logit_rows = mb_arena_push(arena, (size_t)n->n_logits, sizeof *in->logit_rows);
    in->rows = mb_arena_push(arena, (size_t)n->n_draws, sizeof *in->rows);
    in->masks =
        mb_arena_push(arena, (size_t)n->n_masks * mask_words(runner->model->config.vocab), sizeof *in->masks);
}

void *mb_step_on_device(const mb_step_slot *slot, const void *input) {
    return slot->device_inputs + ((const char *)input - slot->inputs);
}

static mb_step_counts count(const mb_planned *plan, int32_t n_planned) {
    mb_step_counts n = {.n_sequences = n_planned};
    for (int32_t i = 0; i < n_planned; i++) {
        const mb_planned *item = &plan[i];
        const mb_sequence *sequence = mb_sequence_of(item->job);
        int64_t kv_len = item->first + item->n_tokens;
        n.n_tokens += item->n_tokens;
        n.n_logits += item->n_logits;
        n.n_draws += item->draws;
        n.n_masks += item->draws && sequence->grammar;
        n.n_prompt_rows += item->n_logits - item->draws;
        n.n_reported += sequence->on_logprobs ? item->n_logits : 0;
        int32_t n_blocks = (int32_t)mb_kv_blocks_for(kv_len);
        if (n.max_blocks < n_blocks)
            n.max_blocks = n_blocks;
        if (n.max_q_len < item->n_tokens)
            n.max_q_len = item->n_tokens;
        if (n.max_kv_len < kv_len)
            n.max_kv_len = (int32_t)kv_len;
    }
    return n;
}

/* Where the next of each kind goes. Rows of logits lie in three groups: prompt rows that are only reported,
 * then draws that are reported, then the other draws; so that sampling and log-softmax each get one
 * contiguous range. */
typedef struct cursor {
    int32_t token, prompt_row, reported_draw, silent_draw, mask;
} cursor;

/* Makes sure that the sequence's sampler place holds what the draw at `position` needs. It does already
 * when the step before drew there for the same sequence. Else, at its first draw and at the first after it
 * came back from a preemption, all its tokens are known. */
static void use_sampler_place(mb_runner *runner, mb_step_slot *slot, const mb_sequence *sequence,
                              int64_t position) {
    mb_sampler_place *place = &runner->places[sequence->job.table];
    if (place->id != sequence->id || place->n_counted != position) {
        assert(position == sequence->job.n_tokens);
        slot->starts[slot->n_starts++] =
            (mb_sampler_start){.sequence = sequence, .place = sequence->job.table, .n_ids = position};
    }
    *place = (mb_sampler_place){.id = sequence->id, .n_counted = position + 1};
}

const uint32_t *mb_step_mask(const mb_step_slot *slot, int32_t i_planned, int32_t vocab) {
    int32_t i_mask = slot->outcomes[i_planned].i_mask;
    return i_mask >= 0 ? slot->in.masks + (size_t)i_mask * mask_words(vocab) : NULL;
}

/* Where the row's mask is on the device; NULL: it has none. */
static const uint32_t *fill_mask(const mb_runner *runner, mb_step_slot *slot, mb_sequence *sequence,
                                 int32_t i_planned, cursor *at) {
    size_t n_words = mask_words(runner->model->config.vocab);
    if (!sequence->grammar)
        return NULL;
    slot->outcomes[i_planned].i_mask = at->mask;
    uint32_t *bits = slot->in.masks + (size_t)at->mask++ * n_words;
    mb_sequence_mask(sequence, bits, n_words);
    return mb_step_on_device(slot, bits);
}

static mb_sample_row sample_row(mb_runner *runner, mb_step_slot *slot, int32_t i_planned, cursor *at) {
    const mb_planned *item = &slot->plan[i_planned];
    mb_sequence *sequence = mb_sequence_of(item->job);
    const mb_sampling *s = &sequence->sampling;
    const int64_t position = item->first + item->n_tokens;
    const size_t table = (size_t)item->job->table, vocab = (size_t)runner->model->config.vocab;
    if (sequence->has_penalties || sequence->n_bias > 0)
        use_sampler_place(runner, slot, sequence, position);
    return (mb_sample_row){.temperature = s->temperature,
                           .top_p = s->top_p,
                           .min_p = s->min_p,
                           .repetition_penalty = s->repetition_penalty,
                           .presence_penalty = s->presence_penalty,
                           .frequency_penalty = s->frequency_penalty,
                           .top_k = s->top_k,
                           .n_bias = mb_sequence_n_bias(sequence, position),
                           .seed = s->seed,
                           .position = (uint64_t)position,
                           .bias_ids = runner->bias_ids + table * MB_MAX_LOGIT_BIAS,
                           .biases = runner->biases + table * MB_MAX_LOGIT_BIAS,
                           .seen = sequence->has_penalties ? runner->seen + table * vocab : NULL,
                           .allowed = fill_mask(runner, slot, sequence, i_planned, at)};
}

static void fill_logit_rows(mb_runner *runner, mb_step_slot *slot, int32_t i_planned, cursor *at) {
    const mb_planned *item = &slot->plan[i_planned];
    mb_sequence *sequence = mb_sequence_of(item->job);
    mb_step_inputs *in = &slot->in;
    for (int32_t i = item->n_tokens - item->n_logits; i < item->n_tokens; i++) {
        int draws = item->draws && i == item->n_tokens - 1;
        int32_t row = at->prompt_row;
        if (draws) {
            row = sequence->on_logprobs ? at->reported_draw++ : at->silent_draw++;
            int32_t draw = row - slot->counts.n_prompt_rows;
            in->rows[draw] = sample_row(runner, slot, i_planned, at);
            slot->draw_planned[draw] = i_planned;
            sequence->i_draw = draw;
        } else {
            at->prompt_row++;
        }
        in->logit_rows[row] = in->q_start[i_planned] + i;
        if (row < slot->counts.n_reported)
            slot->reports[row] = (mb_report){.i_planned = i_planned, .position = item->first + i};
    }
}

/* The policy numbers blocks and their positions; operators count pieces, and a block is `pieces` of them
 * (kv_layout.h). */
static void fill_kv_ids(const mb_kv *kv, const mb_planned *item, int32_t pieces, int32_t *slots,
                        int32_t *table, int32_t max_blocks) {
    const int32_t *blocks = mb_kv_blocks(kv, item->job->table);
    for (int32_t i = 0; i < item->n_tokens; i++)
        slots[i] = mb_kv_layout_slot(mb_kv_slot(kv, item->job->table, item->first + i), pieces);
    int32_t n_blocks = (int32_t)mb_kv_blocks_for(item->first + item->n_tokens);
    for (int32_t i = 0; i < max_blocks; i++)
        table[i] = i < n_blocks ? blocks[i] * pieces : 0;
}

static void fill_tokens(const mb_runner *runner, mb_step_slot *slot, const mb_kv *kv, int32_t i_planned,
                        cursor *at) {
    const mb_kv_layout *layout = &runner->kv.layout;
    const mb_planned *item = &slot->plan[i_planned];
    const mb_sequence *sequence = mb_sequence_of(item->job);
    mb_step_inputs *in = &slot->in;
    for (int32_t i = 0; i < item->n_tokens; i++) {
        int64_t position = item->first + i;
        int is_known = position < item->job->n_tokens; /* else the step before draws it */
        in->ids[at->token + i] = is_known ? sequence->ids[position] : 0;
        in->draw_of[at->token + i] = is_known ? -1 : sequence->i_draw;
        in->positions[at->token + i] = (int32_t)position;
    }
    int32_t max_blocks = slot->counts.max_blocks;
    size_t i_table = (size_t)i_planned * (size_t)max_blocks;
    fill_kv_ids(kv, item, layout->pieces, in->slots + at->token, in->block_table + i_table, max_blocks);
    if (mb_kv_layout_first_differs(layout))
        fill_kv_ids(kv, item, layout->first_pieces, in->first_slots + at->token,
                    in->first_block_table + i_table, max_blocks);
    in->kv_len[i_planned] = (int32_t)(item->first + item->n_tokens);
    in->q_start[i_planned] = at->token;
    at->token += item->n_tokens;
    in->q_start[i_planned + 1] = at->token;
}

/* Every sequence has one token and draws, and nothing is reported. */
static int is_decode(const mb_step_counts *n) {
    return n->n_tokens == n->n_sequences && n->n_draws == n->n_sequences && n->n_reported == 0;
}

static void round_up(const mb_runner_limits *limits, mb_step_counts *n) {
    n->n_tokens = n->n_sequences = n->n_logits = n->n_draws =
        mb_decode_bucket_sequences(n->n_sequences, limits->max_sequences);
    n->max_blocks = mb_decode_bucket_blocks(n->max_blocks, limits->max_blocks);
    n->max_kv_len = n->max_blocks * MB_KV_BLOCK;
}

/* Sequences of one token at position 0 that see the first row of the cache, store nothing and draw
 * greedily. They are all alike, so the experts that they are sent to are few. */
static void fill_padding(const mb_runner *runner, mb_step_slot *slot) {
    mb_step_inputs *in = &slot->in;
    size_t first = (size_t)slot->n_planned, n = (size_t)slot->counts.n_sequences - first;
    size_t max_blocks = (size_t)slot->counts.max_blocks;
    size_t table_bytes = n * max_blocks * sizeof *in->block_table, slot_bytes = n * sizeof *in->slots;
    for (int32_t i = slot->n_planned; i < slot->counts.n_sequences; i++) {
        in->ids[i] = in->positions[i] = 0;
        in->draw_of[i] = -1;
        in->kv_len[i] = 1;
        in->q_start[i + 1] = i + 1;
        in->logit_rows[i] = i;
        in->rows[i] = (mb_sample_row){.repetition_penalty = 1, .top_p = 1};
    }
    memset(in->slots + first, -1, slot_bytes);
    memset(in->block_table + first * max_blocks, 0, table_bytes);
    if (mb_kv_layout_first_differs(&runner->kv.layout)) {
        memset(in->first_slots + first, -1, slot_bytes);
        memset(in->first_block_table + first * max_blocks, 0, table_bytes);
    }
}

/* Padding has a span too. */
static void fill_spans(mb_step_slot *slot) {
    mb_step_inputs *in = &slot->in;
    in->span_start[0] = 0;
    for (int32_t i = 0; i < slot->counts.n_sequences; i++)
        in->span_start[i + 1] = in->span_start[i] + (in->kv_len[i] + MB_DECODE_SPAN - 1) / MB_DECODE_SPAN;
}

void mb_runner_fill(mb_runner *runner, mb_step_slot *slot, const mb_kv *kv) {
    slot->counts = count(slot->plan, slot->n_planned);
    slot->n_drawn = slot->counts.n_draws;
    slot->n_starts = 0;
    slot->is_graph = runner->graphs != MB_GRAPHS_NONE && is_decode(&slot->counts);
    if (slot->is_graph)
        round_up(&runner->limits, &slot->counts);
    mb_arena_init(&slot->inputs_arena, slot->inputs, runner->inputs_bytes, 1);
    mb_step_cut_inputs(&slot->inputs_arena, runner, &slot->counts, &slot->in);
    cursor at = {.reported_draw = slot->counts.n_prompt_rows, .silent_draw = slot->counts.n_reported};
    for (int32_t i = 0; i < slot->n_planned; i++) {
        slot->outcomes[i] = (mb_outcome){.id = -1, .i_mask = -1};
        fill_tokens(runner, slot, kv, i, &at);
        fill_logit_rows(runner, slot, i, &at);
    }
    if (slot->is_graph)
        fill_padding(runner, slot);
    fill_spans(slot);
}
