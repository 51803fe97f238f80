/* The commands that run: each has pipes, or a terminal, and a session of its own. */
#include "agent.h"

#include <asm/errno.h>
#include <asm/ioctls.h>
#include <asm/signal.h>
#include <asm/termios.h>
#include <linux/fcntl.h>
#include <linux/wait.h>

enum { MOST_READS = 128, MOST_WORDS = 4096 };

struct command commands[MOST_COMMANDS];
int own_program = -1;

static char **environment, *search;

struct command *find_command(uint16_t id)
{
    for (int at = 0; at < MOST_COMMANDS; at++)
        if (commands[at].used && commands[at].id == id)
            return &commands[at];
    return NULL;
}

static void ended(uint16_t id, int32_t status)
{
    send_frame(ENDED, id, &status, sizeof status);
}

static void complain(const char *word, const char *problem)
{
    sys_write(2, word, length_of(word));
    sys_write(2, problem, length_of(problem));
}

/* Run the program as a shell would: along PATH if its name has no slash. Returns a negated errno. */
static long execute(char **words)
{
    const char *name = words[0];
    for (const char *at = name; *at; at++)
        if (*at == '/')
            return call3(__NR_execve, name, words, environment);
    long result = -ENOENT;
    for (const char *folder = search; folder && *folder;) {
        char path[4096];
        size_t length = 0, rest = length_of(name);
        while (folder[length] && folder[length] != ':')
            length++;
        if (length + rest + 2 <= sizeof path) {
            copy(path, folder, length);
            path[length] = '/';
            copy(path + length + 1, name, rest + 1);
            long failed = call3(__NR_execve, path, words, environment);
            if (failed != -ENOENT && failed != -ENOTDIR)
                result = failed;
        }
        folder += length + (folder[length] == ':');
    }
    return result;
}

/* In the child: its streams are set up. Does not return. */
static void become(char **words, const char *folder, int flags)
{
    uint64_t nothing = 0;
    call4(__NR_rt_sigprocmask, SIG_SETMASK, &nothing, NULL, sizeof nothing);
    if (sys_chdir(folder) < 0) {
        complain(folder, ": the guest has no such folder\n");
        sys_exit(126);
    }
    long result = flags & OWN_PROGRAM ? call5(__NR_execveat, own_program, "", words, environment, AT_EMPTY_PATH)
                                      : execute(words);
    complain(words[0], result == -ENOENT ? ": not found in the guest\n" : ": cannot be run in the guest\n");
    sys_exit(result == -ENOENT ? 127 : 126);
}

static int terminal_of(int *master, const struct start *start)
{
    struct winsize size = {.ws_row = start->rows, .ws_col = start->columns};
    int unlocked = 0;
    long fd = sys_open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC | O_NONBLOCK, 0);
    if (fd < 0)
        return (int)fd;
    sys_ioctl(fd, TIOCSPTLCK, &unlocked);
    sys_ioctl(fd, TIOCSWINSZ, &size);
    *master = (int)fd;
    return (int)sys_ioctl(fd, TIOCGPTPEER, O_RDWR | O_NOCTTY);
}

static void close_ends(int *ends, int count)
{
    for (int at = 0; at < count; at++)
        if (ends[at] >= 0)
            sys_close(ends[at]);
}

/* Lay payload out as a folder, words and environment. Returns 0 if it is not well formed. */
static int take_apart(char *payload, uint32_t length, struct start *start, char **folder, char **words, int most)
{
    uint32_t at = sizeof *start;
    int found = -1;
    if (length <= at || payload[length - 1])
        return 0;
    copy(start, payload, sizeof *start);
    if (!start->words || start->words > most - 2)
        return 0;
    search = NULL;
    while (at < length && found < most - 2) {
        char *text = payload + at;
        at += (uint32_t)length_of(text) + 1;
        if (found < 0)
            *folder = text;
        else
            words[found + (found >= start->words)] = text;
        if (found >= start->words && text[0] == 'P' && text[1] == 'A' && text[2] == 'T' && text[3] == 'H' &&
            text[4] == '=')
            search = text + 5;
        found++;
    }
    if (at < length || found < start->words)
        return 0;
    words[start->words] = words[found + 1] = NULL;
    environment = words + start->words + 1;
    return 1;
}

