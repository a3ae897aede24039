#include "engine/scheduler.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

enum {
    WHOLE = 1024, /* a share of all */
    FIRST_SHARE = WHOLE / 4,
    LEAST_SHARE = WHOLE / 16,
};

void mb_scheduler_init(mb_scheduler *scheduler, mb_arena *arena, const mb_schedule_limits *limits,
                       mb_kv *kv) {
    *scheduler = (mb_scheduler){.limits = *limits, .kv = kv, .share = FIRST_SHARE};
    mb_pace_init(&scheduler->pace, limits->max_decode_slowdown, limits->double_at,
                 limits->least_prompt_tokens);
    /* Preempted jobs wait too, even when the queue is full. */
    mb_waiting_init(&scheduler->waiting, arena, limits->max_queued + limits->max_sequences);
    scheduler->found = mb_arena_push(arena, (size_t)kv->max_blocks, sizeof *scheduler->found);
}

/* ---- Coming and going ------------------------------------------------------------------------------ */

mb_status mb_scheduler_submit(mb_scheduler *scheduler, mb_job *job) {
    const mb_kv *kv = scheduler->kv;
    if (!mb_kv_can_ever_fit(kv, job->max_tokens))
        return mb_fail(
            MB_ERR_CAPACITY,
            "the prompt plus max_new_tokens is %" PRId64 " tokens, more than the KV cache can ever "
            "hold for one sequence (%" PRId64 "); ask for fewer or open the session with more "
            "kv_tokens",
            job->max_tokens,
            (int64_t)MB_KV_BLOCK_TOKENS * (kv->n_blocks < kv->max_blocks ? kv->n_blocks : kv->max_blocks));
    if (scheduler->waiting.n >= scheduler->limits.max_queued)
        return mb_fail(MB_ERR_CAPACITY, "the queue is full: %d sequences are waiting; try again later",
                       (int)scheduler->waiting.n);
    job->table = -1;
    job->arrival = ++scheduler->last_arrival;
    mb_waiting_add(&scheduler->waiting, job);
    return MB_OK;
}

/* Takes a running job out of its list. */
static void stop(mb_scheduler *scheduler, mb_job *job) {
    mb_running_remove(&scheduler->running, job);
    if (job->n_in_flight > 0)
        scheduler->n_leaving++;
    else
        mb_kv_release(scheduler->kv, &job->table);
}

void mb_scheduler_remove(mb_scheduler *scheduler, mb_job *job) {
    if (job->list == MB_JOB_WAITING)
        mb_waiting_remove(&scheduler->waiting, job);
    else if (job->list == MB_JOB_RUNNING)
        stop(scheduler, job);
}

static void preempt(mb_scheduler *scheduler, mb_job *job) {
    stop(scheduler, job);
    job->n_preemptions++;
    scheduler->n_preemptions++;
    mb_waiting_add(&scheduler->waiting, job);
}

/* What a step has computed enters the prefix cache: full blocks of tokens that are known. (The last token may
 * be one that ended the answer, which nobody keeps.) */
static void publish(mb_scheduler *scheduler, mb_job *job, int64_t n_computed) {
    mb_prefix_cache *cache = &scheduler->kv->cache;
    int64_t n = n_computed < job->n_tokens ? n_computed : job->n_tokens;
    while ((int64_t)(job->prefix.n_blocks + 1) * MB_KV_BLOCK_TOKENS <= n) {
        /* Another job's equal block may have been the entry, and be evicted by now: then
         * ours become entries. */
        if (!mb_prefix_cache_has(cache, &job->prefix))
            job->prefix = mb_prefix_begin(job->cache_salt);
        int32_t i = job->prefix.n_blocks;
        mb_prefix_cache_add(cache, &job->prefix, job->ids + (int64_t)i * MB_KV_BLOCK_TOKENS,
                            mb_kv_blocks(scheduler->kv, job->table)[i]);
    }
}

