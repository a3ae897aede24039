/* host_memory.h - how much memory this process may still take without swapping. */
#ifndef MB_DEVICE_HOST_MEMORY_H
#define MB_DEVICE_HOST_MEMORY_H

#include <stdint.h>

#include "moebius/status.h"

/* The machine's memory (MemAvailable of /proc/meminfo), or less where a control group that the process is in has a
 * limit (version 2, then 1): a container, or a service of systemd. What a group holds of files that were read is
 * free, as it is for the machine. root: "" for this machine; tests give a directory with proc/ and sys/ in it. */
mb_status mb_host_memory(const char *root, uint64_t *total_bytes, uint64_t *free_bytes);

#endif
