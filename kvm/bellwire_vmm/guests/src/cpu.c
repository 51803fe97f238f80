#include "cpu.h"

#define APIC_EOI 0xfee000b0UL
#define APIC_SPURIOUS 0xfee000f0UL
#define IOAPIC_SELECT 0xfec00000UL
#define IOAPIC_WINDOW 0xfec00010UL

volatile u64 irq_time;
volatile u32 irq_count;
int (*irq_hook)(void);

struct frame { u64 rip, cs, rflags, rsp, ss; };

__attribute__((interrupt)) static void on_irq(struct frame *frame)
{
    u64 now = rdtsc();
    (void)frame;
    int ours = !irq_hook || irq_hook();
    write32(APIC_EOI, 0);
    if (ours) {
        irq_count++;
        irq_time = now;
    }
}

__attribute__((interrupt)) static void on_fault(struct frame *frame)
{
    text("exception at ");
    number(frame->rip);
    fail("", 0);
}

__attribute__((interrupt)) static void on_fault_with_code(struct frame *frame, u64 code)
{
    text("exception with code ");
    number(code);
    text(" at ");
    number(frame->rip);
    fail("", 0);
}

struct gate { u16 low, selector; u8 stack, type; u16 middle; u32 high, reserved; };
static struct gate gates[IRQ_VECTOR + 1];

static void set_gate(u32 vector, void *handler)
{
    u64 at = (u64)handler;
    gates[vector] = (struct gate){at, 8, 0, 0x8e, at >> 16, at >> 32, 0};
}

void cpu_init(void)
{
    struct { u16 limit; u64 base; } __attribute__((packed)) table = {sizeof gates - 1, (u64)gates};

    for (u32 vector = 0; vector < 32; vector++) {
        int has_code = vector == 8 || (vector >= 10 && vector <= 14) || vector == 17;
        set_gate(vector, has_code ? (void *)on_fault_with_code : (void *)on_fault);
    }
    set_gate(IRQ_VECTOR, on_irq);
    asm volatile("lidt %0" : : "m"(table));
    write32(APIC_SPURIOUS, 0x1ff);       /* bit 8: the local APIC is on */
}

u64 wait_for_interrupt(void)
{
    u64 when;
#ifdef RING3
    while (!irq_time)                    /* interrupts are on; hlt is not ours */
        asm volatile("pause" : : : "memory");
#else
    while (!irq_time)                    /* sti holds interrupts off until hlt has begun: none is missed */
        asm volatile("sti; hlt; cli" : : : "memory");
#endif
    when = irq_time;
    irq_time = 0;
    return when;
}

void ioapic_route(u32 gsi)
{
    write32(IOAPIC_SELECT, 0x10 + 2 * gsi + 1);
    write32(IOAPIC_WINDOW, 0);           /* to local APIC 0 */
    write32(IOAPIC_SELECT, 0x10 + 2 * gsi);
    write32(IOAPIC_WINDOW, 1u << 15 | IRQ_VECTOR);      /* level-triggered, active high, fixed */
}

void text(const char *string)
{
    while (*string)
        out8(PORT_TEXT, *string++);
}

void number(u64 value)
{
    text("0x");
    for (int shift = 60; shift >= 0; shift -= 4)
        if (value >> shift || !shift)
            out8(PORT_TEXT, "0123456789abcdef"[value >> shift & 15]);
}

void leave(u32 code)
{
    for (;;)
        out32(PORT_EXIT, code);
}

void fail(const char *what, u32 line)
{
    text(what);
    text(" (line ");
    number(line);
    text(")\n");
    leave(1);
}