void mb_scheduler_collect(mb_scheduler *scheduler, const mb_planned *item, int is_good) {
    mb_job *job = item->job;
    job->n_in_flight--;
    job->n_drawing -= item->draws;
    if (!is_good) {
        job->has_failed = 1;
        mb_kv_forget(scheduler->kv, job->table);
    }
    if (scheduler->limits.prefix_caching && job->ids && !job->has_failed)
        publish(scheduler, job, item->first + item->n_tokens);
    if (job->n_in_flight == 0 && job->list != MB_JOB_RUNNING) {
        scheduler->n_leaving--;
        mb_kv_release(scheduler->kv, &job->table);
    }
}

static int64_t least(int64_t a, int64_t b) {
    return a < b ? a : b;
}

/* ---- Admission ------------------------------------------------------------------------------------- */

/* Tokens that the job is likely to have: with at least the next one. */
static int64_t likely_tokens(const mb_scheduler *scheduler, const mb_job *job) {
    int64_t left = job->max_tokens - job->n_tokens, likely = left / WHOLE * scheduler->share;
    likely += left % WHOLE * scheduler->share / WHOLE;
    return job->n_tokens + (likely > 0 ? likely : left > 0);
}

/* Tokens that the job may take from the prefix cache. The last one is always computed, because its logits
 * give the next, and so is every token whose logits are wanted. */
static int64_t most_shared(const mb_scheduler *scheduler, const mb_job *job) {
    if (!scheduler->limits.prefix_caching || !job->ids)
        return 0;
    return job->all_logits ? least(job->n_logits, job->n_tokens - 1) : job->n_tokens - 1;
}

/* The tokens of the job's first block that is not in the prefix cache; NULL: it takes no further block. */
static const int32_t *next_shared_tokens(const mb_scheduler *scheduler, const mb_job *job) {
    int64_t first = (int64_t)job->prefix.n_blocks * MB_KV_BLOCK_TOKENS;
    return first + MB_KV_BLOCK_TOKENS <= most_shared(scheduler, job) ? job->ids + first : NULL;
}

/* The next block of the job, which goes on behind it; -1: it is not in the cache. */
static int32_t find_next(const mb_scheduler *scheduler, mb_job *job) {
    const int32_t *tokens = next_shared_tokens(scheduler, job);
    return tokens ? mb_prefix_cache_find(&scheduler->kv->cache, &job->prefix, tokens) : -1;
}

/* Cached blocks that the job can start with. Sets job->prefix. */
static int32_t find_cached(mb_scheduler *scheduler, mb_job *job) {
    int32_t n = 0;
    job->prefix = mb_prefix_begin(job->cache_salt);
    while ((scheduler->found[n] = find_next(scheduler, job)) >= 0)
        n++;
    return n;
}

/* Once for each request: not after a preemption. */
static void count_hits(mb_scheduler *scheduler, mb_job *job, int64_t n_queries, int64_t n_hits) {
    if (job->n_preemptions > 0 || most_shared(scheduler, job) == 0)
        return;
    job->n_hit_tokens += n_hits;
    scheduler->n_prefix_queries += (uint64_t)n_queries;
    scheduler->n_prefix_hits += (uint64_t)n_hits;
}

static int admit(mb_scheduler *scheduler, mb_job *job) {
    if (scheduler->running.n >= scheduler->limits.max_sequences || job->n_in_flight > 0)
        return 0;
    int32_t n_found = find_cached(scheduler, job);
    job->table = mb_kv_reserve(scheduler->kv, likely_tokens(scheduler, job), scheduler->found, n_found);
    if (job->table < 0)
        return 0;
    job->n_cached = (int64_t)n_found * MB_KV_BLOCK_TOKENS;
    count_hits(scheduler, job, job->n_tokens, job->n_cached);
    mb_waiting_remove(&scheduler->waiting, job);
    mb_running_add(&scheduler->running, job);
    if (scheduler->share > LEAST_SHARE)
        scheduler->share -= scheduler->share / 64;
    return 1;
}

/* Blocks that running jobs of lower priority hold or were promised, and all that nobody has. */
static int64_t blocks_for(const mb_scheduler *scheduler, const mb_job *job) {
    const mb_kv *kv = scheduler->kv;
    int64_t n = mb_kv_available(kv) - kv->n_promised;
    for (const mb_job *other = scheduler->running.last; other && other->priority > job->priority;
         other = other->previous)
        n += kv->tables[other->table].n_reserved;
    return n;
}