void start_command(uint16_t id, const char *given, uint32_t length)
{
    static char payload[MOST];
    static char *words[MOST_WORDS];
    struct command *command = NULL;
    struct start start;
    char *folder = NULL;
    int theirs[3] = {-1, -1, -1}, ours[3] = {-1, -1, -1}, pair[2];
    copy(payload, given, length);
    for (int at = 0; at < MOST_COMMANDS && !command; at++)
        if (!commands[at].used)
            command = &commands[at];
    if (!command || find_command(id) || !take_apart(payload, length, &start, &folder, words, MOST_WORDS)) {
        ended(id, (command ? 126 : 125) << 8);
        return;
    }
    if (start.flags & ON_TERMINAL) {
        theirs[0] = terminal_of(&ours[0], &start);
        ours[1] = ours[0];
    } else {
        for (int at = 0; at < 3; at++) {
            if (call2(__NR_pipe2, pair, O_CLOEXEC) < 0)
                continue;
            theirs[at] = pair[at > 0];
            ours[at] = pair[at == 0];
            call3(__NR_fcntl, ours[at], F_SETFL, O_NONBLOCK);
        }
    }
    long pid = theirs[0] < 0 ? -1 : call0(__NR_fork);
    if (pid == 0) {
        int terminal = start.flags & ON_TERMINAL;
        call0(__NR_setsid);
        if (terminal)
            sys_ioctl(theirs[0], TIOCSCTTY, 0);
        for (int at = 0; at < 3; at++)
            call2(__NR_dup2, theirs[terminal ? 0 : at], at);
        if (terminal && theirs[0] > 2)
            sys_close(theirs[0]);
        become(words, folder, start.flags);
    }
    close_ends(theirs, 3);
    if (pid < 0) {
        close_ends(ours, start.flags & ON_TERMINAL ? 1 : 3);
        ended(id, 125 << 8);
        return;
    }
    command->used = 1;
    command->id = id;
    command->pid = (int)pid;
    command->exited = command->status = command->input_ends = 0;
    command->filled = 0;
    command->on_terminal = start.flags & ON_TERMINAL;
    command->input = ours[0];
    command->output = ours[1];
    command->errors = ours[2];
}

void give_input(struct command *command, const char *data, uint32_t length)
{
    if (!length)
        command->input_ends = 1;
    if (length > WINDOW - command->filled)
        length = WINDOW - command->filled; /* the host sends no more than it has been allowed */
    copy(command->pending + command->filled, data, length);
    command->filled += length;
    push_input(command);
}

static void close_input(struct command *command)
{
    if (command->on_terminal) {
        char end = 4; /* Ctrl-D: a terminal has no other end of input */
        sys_write(command->input, &end, 1);
    } else if (command->input >= 0) {
        sys_close(command->input);
        command->input = -1;
    }
    command->input_ends = 0;
}

/* Write what the command takes, and tell the host how much that was. */
void push_input(struct command *command)
{
    uint32_t taken = 0;
    while (taken < command->filled) {
        long wrote = command->input < 0
                         ? (long)(command->filled - taken)
                         : sys_write(command->input, command->pending + taken, command->filled - taken);
        if (wrote == -EAGAIN)
            break;
        if (wrote <= 0) /* nobody will read it */
            wrote = command->filled - taken;
        taken += (uint32_t)wrote;
    }
    for (uint32_t at = taken; at < command->filled; at++)
        command->pending[at - taken] = command->pending[at];
    command->filled -= taken;
    if (taken)
        send_frame(TAKEN, command->id, &taken, sizeof taken);
    if (!command->filled && command->input_ends)
        close_input(command);
}

/* Read once, and pass it on. Closes the stream at its end. Returns whether there may be more. */
int pass_output(struct command *command, int *fd, int kind)
{
    static char data[1 << 14];
    long length = sys_read(*fd, data, sizeof data);
    if (length > 0)
        send_frame(kind, command->id, data, (uint32_t)length);
    if (length > 0 || length == -EINTR)
        return 1;
    if (length == -EAGAIN)
        return 0;
    if (!command->on_terminal)
        sys_close(*fd);
    *fd = -1;
    return 0;
}

void resize(struct command *command, const char *payload)
{
    struct winsize size = {0};
    copy(&size.ws_row, payload, 2);
    copy(&size.ws_col, payload + 2, 2);
    if (command->on_terminal)
        sys_ioctl(command->input, TIOCSWINSZ, &size);
}

/* Pass on what is there now, and little more: a child in the background may keep the stream, and write for ever. */
static void drain(struct command *command, int *fd, int kind)
{
    for (int reads = 0; reads < MOST_READS && *fd >= 0; reads++)
        if (!pass_output(command, fd, kind))
            return;
}

/* Collect the children that have ended; a command that has ended has passed on what it wrote before. */
void reap(void)
{
    int status;
    long pid;
    while ((pid = call4(__NR_wait4, -1, &status, WNOHANG, NULL)) > 0) {
        for (int at = 0; at < MOST_COMMANDS; at++) {
            struct command *command = &commands[at];
            if (!command->used || command->pid != pid)
                continue;
            drain(command, &command->output, OUTPUT);
            drain(command, &command->errors, ERRORS);
            if (command->on_terminal)
                command->output = -1;
            close_ends(&command->input, 1);
            close_ends(&command->output, 1);
            close_ends(&command->errors, 1);
            command->used = 0;
            ended(command->id, status);
        }
    }
}
