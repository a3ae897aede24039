/* host_memory.h - how much memory this process may still take without swapping. */
#ifndef MB_DEVICE_HOST_MEMORY_H
#define MB_DEVICE_HOST_MEMORY_H

#include <stdint.h>

#include "moebius/status.h"

/* The least total and the least free memory of the machine (MemTotal and MemAvailable of /proc/meminfo)
 * and of all control groups with a limit that the process is in: a container, or a service of systemd.
 * Versions 1 and 2 of control groups are known. Cached file pages of a group count as free, as they do
 * in MemAvailable.
 * root: "" for this machine; tests give a directory with proc/ and sys/ in it. */
mb_status mb_host_memory(const char *root, uint64_t *total_bytes, uint64_t *free_bytes);

#endif
