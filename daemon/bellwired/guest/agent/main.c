/*
 * The agent: the first process of a guest. It runs the commands that the host sends through the channel, and passes on
 * what they read and write.
 *
 *   init                      as the first process, on the virtio-serial port that is named "bellwire"
 *   bellwire-agent serve FD   as any process, on a descriptor (for tests)
 *   bellwire-agent TOOL ...   one of the small tools in tools.c
 */
#include "agent.h"

#include <asm/errno.h>
#include <asm/poll.h>
#include <asm/signal.h>
#include <linux/fcntl.h>
#include <linux/reboot.h>
#include <linux/signalfd.h>

enum { KILLED = 9 };

static int port = -1, first_process;

/* To the whole group. A child that is still to make its session has no group yet. */
static void send_signal(int pid, int signal)
{
    if (sys_kill(-pid, signal) == -ESRCH)
        sys_kill(pid, signal);
}

/* The host is gone, or has sent what no host sends. */
static void leave(int status)
{
    for (int at = 0; at < MOST_COMMANDS; at++)
        if (commands[at].used)
            send_signal(commands[at].pid, KILLED);
    if (first_process) {
        call0(__NR_sync);
        call4(__NR_reboot, LINUX_REBOOT_MAGIC1, LINUX_REBOOT_MAGIC2, LINUX_REBOOT_CMD_POWER_OFF, NULL);
    }
    sys_exit(status);
}

void send_frame(int kind, uint16_t command, const void *payload, uint32_t length)
{
    static struct frame frame;
    frame.length = length;
    frame.command = command;
    frame.kind = (uint8_t)kind;
    copy(frame.payload, payload, length);
    for (uint32_t at = 0; at < HEAD + length;) {
        long wrote = sys_write(port, (char *)&frame + at, HEAD + length - at);
        if (wrote < 0 && wrote != -EINTR && wrote != -EAGAIN)
            leave(1);
        if (wrote > 0)
            at += (uint32_t)wrote;
    }
}

/* Move the new root over the old one, as switch_root does. */
static int32_t switch_root(const char *folder)
{
    long result = sys_chdir(folder);
    if (result >= 0)
        result = sys_mount(".", "/", NULL, 8192 /* MS_MOVE */, NULL);
    if (result >= 0)
        result = sys_chroot(".");
    if (result >= 0)
        result = sys_chdir("/");
    return (int32_t)(result < 0 ? -result << 8 : 0);
}

static void handle(struct frame *frame)
{
    struct command *command = find_command(frame->command);
    int32_t status = 0;
    frame->payload[frame->length] = 0;
    switch (frame->kind) {
    case START:
        start_command(frame->command, frame->payload, frame->length);
        return;
    case SWITCH:
        status = switch_root(frame->payload);
        send_frame(ENDED, frame->command, &status, sizeof status);
        return;
    case SYNC:
        call0(__NR_sync);
        send_frame(ENDED, frame->command, &status, sizeof status);
        return;
    }
    if (!command)
        return; /* it has ended while this was on its way */
    if (frame->kind == INPUT)
        give_input(command, frame->payload, frame->length);
    else if (frame->kind == SIGNAL && frame->length >= 1)
        send_signal(command->pid, frame->payload[0]);
    else if (frame->kind == RESIZE && frame->length >= 4)
        resize(command, frame->payload);
}

/* Read what has come, and handle the frames that are complete. */
static void receive(void)
{
    static struct frame frame;
    static uint32_t filled;
    uint32_t wanted = filled < HEAD ? HEAD : HEAD + frame.length;
    long length = sys_read(port, (char *)&frame + filled, wanted - filled);
    if (length == -EAGAIN || length == -EINTR)
        return;
    if (length <= 0)
        leave(0);
    filled += (uint32_t)length;
    if (filled >= HEAD && frame.length > MOST)
        leave(1);
    if (filled >= HEAD && filled == HEAD + frame.length) {
        filled = 0;
        handle(&frame);
    }
}

static void add(struct pollfd *polled, int *count, int fd, short events)
{
    polled[*count].fd = fd;
    polled[*count].events = events;
    polled[(*count)++].revents = 0;
}

static void serve(void)
{
    static struct pollfd polled[2 + 3 * MOST_COMMANDS];
    struct signalfd_siginfo told;
    uint64_t blocked = 1UL << (SIGCHLD - 1) | 1UL << (SIGPIPE - 1), children = 1UL << (SIGCHLD - 1);
    call4(__NR_rt_sigprocmask, SIG_BLOCK, &blocked, NULL, sizeof blocked);
    int deaths = (int)call4(__NR_signalfd4, -1, &children, sizeof children, O_CLOEXEC | O_NONBLOCK);
    uint32_t version = VERSION;
    own_program = (int)sys_open("/proc/self/exe", O_RDONLY | O_CLOEXEC, 0);
    send_frame(HELLO, 0, &version, sizeof version);
    for (;;) {
        int count = 0;
        add(polled, &count, port, POLLIN);
        add(polled, &count, deaths, POLLIN);
        for (int at = 0; at < MOST_COMMANDS; at++) {
            struct command *command = &commands[at];
            add(polled, &count, command->used && command->filled ? command->input : -1, POLLOUT);
            add(polled, &count, command->used ? command->output : -1, POLLIN);
            add(polled, &count, command->used ? command->errors : -1, POLLIN);
        }
        if (call3(__NR_poll, polled, count, -1) < 0)
            continue;
        for (int at = 0; at < MOST_COMMANDS; at++) {
            struct command *command = &commands[at];
            struct pollfd *its = polled + 2 + 3 * at;
            if (its[0].revents)
                push_input(command);
            if (its[1].revents)
                pass_output(command, &command->output, OUTPUT);
            if (its[2].revents)
                pass_output(command, &command->errors, ERRORS);
        }
        if (polled[1].revents) {
            while (sys_read(deaths, &told, sizeof told) > 0)
                ;
            reap();
        }
        if (polled[0].revents)
            receive();
    }
}

int start(int count, char **words)
{
    if (call0(__NR_getpid) == 1) {
        first_process = 1;
        port = prepare_machine();
    } else if (count == 3 && equal(words[1], "serve")) {
        port = 0;
        for (const char *digit = words[2]; *digit; digit++)
            port = port * 10 + *digit - '0';
        call3(__NR_fcntl, port, F_SETFD, FD_CLOEXEC);
    } else {
        return tool(count - 1, words + 1);
    }
    serve();
    return 0;
}

/* The kernel leaves the number of words, and the words, at the top of the stack. */
__asm__(".globl _start\n"
        "_start:\n"
        "  xor %ebp, %ebp\n"
        "  mov (%rsp), %edi\n"
        "  lea 8(%rsp), %rsi\n"
        "  and $-16, %rsp\n"
        "  call start\n"
        "  mov %eax, %edi\n"
        "  mov $231, %eax\n"
        "  syscall\n");
