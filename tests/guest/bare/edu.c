/* Drives edu (QEMU, docs/specs/edu.rst) as a driver would, and tells what it saw: the same of every edu. */
#include "config.h"

#define IDENT 0x00
#define LIVENESS 0x04
#define FACTORIAL 0x08
#define STATUS 0x20
#define IRQ_STATUS 0x24
#define IRQ_RAISE 0x60
#define IRQ_ACKNOWLEDGE 0x64
#define DMA_SOURCE 0x80
#define DMA_TARGET 0x88
#define DMA_COUNT 0x90
#define DMA_COMMAND 0x98
#define BUFFER 0x40000UL

#define COMPUTING 0x01
#define IRQ_WHEN_DONE 0x80
#define START 1
#define TO_RAM 2
#define IRQ 4

#define SOURCE 0x200000UL
#define TARGET 0x300000UL
#define SIZE 4096
#define LEFT_UNACKNOWLEDGED 3
#define A_WHILE 200000000UL      /* ticks of the time stamp counter */

static u64 edu;
static volatile u32 arrivals;
static volatile u32 cause;
static volatile u32 to_ignore;

static int on_interrupt(void)
{
    u32 status = read32(edu + IRQ_STATUS);
    if (!status)
        return 0;                /* a line may come once more than it was raised */
    arrivals++;
    cause = status;
    if (to_ignore) {
        to_ignore--;
        return 1;
    }
    write32(edu + IRQ_ACKNOWLEDGE, status);
    (void)read32(edu + IRQ_STATUS);
    return 1;
}

static void say(const char *what, u64 value)
{
    text(what);
    text(" ");
    number(value);
    text("\n");
}

static u32 compute(u32 number)
{
    write32(edu + FACTORIAL, number);
    while (read32(edu + STATUS) & COMPUTING)
        ;
    return read32(edu + FACTORIAL);
}

static void start(u64 source, u64 target, u64 count, u64 command)
{
    write64(edu + DMA_SOURCE, source);
    write64(edu + DMA_TARGET, target);
    write64(edu + DMA_COUNT, count);
    write64(edu + DMA_COMMAND, START | command);
}

static void copy(u64 source, u64 target, u64 count, u64 command)
{
    start(source, target, count, command);
    while (read64(edu + DMA_COMMAND) & START)
        ;
}

static void fill(u32 seed)
{
    for (u32 i = 0; i < SIZE; i++) {
        ((volatile u8 *)SOURCE)[i] = i * seed + (i >> 8);
        ((volatile u8 *)TARGET)[i] = 0;
    }
}

static u32 equal_bytes(void)
{
    u32 i = 0;
    while (i < SIZE && ((volatile u8 *)SOURCE)[i] == ((volatile u8 *)TARGET)[i])
        i++;
    return i;
}

static void registers(void)
{
    say("identification", read32(edu + IDENT));
    write32(edu + LIVENESS, 0x12345678);
    say("liveness", read32(edu + LIVENESS));
    for (u32 n = 0; n <= 13; n++)
        say("factorial", compute(n));
    say("factorial of 40", compute(40));
    write32(edu + STATUS, 0xffffffff);
    say("status, all bits written", read32(edu + STATUS));
    write32(edu + STATUS, 0);
    say("status, no bit written", read32(edu + STATUS));
    say("nothing to see", read32(edu + 0x40));
}

static void memory(void)
{
    fill(7);
    copy(SOURCE, BUFFER, SIZE, 0);
    copy(BUFFER, TARGET, SIZE, TO_RAM);
    say("bytes copied there and back", equal_bytes());
    fill(11);
    copy(SOURCE + 100, BUFFER + 3000, 1000, 0);
    copy(BUFFER + 3000, TARGET + 100, 1000, TO_RAM);
    for (u32 i = 0; i < 100; i++)
        ((volatile u8 *)TARGET)[i] = ((volatile u8 *)SOURCE)[i];
    say("bytes right after a part was copied", equal_bytes());
    say("command when done", read64(edu + DMA_COMMAND));
}

static u32 await(void)
{
    wait_for_interrupt();
    return cause;
}

/* Interrupts that come within a while, while nobody has reason to send one. */
static u32 idle(void)
{
    u32 before = arrivals;
    u64 end = rdtsc() + A_WHILE;
    asm volatile("sti");
    while (rdtsc() < end)
        ;
    asm volatile("cli");
    irq_time = 0;
    return arrivals - before;
}

static void interrupts(void)
{
    write32(edu + STATUS, IRQ_WHEN_DONE);
    write32(edu + FACTORIAL, 6);
    say("cause: factorial", await());
    say("factorial", read32(edu + FACTORIAL));
    write32(edu + STATUS, 0);
    fill(13);
    start(SOURCE, BUFFER, SIZE, IRQ);
    say("cause: DMA to the device", await());
    start(BUFFER, TARGET, SIZE, IRQ | TO_RAM);
    say("cause: DMA to memory", await());
    say("bytes copied there and back", equal_bytes());
    write32(edu + IRQ_RAISE, 0x00560000);
    say("cause: raised", await());
    say("causes left", read32(edu + IRQ_STATUS));
    say("interrupts in idle time", idle());
}

static void level(void)
{
    u32 before = arrivals;
    to_ignore = LEFT_UNACKNOWLEDGED;
    write32(edu + IRQ_RAISE, 0x00770000);
    while (arrivals - before <= LEFT_UNACKNOWLEDGED)
        await();
    say("interrupts until acknowledged", arrivals - before);
    say("interrupts in idle time", idle());
}

void main(void)
{
    u32 slot = pci_find(0x1234, 0x11e8);

    pci_enable(slot);
    edu = pci_bar(slot, 0);
    irq_hook = on_interrupt;
    /* q35: INTA of a slot is line E, F, G or H of the south bridge in turn, and line A is input 16 (ICH9, 10.1.20). */
    ioapic_route(20 + (slot & 3));
    registers();
    memory();
    text("by INTA\n");
    interrupts();
    level();
    text("by MSI\n");
    pci_enable_msi(slot, 1);
    interrupts();
    text("by INTA again\n");
    pci_enable_msi(slot, 0);
    interrupts();
    text("done\n");
}
