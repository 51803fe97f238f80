/*
 * What the host does in a guest before there are programs: each is a command whose exit status is an errno, or 0.
 *
 *   insmod [PARAMETER...] <MODULE     rmmod NAME     write PATH <CONTENT     folder PATH
 *   mount TYPE SOURCE TARGET OPTIONS [ro|bind|move]...     link TARGET PATH     reboot
 */
#include "agent.h"

#include <asm/errno.h>
#include <linux/fcntl.h>
#include <linux/mman.h>
#include <linux/mount.h>
#include <linux/reboot.h>

enum { MOST_MODULE = 256 << 20, MOST_PARAMETERS = 4096 };

/* All of standard input; its length, or a negated errno. */
static long read_all(char **data)
{
    long space = call6(__NR_mmap, 0, MOST_MODULE, 3 /* read, write */, 0x4022 /* private, anonymous, no reserve */,
                       -1, 0);
    long filled = 0, length = 0;
    if (space < 0 && space > -4096)
        return space;
    *data = (char *)space;
    do {
        filled += length;
        length = sys_read(0, *data + filled, MOST_MODULE - filled);
    } while (length > 0);
    if (filled == MOST_MODULE)
        return -EFBIG;
    return length < 0 ? length : filled;
}

static long insert(int count, char **words)
{
    char *module, parameters[MOST_PARAMETERS];
    size_t filled = 0;
    for (int at = 0; at < count; at++) {
        size_t length = length_of(words[at]);
        if (filled + length + 2 > sizeof parameters)
            return -E2BIG;
        copy(parameters + filled, words[at], length);
        filled += length;
        parameters[filled++] = ' ';
    }
    parameters[filled] = 0;
    long length = read_all(&module);
    return length < 0 ? length : call3(__NR_init_module, module, length, parameters);
}

static long write_file(const char *path)
{
    static char data[1 << 16];
    long result = make_parents(path);
    long fd = result < 0 ? result : sys_open(path, O_WRONLY | O_CREAT | O_TRUNC, 0755);
    if (fd < 0)
        return fd;
    while ((result = sys_read(0, data, sizeof data)) > 0) {
        for (long at = 0; at < result;) {
            long wrote = sys_write(fd, data + at, result - at);
            if (wrote < 0)
                return wrote;
            at += wrote;
        }
    }
    return result;
}

static long make_folder(const char *path)
{
    long result = make_parents(path);
    result = result < 0 ? result : sys_mkdir(path, 0755);
    return result == -EEXIST ? 0 : result;
}

static long mount_it(int count, char **words)
{
    unsigned long flags = 0;
    for (int at = 4; at < count; at++)
        flags |= equal(words[at], "ro")     ? MS_RDONLY
                 : equal(words[at], "bind") ? MS_BIND
                 : equal(words[at], "move") ? MS_MOVE
                                            : 0;
    long result = make_folder(words[2]);
    return result < 0 ? result : sys_mount(words[1], words[2], words[0], flags, words[3]);
}

/* Drivers hear of it: the kernel calls their shutdown hooks. */
static long start_again(void)
{
    call0(__NR_sync);
    return call4(__NR_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_RESTART, NULL);
}

int tool(int count, char **words)
{
    long result = -EINVAL;
    if (count >= 1 && equal(words[0], "insmod"))
        result = insert(count - 1, words + 1);
    else if (count == 2 && equal(words[0], "rmmod"))
        result = call2(__NR_delete_module, words[1], O_NONBLOCK);
    else if (count == 2 && equal(words[0], "write"))
        result = write_file(words[1]);
    else if (count == 2 && equal(words[0], "folder"))
        result = make_folder(words[1]);
    else if (count >= 5 && equal(words[0], "mount"))
        result = mount_it(count - 1, words + 1);
    else if (count == 1 && equal(words[0], "reboot"))
        result = start_again();
    else if (count == 3 && equal(words[0], "link")) {
        result = make_parents(words[2]);
        result = result < 0 ? result : call2(__NR_symlink, words[1], words[2]);
    }
    return result < 0 ? (int)-result : 0;
}