/* Jobs that precede some that run. They are admitted whatever the others do with the step, and those of lower
 * priority are preempted for them if that is enough. */
static void admit_urgent(mb_scheduler *scheduler) {
    for (;;) {
        mb_job *job = mb_waiting_first(&scheduler->waiting), *last = scheduler->running.last;
        if (!job || !last || job->n_in_flight > 0 || !mb_job_precedes(job, last))
            return;
        if (admit(scheduler, job))
            continue;
        if (last->priority <= job->priority || scheduler->n_leaving > 0 ||
            mb_kv_blocks_for(likely_tokens(scheduler, job)) > blocks_for(scheduler, job))
            return;
        preempt(scheduler, last);
    }
}

/* ---- Prompts that begin alike and run at the same time --------------------------------------------- */

/* Nothing of the job but shared blocks is computed or in flight: its next token starts a block that may be
 * shared too. */
static int can_share_more(const mb_scheduler *scheduler, const mb_job *job) {
    return job->n_in_flight == 0 && scheduler->kv->tables[job->table].n_blocks == job->prefix.n_blocks &&
           job->n_cached == (int64_t)job->prefix.n_blocks * MB_KV_BLOCK_TOKENS &&
           mb_prefix_cache_has(&scheduler->kv->cache, &job->prefix) &&
           next_shared_tokens(scheduler, job) != NULL;
}

/* Takes what others have computed since the job was admitted. */
static void catch_up(mb_scheduler *scheduler, mb_job *job) {
    for (int32_t block; (block = find_next(scheduler, job)) >= 0;) {
        mb_kv_append_shared(scheduler->kv, job->table, block);
        job->n_cached += MB_KV_BLOCK_TOKENS;
        count_hits(scheduler, job, 0, MB_KV_BLOCK_TOKENS);
    }
}

/* Whether the next block that the other publishes is the job's next one: the other has all its tokens. */
static int computes_next_of(const mb_scheduler *scheduler, const mb_job *other, const mb_job *job) {
    int32_t n = job->prefix.n_blocks;
    int64_t first = (int64_t)n * MB_KV_BLOCK_TOKENS;
    const int32_t *blocks = mb_kv_blocks(scheduler->kv, other->table);
    return other->ids && other->cache_salt == job->cache_salt && !other->has_failed &&
           other->prefix.n_blocks == n && other->n_tokens >= first + MB_KV_BLOCK_TOKENS &&
           (n == 0 || blocks[n - 1] == job->prefix.block) &&
           memcmp(other->ids + first, job->ids + first, MB_KV_BLOCK_TOKENS * sizeof *job->ids) == 0;
}

/* The job leaves a block to one that precedes it and computes the same: so many answers to one prompt, or
 * many prompts with one beginning, take the time of one. */
static int leaves_next_block(mb_scheduler *scheduler, mb_job *job) {
    if (!can_share_more(scheduler, job))
        return 0;
    catch_up(scheduler, job);
    if (!next_shared_tokens(scheduler, job))
        return 0;
    for (const mb_job *other = job->previous; other; other = other->previous)
        if (computes_next_of(scheduler, other, job))
            return 1;
    return 0;
}

/* ---- How many tokens of which job ------------------------------------------------------------------ */

/* What a step has room for. */
typedef struct budget {
    int32_t tokens, prompt_logits;
    double work;    /* of prompts; 0: they pause */
    double spent;   /* of the work */
    int is_paced;   /* the work is what those who decode can wait for */
    int has_prompt; /* one got tokens */
} budget;

/* Tokens that are known, or will be when the steps in flight have run, and that are in no step yet. */
static int64_t tokens_missing(const mb_job *job) {
    int64_t n_known = job->n_tokens + job->n_drawing;
    if (job->n_drawing > 0 && (job->awaits_token || n_known == job->max_tokens))
        return 0;
    return n_known - job->n_cached;
}

static int is_decoding(const mb_job *job) {
    return tokens_missing(job) == 1;
}

/* Of the job's next tokens those whose logits were planned before, when it was not preempted yet. */
static int64_t n_without_rows(const mb_job *job) {
    return job->n_logits > job->n_cached ? job->n_logits - job->n_cached : 0;
}

