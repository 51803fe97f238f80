/* What the agent's files share. bellwired/guest/frames.py describes the frames. */
#pragma once

#include "system.h"

enum { MOST = 1 << 16, WINDOW = 1 << 16, MOST_COMMANDS = 32, VERSION = 1 };

enum kind {
    START = 1, INPUT, SIGNAL, RESIZE, SWITCH, SYNC,
    HELLO = 16, OUTPUT, ERRORS, TAKEN, ENDED,
};

enum { ON_TERMINAL = 1, OWN_PROGRAM = 2 }; /* flags of START */

struct frame {
    uint32_t length;
    uint16_t command;
    uint8_t kind, zero;
    char payload[MOST + 1]; /* and a NUL */
};

enum { HEAD = offsetof(struct frame, payload) };

/* What START begins with; the folder, the words and the environment follow, each with its NUL. */
struct start {
    uint8_t flags, zero;
    uint16_t rows, columns, words;
};

struct command {
    int used, pid, exited, status;
    uint16_t id;
    int input, output, errors;  /* our ends; -1: closed. On a terminal, input and output are one fd. */
    int on_terminal, input_ends;
    uint32_t filled;
    char pending[WINDOW];  /* input that the command has not taken yet */
};

extern struct command commands[MOST_COMMANDS];
extern int own_program; /* this program, open: its path goes when the root does */

void send_frame(int kind, uint16_t command, const void *payload, uint32_t length);
struct command *find_command(uint16_t id);
void start_command(uint16_t id, const char *payload, uint32_t length);
void give_input(struct command *command, const char *data, uint32_t length);
void push_input(struct command *command);
int pass_output(struct command *command, int *fd, int kind);
void resize(struct command *command, const char *payload);
void reap(void);
int tool(int count, char **words);
int prepare_machine(void);
