/*
 * philox.h - Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random
 * numbers: as easy as 1, 2, 3" (SC 2011): 128 random bits from a 128-bit counter and a 64-bit key, without
 * state, so that a token's draw depends on nothing but its seed and position.
 */
#ifndef MB_OPS_SAMPLE_PHILOX_H
#define MB_OPS_SAMPLE_PHILOX_H

#include "ops/common/host_device.h"

#include <stdint.h>

typedef struct mb_philox_block {
    uint32_t words[4];
} mb_philox_block;

static inline MB_HOST_DEVICE mb_philox_block mb_philox(mb_philox_block counter, uint32_t key0,
                                                       uint32_t key1) {
    for (int round = 0; round < 10; round++) {
        uint64_t product0 = (uint64_t)0xD2511F53u * counter.words[0];
        uint64_t product1 = (uint64_t)0xCD9E8D57u * counter.words[2];
        mb_philox_block next = {{(uint32_t)(product1 >> 32) ^ counter.words[1] ^ key0, (uint32_t)product1,
                                 (uint32_t)(product0 >> 32) ^ counter.words[3] ^ key1, (uint32_t)product0}};
        counter = next;
        key0 += 0x9E3779B9u; /* golden ratio */
        key1 += 0xBB67AE85u; /* sqrt(3) - 1 */
    }
    return counter;
}

/* Uniform in [0, 1), 53 bits: the draw for the token at `position` of a sequence with `seed`. */
static inline MB_HOST_DEVICE double mb_philox_uniform(uint64_t seed, uint64_t position) {
    mb_philox_block counter = {{(uint32_t)position, (uint32_t)(position >> 32), 0, 0}};
    mb_philox_block block = mb_philox(counter, (uint32_t)seed, (uint32_t)(seed >> 32));
    return ((block.words[0] >> 5) * 0x1p26 + (block.words[1] >> 6)) * 0x1p-53;
}

#endif
