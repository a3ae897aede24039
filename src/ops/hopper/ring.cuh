/* ring.cuh - a position in a ring of buffers that roles of a kernel hand to each other. */
#ifndef MB_OPS_HOPPER_RING_CUH
#define MB_OPS_HOPPER_RING_CUH

#include <stdint.h>

/* The buffer, and the parity of the pass: what an mbarrier of the buffer is waited for with. */
typedef struct mb_ring_cursor {
    uint32_t at, parity;
} mb_ring_cursor;

/* To the next of n buffers. */
template <int n> static __device__ __forceinline__ void mb_ring_advance(mb_ring_cursor *c) {
    if (++c->at == n) {
        c->at = 0;
        c->parity ^= 1;
    }
}

/* The position before this one. */
template <int n> static __device__ __forceinline__ mb_ring_cursor mb_ring_before(const mb_ring_cursor *c) {
    return c->at > 0 ? mb_ring_cursor{c->at - 1, c->parity} : mb_ring_cursor{n - 1, c->parity ^ 1};
}

#endif
