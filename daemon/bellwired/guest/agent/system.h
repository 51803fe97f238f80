/* Linux's system calls for a program without a C library, on x86-64. A result of -4095 to -1 is a negated errno. */
#pragma once

#include <asm/unistd.h>
#include <stddef.h>
#include <stdint.h>

static inline long call6(long number, long a, long b, long c, long d, long e, long f)
{
    long result;
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                     : "rcx", "r11", "memory");
    return result;
}

#define call5(number, a, b, c, d, e) call6(number, (long)(a), (long)(b), (long)(c), (long)(d), (long)(e), 0)
#define call4(number, a, b, c, d) call5(number, a, b, c, d, 0)
#define call3(number, a, b, c) call4(number, a, b, c, 0)
#define call2(number, a, b) call3(number, a, b, 0)
#define call1(number, a) call2(number, a, 0)
#define call0(number) call1(number, 0)

#define sys_open(path, flags, mode) call3(__NR_open, path, flags, mode)
#define sys_close(fd) call1(__NR_close, fd)
#define sys_read(fd, data, length) call3(__NR_read, fd, data, length)
#define sys_write(fd, data, length) call3(__NR_write, fd, data, length)
#define sys_ioctl(fd, request, argument) call3(__NR_ioctl, fd, request, argument)
#define sys_mkdir(path, mode) call2(__NR_mkdir, path, mode)
#define sys_mount(source, target, type, flags, options) call5(__NR_mount, source, target, type, flags, options)
#define sys_chroot(path) call1(__NR_chroot, path)
#define sys_chdir(path) call1(__NR_chdir, path)
#define sys_kill(pid, signal) call2(__NR_kill, pid, signal)
#define sys_exit(status) call1(__NR_exit_group, status)

size_t length_of(const char *text);
int equal(const char *a, const char *b);
void copy(void *to, const void *from, size_t length);
long make_parents(const char *path);
