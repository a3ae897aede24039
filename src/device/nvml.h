/*
 * nvml.h - clocks and power of a GPU as its driver tells them, by the driver's library (libnvidia-ml), which is
 * found when the program runs and need not be there.
 */
#ifndef MB_DEVICE_NVML_H
#define MB_DEVICE_NVML_H

#include "device/device.h"

typedef struct mb_nvml mb_nvml;

/* pci_bus_id: "0000:1b:00.0". NULL when there is no such library or GPU; a later mb_nvml_read then gives zeros. */
mb_nvml *mb_nvml_open(const char *pci_bus_id);
void mb_nvml_close(mb_nvml *nvml); /* NULL allowed */

void mb_nvml_read(const mb_nvml *nvml, mb_device_state *state); /* NULL allowed */

#endif
