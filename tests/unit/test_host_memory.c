/* Free memory as /proc and the control groups tell it, on machines made of files. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include <cmocka.h>

#include "base/status.h"
#include "device/host_memory.h"
#include "support/tiny_checkpoint.h"

static char root[TINY_PATH];

/* Writes a file of the machine, with the directories on its way. */
static void put(const char *path, const char *text) {
    char full[2 * TINY_PATH];
    snprintf(full, sizeof full, "%s/%s", root, path);
    for (char *slash = strchr(full + strlen(root) + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
        *slash = '\0';
        mkdir(full, 0700);
        *slash = '/';
    }
    tiny_text_write(root, path, text);
}

static int make_machine(void **state) {
    (void)state;
    tiny_directory_make(root);
    put("proc/meminfo",
        "MemTotal:       1000 kB\nMemFree:         100 kB\nMemAvailable:    700 kB\nBuffers: 1 kB\n");
    return 0;
}

static int remove_machine(void **state) {
    (void)state;
    tiny_directory_remove(root);
    return 0;
}

static void expect(uint64_t total, uint64_t free_bytes) {
    uint64_t is_total, is_free;
    if (mb_host_memory(root, &is_total, &is_free) != MB_OK)
        fail_msg("%s", mb_last_error());
    assert_int_equal(is_total, total);
    assert_int_equal(is_free, free_bytes);
}

static void test_machine_alone(void **state) {
    (void)state;
    expect(1024000, 716800);
    put("proc/self/cgroup", "0::/\n");
    put("sys/fs/cgroup/memory.max", "max\n");
    expect(1024000, 716800);
    put("sys/fs/cgroup/memory.max", "9223372036854771712\n"); /* more than there is */
    expect(1024000, 716800);
}

/* In a container the root is the container's own group. Files that were read count as used
 * there, but are free. */
static void test_container(void **state) {
    (void)state;
    put("proc/self/cgroup", "0::/\n");
    put("sys/fs/cgroup/memory.max", "500000\n");
    put("sys/fs/cgroup/memory.current", "450000\n");
    put("sys/fs/cgroup/memory.stat",
        "anon 100000\nfile 340000\ninactive_anon 7\ninactive_file 200000\nactive_file 100000\n");
    expect(500000, 350000);
    put("sys/fs/cgroup/memory.stat", "inactive_file 900000\n"); /* more than is used: read a moment later */
    expect(500000, 500000);
    put("sys/fs/cgroup/memory.stat", "");
    put("sys/fs/cgroup/memory.current", "600000\n"); /* above a limit that was lowered */
    expect(500000, 0);
}

/* A service of systemd: its own group has no limit, the one above has. */
static void test_nested_groups(void **state) {
    (void)state;
    put("proc/self/cgroup", "1:name=systemd:/x\n0::/user.slice/user-1.slice/run-5.scope\n");
    put("sys/fs/cgroup/user.slice/user-1.slice/run-5.scope/memory.max", "max\n");
    put("sys/fs/cgroup/user.slice/user-1.slice/memory.max", "400000\n");
    put("sys/fs/cgroup/user.slice/user-1.slice/memory.current", "100000\n");
    expect(400000, 300000);
    put("sys/fs/cgroup/user.slice/memory.max", "350000\n");
    put("sys/fs/cgroup/user.slice/memory.current", "300000\n");
    expect(350000, 50000);
    /* The group above may take more, but its other groups have filled it. */
    put("sys/fs/cgroup/user.slice/memory.max", "800000\n");
    put("sys/fs/cgroup/user.slice/memory.current", "790000\n");
    expect(400000, 10000);
}

static void test_version_1(void **state) {
    (void)state;
    put("proc/self/cgroup", "5:cpu,cpuacct:/a\n4:memory:/docker/abc\n");
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "600000\n");
    put("sys/fs/cgroup/memory/memory.usage_in_bytes", "200000\n");
    put("sys/fs/cgroup/memory/memory.stat", "cache 5\ntotal_inactive_file 30000\ntotal_active_file 20000\n");
    expect(600000, 450000); /* docker/abc is not to be seen from inside */
}

static void test_nothing_known(void **state) {
    (void)state;
    uint64_t total, free_bytes;
    put("proc/meminfo", "");
    assert_int_equal(mb_host_memory(root, &total, &free_bytes), MB_ERR_DEVICE);
}

static void test_this_machine(void **state) {
    (void)state;
    uint64_t total, free_bytes;
    assert_int_equal(mb_host_memory("", &total, &free_bytes), MB_OK);
    assert_true(free_bytes > 1000000 && free_bytes <= total);
}

#define FRESH(test) cmocka_unit_test_setup_teardown(test, make_machine, remove_machine)

int main(void) {
    const struct CMUnitTest tests[] = {
        FRESH(test_machine_alone), FRESH(test_container),     FRESH(test_nested_groups),
        FRESH(test_version_1),     FRESH(test_nothing_known), FRESH(test_this_machine),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