/* Rows of logits that the job's next n tokens need. */
static int64_t rows_wanted(const mb_job *job, int64_t n) {
    return n > n_without_rows(job) ? n - n_without_rows(job) : 0;
}

/* The same without the one row that every job may have. */
static int32_t extra_rows(const mb_job *job, int64_t n) {
    int64_t n_rows = job->all_logits ? rows_wanted(job, n) : 0;
    return n_rows > 1 ? (int32_t)n_rows - 1 : 0;
}

/* Gives a prompt tokens of this step, or more of them: at most so many, and so much work. */
static void grant(const mb_scheduler *scheduler, mb_job *job, budget *left, int64_t tokens, double work) {
    double token_work = mb_pace_token_work(&scheduler->pace, job->n_cached + job->n_granted);
    int32_t n_extra = extra_rows(job, job->n_granted);
    int64_t most = least(tokens_missing(job), scheduler->limits.prefill_chunk);
    if (job->all_logits)
        most = least(most, n_without_rows(job) + 1 + n_extra + left->prompt_logits);
    int64_t n = least(most - job->n_granted, tokens);
    if (n <= 0)
        return;
    if ((double)n * token_work > work)
        n = (int64_t)(work / token_work);
    if (n == 0 && left->has_prompt)
        return;
    if (n == 0)
        n = 1; /* the first one always advances */
    job->n_granted += (int32_t)n;
    left->tokens -= (int32_t)n;
    left->work -= (double)n * token_work;
    left->spent += (double)n * token_work;
    left->prompt_logits -= extra_rows(job, job->n_granted) - n_extra;
    left->has_prompt = 1;
}

/* Whether prompts are more than half as many as the sequences that decode: those that run, and those that wait and
 * have a place and, as it seems, blocks. One prompt beside one sequence is not. Of the running jobs n_prompts are
 * prompts. */
static int prompts_are_many(const mb_scheduler *scheduler, int32_t n_prompts) {
    int32_t n_decoding = scheduler->running.n - n_prompts;
    int32_t n_places = scheduler->limits.max_sequences - scheduler->running.n;
    int64_t n_admissible = scheduler->is_full ? 0 : least(n_places, scheduler->waiting.n);
    return n_prompts + n_admissible > (n_decoding + 1) / 2;
}

/* The step's room for prompts. Of the running jobs n_prompts are prompts, and the step has n_decoding of the
 * others. */
static budget room_for_prompts(mb_scheduler *scheduler, int32_t n_decoding, int32_t n_prompts) {
    const mb_schedule_limits *limits = &scheduler->limits;
    budget room = {limits->max_step_tokens - n_decoding, limits->max_prompt_logits, INFINITY, 0, 0, 0};
    if (n_decoding == 0 || (n_prompts == 0 && scheduler->waiting.n == 0))
        return room;
    room.is_paced = limits->least_prompt_tokens <= 1 || !prompts_are_many(scheduler, n_prompts);
    if (room.is_paced)
        room.work = mb_pace_prefill_work(&scheduler->pace, n_decoding);
    else if (limits->max_decode_slowdown > 0) /* no longer than a step full of short prompts */
        room.work = limits->max_step_tokens;
    return room;
}

/* Half of what is left, so that those after it have some too. */
static void grant_half(mb_scheduler *scheduler, mb_job *job, budget *left) {
    job->is_held = leaves_next_block(scheduler, job);
    if (left->tokens > 0 && left->work > 0 && !job->is_held)
        grant(scheduler, job, left, (left->tokens + 1) / 2, left->work / 2);
}

/* Sets n_granted of all running jobs, and admits jobs as long as tokens are left for them. Returns how many
 * decode. */
