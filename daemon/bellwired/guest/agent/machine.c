/* The first steps in a guest: the kernel's own file systems, and the channel's port. */
#include "agent.h"

#include <asm/errno.h>
#include <asm/poll.h>
#include <linux/fcntl.h>

#define NAME "bellwire"

enum { MOST_DEVICES = 16, MOST_PORTS = 8, MOST_MODULES = 100, PAUSE = 2 /* ms */ };

static void mount_on(const char *type, const char *target)
{
    sys_mkdir(target, 0755);
    sys_mount(type, target, type, 0, NULL);
}

/* Load the modules that the port needs: /modules/00 and up, in this order. There are none where they are built in. */
static void load_modules(void)
{
    char path[] = "/modules/__";
    for (int at = 0; at < MOST_MODULES; at++) {
        path[9] = (char)('0' + at / 10);
        path[10] = (char)('0' + at % 10);
        long fd = sys_open(path, O_RDONLY | O_CLOEXEC, 0);
        if (fd < 0)
            return;
        call3(__NR_finit_module, fd, "", 0); /* if it fails, the kernel says why on the console */
        sys_close(fd);
    }
}

/* Replace the two figures (one sign each) in a path. */
static void number(char *path, int device, int figure, const char *digits)
{
    path[device] = digits[0];
    path[figure] = digits[1];
}

/* The port with our name; a negated errno if it is not there yet. */
static long open_port(void)
{
    static const char figures[] = "0123456789";
    char name[] = "/sys/class/virtio-ports/vport_p_/name", node[] = "/dev/vport_p_", found[sizeof NAME];
    for (int device = 0; device < 10; device++) {
        for (int at = 0; at < 10; at++) {
            const char digits[2] = {figures[device], figures[at]};
            number(name, 29, 31, digits);
            long fd = sys_open(name, O_RDONLY, 0), length;
            if (fd < 0)
                continue;
            length = sys_read(fd, found, sizeof found);
            sys_close(fd);
            if (length < (long)sizeof NAME - 1)
                continue;
            found[sizeof NAME - 1] = 0;
            if (!equal(found, NAME))
                continue;
            number(node, 10, 12, digits);
            return sys_open(node, O_RDWR | O_CLOEXEC, 0);
        }
    }
    return -ENOENT;
}

/* Mount what programs expect, load modules, and wait for the port until the host is at its other end. */
int prepare_machine(void)
{
    mount_on("devtmpfs", "/dev");
    mount_on("proc", "/proc");
    mount_on("sysfs", "/sys");
    mount_on("devpts", "/dev/pts");
    mount_on("tmpfs", "/dev/shm");
    mount_on("tmpfs", "/run");
    mount_on("tmpfs", "/tmp");
    load_modules();
    long port = open_port();
    while (port < 0) {
        call3(__NR_poll, NULL, 0, PAUSE);
        port = open_port();
    }
    for (;;) {
        struct pollfd polled = {.fd = (int)port, .events = POLLOUT};
        call3(__NR_poll, &polled, 1, PAUSE);
        if (!(polled.revents & POLLHUP))
            return (int)port;
        call3(__NR_poll, NULL, 0, PAUSE);
    }
}
