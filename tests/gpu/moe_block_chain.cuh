/*
 * moe_block_chain.cuh - two layers as the engine has them, in one graph: a block that leaves its sum, a
 * dense layer that makes it (x_sum), and both again with other weights. One workspace, two buffers of x
 * that take turns.
 *
 * Each replay has other rows and so other choices, and the host waits for none of them. So a kernel that
 * reads too early finds the choices of the layer before or of the replay before, and has other bits than
 * the graph of the launches apart.
 */
#ifndef MB_TESTS_MOE_BLOCK_CHAIN_CUH
#define MB_TESTS_MOE_BLOCK_CHAIN_CUH

#include "moe_block_problem.cuh"

enum { CHAIN_LAYERS = 2, CHAIN_REPLAYS = 4 };

typedef struct chain {
    int is_apart, n_outputs;
    block blocks[CHAIN_LAYERS];
    mb_gemm_args gemms[CHAIN_LAYERS];
    void *x[2];
    void *out[CHAIN_LAYERS];
    block_outputs outputs[CHAIN_LAYERS];
    void *workspace;
    size_t bytes;
} chain;

static inline void launch_chain(const void *context, cudaStream_t stream) {
    const chain *c = (const chain *)context;
    for (int i = 0; i < CHAIN_LAYERS; i++) {
        const block *b = &c->blocks[i];
        mb_gemm_args gemm = c->gemms[i];
        mb_moe_reduce_args left = {};
        if (c->is_apart)
            launch_apart(b, c->workspace, c->bytes, stream);
        else
            MB(mb_moe_block_sm90(&b->norm, &b->score, &b->forward, c->workspace, c->bytes, &left, stream));
        gemm.x_sum = left.n_tokens > 0 ? &left : NULL;
        MB(mb_gemm_sm90(&gemm, c->workspace, c->bytes, stream));
    }
}

/* blocks: with the weights of each layer. gemms: weights alone. */
static inline void make_chain(chain *c, const block_shape *s, const block *blocks, const mb_gemm_args *gemms,
                              int is_apart) {
    const size_t x_bytes = (size_t)s->n_tokens * s->hidden * 2;
    *c = chain();
    c->is_apart = is_apart;
    c->n_outputs = (int)gemms[0].weight.rows;
    c->x[0] = poisoned(x_bytes);
    c->x[1] = poisoned(x_bytes);
    for (int i = 0; i < CHAIN_LAYERS; i++) {
        block *b = &c->blocks[i];
        mb_gemm_args *g = &c->gemms[i];
        c->outputs[i] = new_outputs(s);
        c->out[i] = poisoned((size_t)s->n_tokens * c->n_outputs * 2);
        *b = blocks[i];
        aim_block(b, &c->outputs[i]);
        b->norm.x = b->forward.residual = c->x[i % 2];
        b->forward.out = c->x[(i + 1) % 2];
        *g = gemms[i];
        g->x = b->forward.out;
        g->out = c->out[i];
        const size_t of_block = block_workspace(b), of_gemm = bytes_of(mb_gemm_sm90_workspace, g);
        c->bytes = of_block > c->bytes ? of_block : c->bytes;
        c->bytes = of_gemm > c->bytes ? of_gemm : c->bytes;
    }
    c->workspace = poisoned(c->bytes);
}

static inline void free_chain(const chain *c) {
    const void *const all[] = {c->x[0], c->x[1], c->workspace, c->out[0], c->out[1]};
    release(all, 5);
    for (int i = 0; i < CHAIN_LAYERS; i++)
        release((const void *const *)c->outputs[i].data, N_OUTPUTS);
}

/* What a replay is compared by. */
enum { CHAIN_SUM_0, CHAIN_SUM_1, CHAIN_OUT_0, CHAIN_OUT_1, CHAIN_IDS_0, CHAIN_IDS_1, CHAIN_RESULTS };

