/* median.h - what stands for repeated measurements. */
#ifndef MB_BASE_MEDIAN_H
#define MB_BASE_MEDIAN_H

#include <stddef.h>

/* Sorts n >= 1 values; of an even number the mean of the two in the middle. */
double mb_median(double *values, size_t n);

#endif
