/* cases.h - what the MoE operators' cases share: fp64, and no code of the operators. */
#ifndef MB_OPS_MOE_CASES_H
#define MB_OPS_MOE_CASES_H

#include "ops/common/check.h"

double mb_case_activate(mb_activation activation, double gate, double up);
int mb_case_is_gated(mb_activation activation);

#endif