/* Replays with the rows of `inputs`, one after the other. results[replay][what]. */
static inline void run_chain(const chain *c, const block_shape *s, const void *const *inputs,
                             void *results[CHAIN_REPLAYS][CHAIN_RESULTS]) {
    const size_t x_bytes = (size_t)s->n_tokens * s->hidden * 2,
                 out_bytes = (size_t)s->n_tokens * c->n_outputs * 2;
    const struct {
        const void *data;
        size_t n_bytes;
    } found[CHAIN_RESULTS] = {{c->x[1], x_bytes},
                              {c->x[0], x_bytes},
                              {c->out[0], out_bytes},
                              {c->out[1], out_bytes},
                              {c->outputs[0].data[IDS], c->outputs[0].n_bytes[IDS]},
                              {c->outputs[1].data[IDS], c->outputs[1].n_bytes[IDS]}};
    for (int r = 0; r < CHAIN_REPLAYS; r++)
        for (int i = 0; i < CHAIN_RESULTS; i++)
            results[r][i] = poisoned(found[i].n_bytes);
    const captured graph = capture(launch_chain, c);
    CUDA(cudaDeviceSynchronize());
    for (int r = 0; r < CHAIN_REPLAYS; r++) {
        CUDA(cudaMemcpyAsync(c->x[0], inputs[r], x_bytes, cudaMemcpyDeviceToDevice, graph.stream));
        CUDA(cudaGraphLaunch(graph.replay, graph.stream));
        for (int i = 0; i < CHAIN_RESULTS; i++)
            CUDA(cudaMemcpyAsync(results[r][i], found[i].data, found[i].n_bytes, cudaMemcpyDeviceToDevice,
                                 graph.stream));
    }
    CUDA(cudaStreamSynchronize(graph.stream));
    free_captured(&graph);
}

static inline void check_chain(const block_shape *s, int n_outputs, const mb_weight *w13,
                               const mb_weight *w2) {
    block blocks[CHAIN_LAYERS];
    mb_gemm_args gemms[CHAIN_LAYERS] = {};
    for (int i = 0; i < CHAIN_LAYERS; i++) {
        blocks[i] = block_of(s, w13[i], w2[i], (uint64_t)(700 + 50 * i));
        mb_gemm_args *g = &gemms[i];
        g->weight = experts_weight(1, n_outputs, s->hidden, s->is_fp8, (uint64_t)(810 + i));
        g->norm_weight = norm_weight(s->hidden, MB_BF16, (uint64_t)(820 + i));
        g->eps = 1e-6f;
        g->n_tokens = s->n_tokens;
        g->dtype = g->out_dtype = g->bias_dtype = MB_BF16;
    }
    const void *inputs[CHAIN_REPLAYS];
    for (int r = 0; r < CHAIN_REPLAYS; r++)
        inputs[r] = random_values((int64_t)s->n_tokens * s->hidden, MB_BF16, (uint64_t)(900 + r), 2);
    void *results[2][CHAIN_REPLAYS][CHAIN_RESULTS];
    size_t n_bytes[CHAIN_RESULTS];
    for (int way = 0; way < 2; way++) {
        chain c;
        make_chain(&c, s, blocks, gemms, way == 0);
        run_chain(&c, s, inputs, results[way]);
        for (int i = 0; i < CHAIN_RESULTS; i++)
            n_bytes[i] = i < CHAIN_OUT_0   ? (size_t)s->n_tokens * s->hidden * 2
                         : i < CHAIN_IDS_0 ? (size_t)s->n_tokens * n_outputs * 2
                                           : c.outputs[0].n_bytes[IDS];
        free_chain(&c);
    }
    static const char *const names[CHAIN_RESULTS] = {"sum of layer 0", "sum of layer 1", "out of layer 0",
                                                     "out of layer 1", "ids of layer 0", "ids of layer 1"};
    for (int r = 0; r < CHAIN_REPLAYS; r++) {
        snprintf(subject, sizeof(subject), "chain, replay %d, %s, T %d, H %d, E %d, local %d, K %d", r,
                 s->is_fp8 ? "fp8" : "bf16", s->n_tokens, s->hidden, s->n_experts, n_local_of(s), s->top_k);
        for (int i = 0; i < CHAIN_RESULTS; i++)
            compare(names[i], results[0][r][i], results[1][r][i], n_bytes[i]);
    }
    for (int way = 0; way < 2; way++)
        for (int r = 0; r < CHAIN_REPLAYS; r++)
            release((const void *const *)results[way][r], CHAIN_RESULTS);
    release(inputs, CHAIN_REPLAYS);
    for (int i = 0; i < CHAIN_LAYERS; i++) {
        free_block(&blocks[i]);
        free_weight(&gemms[i].weight);
        free_weight(&gemms[i].norm_weight);
    }
}

#endif
