/* random.h - reproducible random numbers for inputs of benchmarks and checks: the same on every machine. */
#ifndef MB_BASE_RANDOM_H
#define MB_BASE_RANDOM_H

#include <stdint.h>

/* The next number of a stream that begins at any *state: SplitMix64 (Steele, Lea and Flood 2014). */
static inline uint64_t mb_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

#endif