static int32_t share_step(mb_scheduler *scheduler) {
    int32_t n_decoding = 0, n_prompts = 0;
    for (mb_job *job = scheduler->running.first; job; job = job->next) {
        job->n_granted = is_decoding(job);
        n_decoding += is_decoding(job);
        n_prompts += tokens_missing(job) > 1;
    }
    budget left = room_for_prompts(scheduler, n_decoding, n_prompts);
    for (mb_job *job = scheduler->running.first; job; job = job->next)
        if (!is_decoding(job))
            grant_half(scheduler, job, &left);
    while (left.tokens > 0 && left.work > 0 && scheduler->waiting.n > 0) {
        mb_job *job = mb_waiting_first(&scheduler->waiting);
        scheduler->is_full = !admit(scheduler, job);
        if (scheduler->is_full)
            break;
        job->n_granted = 0;
        grant_half(scheduler, job, &left);
    }
    for (mb_job *job = scheduler->running.first; job && left.tokens > 0 && left.work > 0; job = job->next)
        if (job->n_granted < tokens_missing(job) && !job->is_held)
            grant(scheduler, job, &left, left.tokens, left.work);
    if (left.is_paced && left.has_prompt)
        mb_pace_spend(&scheduler->pace, left.spent);
    return n_decoding;
}

/* ---- Plans ----------------------------------------------------------------------------------------- */

/* Gives the job's table the blocks for what it was granted. 0: it must wait. */
static int take_blocks(mb_scheduler *scheduler, mb_job *job) {
    while (mb_kv_extend(scheduler->kv, job->table, job->n_cached + job->n_granted) != 0) {
        mb_job *last = scheduler->running.last;
        /* Blocks come back soon, or they belong to jobs that precede this one. */
        if (scheduler->n_leaving > 0 || last == job)
            return 0;
        preempt(scheduler, last);
        scheduler->share = (int32_t)least(scheduler->share + scheduler->share / 8, WHOLE);
    }
    return 1;
}

static mb_planned plan_job(mb_job *job) {
    int32_t n = job->n_granted;
    int draws = n == tokens_missing(job) && job->n_tokens + job->n_drawing < job->max_tokens;
    mb_planned planned = {.job = job,
                          .first = job->n_cached,
                          .n_tokens = n,
                          .n_logits = job->all_logits ? (int32_t)rows_wanted(job, n) : draws,
                          .draws = draws};
    job->n_cached += n;
    if (job->n_logits < job->n_cached)
        job->n_logits = job->n_cached;
    job->n_in_flight++;
    job->n_drawing += draws;
    return planned;
}

/*
 * Jobs that wait for their tokens become two groups when some begin while a step with the others is in flight:
 * then each step would compute only one of the groups, for good. A step of such jobs alone waits for the others
 * instead, and from then on they are one group.
 */
static int is_half_a_group(const mb_scheduler *scheduler) {
    int others_come = 0;
    for (const mb_job *job = scheduler->running.first; job; job = job->next) {
        if (job->n_granted > 0 && !(job->awaits_token && is_decoding(job)))
            return 0;
        others_come |=
            job->awaits_token && job->n_drawing > 0 && job->n_tokens + job->n_drawing < job->max_tokens;
    }
    return others_come;
}

int32_t mb_scheduler_plan(mb_scheduler *scheduler, mb_planned *plan) {
    admit_urgent(scheduler);
    /* In the order of jobs, because jobs are preempted from its end: those that decode to the front of the
     * plan, the others behind the place of the last of them. */
    int32_t n_places = share_step(scheduler), n_decoding = 0, n_others = 0;
    if (is_half_a_group(scheduler))
        return 0;
    for (mb_job *job = scheduler->running.first; job; job = job->next) {
        int decodes = is_decoding(job) && n_decoding < n_places;
        if (job->n_granted == 0 || !take_blocks(scheduler, job))
            continue;
        if (decodes)
            plan[n_decoding++] = plan_job(job);
        else
            plan[n_places + n_others++] = plan_job(job);
    }
    memmove(plan + n_decoding, plan + n_places, (size_t)n_others * sizeof *plan);
    return n_decoding + n_others;
}

void mb_scheduler_learn(mb_scheduler *scheduler, const mb_planned *plan, int32_t n, double seconds) {
    mb_step_load load = {0};
    for (int32_t i = 0; i < n; i++)
        if (plan[i].n_tokens == 1 && plan[i].draws) {
            load.n_decodes++;
        } else {
            load.prefill_tokens += plan[i].n_tokens;
            load.prefill_work += plan[i].n_tokens * mb_pace_token_work(&scheduler->pace, plan[i].first);
        }
    mb_pace_learn(&scheduler->pace, &load, seconds);
}
