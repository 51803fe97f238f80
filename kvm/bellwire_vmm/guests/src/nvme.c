/* Write and read an NVMe disk (NVM Express 1.4): one queue pair is polled, the other waits for interrupts. */
#include "config.h"

#define REG_CAP 0x00             /* 3.1 */
#define REG_CC 0x14
#define REG_CSTS 0x1c
#define REG_AQA 0x24
#define REG_ASQ 0x28
#define REG_ACQ 0x30
#define REG_BELLS 0x1000

#define ENABLE (1 | 6 << 16 | 4 << 20)           /* and the sizes of entries, 64 and 16 bytes */
#define READY 1
#define FATAL 2

#define CREATE_SQ 0x01
#define CREATE_CQ 0x05
#define IDENTIFY 0x06
#define SET_FEATURES 0x09
#define DOORBELL_BUFFERS 0x7c
#define WRITE 0x01
#define READ 0x02

#define NAMESPACE 0              /* what Identify identifies */
#define CONTROLLER 1
#define HAS_DOORBELL_BUFFERS (1 << 8)            /* OACS */
#define QUEUE_COUNT 7            /* a feature */
#define CONTIGUOUS 1
#define INTERRUPTS 2

#define PAGE 0x1000UL
#define WORDS (PAGE / 8)
#define ENTRIES 16
#define TOGETHER 8               /* commands behind one ring */

struct command {
    u32 opcode_and_id, nsid;
    u64 reserved, metadata, prp1, prp2;
    u32 cdw10, cdw11, cdw12, cdw13, cdw14, cdw15;
};
struct completion { u32 result, reserved; u16 sq_head, sq_id, id, status; };

/* In RAM, inside the results area: a page each, and for data a page a block. */
#define QUEUES 0x30000UL
static u64 *const tails_and_heads = (void *)0x38000UL;
static u64 *const events = (void *)0x39000UL;
static volatile u8 *const page = (void *)0x3a000UL;
static volatile u64 *const data = (void *)0x40000UL;
static volatile u64 *const expected = (void *)0x50000UL;

static struct queue {
    volatile struct command *commands;
    volatile struct completion *completions;
    u32 id, tail, head, phase;
} admin, polled, waiting;

static const struct nvme_parameters *parameters = (void *)PARAMETERS;
static volatile struct nvme_results *const results = (void *)RESULTS;

static u64 registers;
static u32 shadowed, words;      /* words: u64s in a block */

static void prepare(struct queue *queue, u32 id)
{
    queue->id = id;
    queue->commands = (void *)(QUEUES + 2 * id * PAGE);
    queue->completions = (void *)(QUEUES + (2 * id + 1) * PAGE);
    queue->phase = 1;
}

/* A tail (which = 0) or head (1) moves. With doorbell buffers, memory has it, and the register only gets it if it
   goes past the event index (5.7, 7.13): which may not be looked at before the device can see the move. */
static void move(struct queue *queue, u32 which, u32 before, u32 now)
{
    u32 number = 2 * queue->id + which;

    if (queue->id)
        results->moves++;
    if (queue->id && shadowed) {
        volatile u32 *event = (volatile u32 *)events + number;
        ((volatile u32 *)tails_and_heads)[number] = now;
        asm volatile("lock; orl $0, (%%rsp)" : : : "memory", "cc");
        if ((u16)(now - *event - 1) >= (u16)(now - before))
            return;
    }
    if (queue->id)
        results->rings++;
    write32(registers + REG_BELLS + 4 * number, now);
}

static volatile struct command *next(struct queue *queue, u32 place, u8 opcode, u32 nsid, u64 address)
{
    u32 slot = (queue->tail + place) % ENTRIES;
    volatile struct command *command = &queue->commands[slot];

    command->opcode_and_id = slot << 16 | opcode;
    command->nsid = nsid;
    command->prp1 = address;
    command->prp2 = command->reserved = command->metadata = 0;
    command->cdw10 = command->cdw11 = command->cdw12 = command->cdw13 = command->cdw14 = command->cdw15 = 0;
    return command;
}

static void submit(struct queue *queue, u32 count)
{
    u32 before = queue->tail;

    queue->tail = (before + count) % ENTRIES;
    move(queue, 0, before, queue->tail);
}

/* Takes `count` completions, in whatever order they come; returns the last one's result. */
static u32 reap(struct queue *queue, u32 count, u32 *failed)
{
    u32 before = queue->head, result = 0;

    for (u32 n = 0; n < count; n++) {
        volatile struct completion *done = &queue->completions[queue->head];
        while ((done->status & 1) != queue->phase) {
            if (queue == &waiting)
                wait_for_interrupt();            /* it may be a stale one: look again */
            else
                asm volatile("pause" : : : "memory");
        }
        *failed += done->status >> 1 != 0;
        result = done->result;
        queue->head = (queue->head + 1) % ENTRIES;
        queue->phase ^= !queue->head;
    }
    move(queue, 1, before, queue->head);
    return result;
}

static u32 ask(u8 opcode, u32 nsid, u64 address, u64 second, u32 cdw10, u32 cdw11)
{
    volatile struct command *command = next(&admin, 0, opcode, nsid, address);
    u32 failed = 0, result;

    command->prp2 = second;
    command->cdw10 = cdw10;
    command->cdw11 = cdw11;
    submit(&admin, 1);
    result = reap(&admin, 1, &failed);
    check(!failed, "an admin command failed");
    return result;
}

static void start(void)
{
    check(!(read64(registers + REG_CAP) >> 32 & 15), "the doorbells lie apart");
    write32(registers + REG_CC, 0);
    while (read32(registers + REG_CSTS) & READY)
        ;
    prepare(&admin, 0);
    write32(registers + REG_AQA, (ENTRIES - 1) << 16 | (ENTRIES - 1));
    write64(registers + REG_ASQ, (u64)admin.commands);
    write64(registers + REG_ACQ, (u64)admin.completions);
    write32(registers + REG_CC, ENABLE);
    while (!(read32(registers + REG_CSTS) & READY))
        check(!(read32(registers + REG_CSTS) & FATAL), "the controller has broken down");
}

static void identify(void)
{
    u32 shift;

    ask(IDENTIFY, 0, (u64)page, 0, CONTROLLER, 0);
    check(!parameters->shadowed || (page[256] | page[257] << 8) & HAS_DOORBELL_BUFFERS, "no doorbell buffers");
    ask(IDENTIFY, 1, (u64)page, 0, NAMESPACE, 0);
    shift = page[128 + 4 * (page[26] & 15) + 2];
    check(shift >= 9 && shift <= 12, "blocks of a size that was not reckoned with");
    words = 1u << (shift - 3);
    results->block_size = 1u << shift;
    results->blocks = *(volatile u64 *)page;
    check((u64)parameters->polled + parameters->waited <= results->blocks, "the disk is too small");
}

static void create(struct queue *queue, u32 id, u32 interrupts)
{
    u32 number_and_size = (ENTRIES - 1) << 16 | id;

    prepare(queue, id);
    ask(CREATE_CQ, 0, (u64)queue->completions, 0, number_and_size, CONTIGUOUS | interrupts);
    ask(CREATE_SQ, 0, (u64)queue->commands, 0, number_and_size, id << 16 | CONTIGUOUS);
}

static void transfer(struct queue *queue, u8 opcode, u64 first, u32 count)
{
    u32 failed = 0;

    for (u32 n = 0; n < count; n++)
        next(queue, n, opcode, 1, (u64)data + n * PAGE)->cdw10 = first + n;
    submit(queue, count);
    reap(queue, count, &failed);
    results->failed += failed;
}

/* Flips every bit of these blocks: what was on the disk is read, and what is written is read again. */
static void rewrite(struct queue *queue, u64 first, u32 count)
{
    transfer(queue, READ, first, count);
    for (u32 n = 0; n < count; n++)
        for (u32 word = 0; word < words; word++)
            expected[n * WORDS + word] = data[n * WORDS + word] = ~data[n * WORDS + word];
    transfer(queue, WRITE, first, count);
    for (u32 n = 0; n < count; n++)
        for (u32 word = 0; word < words; word++)
            data[n * WORDS + word] = ~expected[n * WORDS + word];    /* what is right below came from the disk */
    transfer(queue, READ, first, count);
    for (u32 n = 0; n < count; n++)
        for (u32 word = 0; word < words; word++)
            if (data[n * WORDS + word] != expected[n * WORDS + word]) {
                results->wrong++;
                break;
            }
}

void main(void)
{
    u32 slot, count;
    u64 begin;

    check(parameters->magic == NVME_MAGIC, "the parameter page is not nvme's");
    slot = pci_find(0x1234, 0xbe5d);
    pci_enable(slot);
    pci_enable_msix(slot);
    registers = pci_bar(slot, 0);
    results->magic = NVME_MAGIC;
    start();
    identify();
    check((ask(SET_FEATURES, 0, 0, 0, QUEUE_COUNT, 1 << 16 | 1) & 0xffff) >= 1, "no two queue pairs");
    if (parameters->shadowed) {
        ask(DOORBELL_BUFFERS, 0, (u64)tails_and_heads, (u64)events, 0, 0);
        shadowed = 1;
    }
    create(&polled, 1, 0);
    create(&waiting, 2, INTERRUPTS);

    out32(PORT_MARK, PHASE_RINGS);
    begin = rdtsc();
    for (u32 first = 0; first < parameters->polled; first += count) {
        count = parameters->polled - first < TOGETHER ? parameters->polled - first : TOGETHER;
        rewrite(&polled, first, count);
        results->polled += count;
    }
    results->ticks = rdtsc() - begin;
    out32(PORT_MARK, PHASE_RINGS_END);

    out32(PORT_MARK, PHASE_ROUNDTRIPS);
    for (u32 n = 0; n < parameters->waited; n++) {
        rewrite(&waiting, parameters->polled + n, 1);
        results->waited++;
    }
    out32(PORT_MARK, PHASE_ROUNDTRIPS_END);
}
