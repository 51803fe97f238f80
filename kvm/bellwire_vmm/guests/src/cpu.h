/* The processor as a guest sees it: ports, the time stamp counter, interrupts, and the way out. */
#ifndef CPU_H
#define CPU_H

#include "layout.h"

#define IRQ_VECTOR 0x40          /* the one external interrupt that these guests use */

static inline void out8(u16 port, u8 value) { asm volatile("outb %0, %1" : : "a"(value), "Nd"(port)); }
static inline void out16(u16 port, u16 value) { asm volatile("outw %0, %1" : : "a"(value), "Nd"(port)); }
static inline void out32(u16 port, u32 value) { asm volatile("outl %0, %1" : : "a"(value), "Nd"(port)); }

static inline u8 in8(u16 port)
{
    u8 value;
    asm volatile("inb %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline u16 in16(u16 port)
{
    u16 value;
    asm volatile("inw %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline u32 in32(u16 port)
{
    u32 value;
    asm volatile("inl %1, %0" : "=a"(value) : "Nd"(port));
    return value;
}

static inline u64 rdtsc(void)
{
    u32 low, high;
    asm volatile("rdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (u64)high << 32 | low;
}

static inline u8 read8(u64 at) { return *(volatile u8 *)at; }
static inline u32 read32(u64 at) { return *(volatile u32 *)at; }
static inline u64 read64(u64 at) { return *(volatile u64 *)at; }
static inline void write32(u64 at, u32 value) { *(volatile u32 *)at = value; }
static inline void write64(u64 at, u64 value) { *(volatile u64 *)at = value; }

/* Set by the interrupt handler, taken by wait_for_interrupt. */
extern volatile u64 irq_time;    /* rdtsc at the handler's start; 0 = none since it was last taken */
extern volatile u32 irq_count;

/* Asks the device, before the local APIC hears that we are done: 0 = it was not ours, and is not counted. */
extern int (*irq_hook)(void);

void cpu_init(void);             /* interrupt table, local APIC; interrupts stay off in ring 0 */
void enter_ring3(void (*program)(void));
u64 wait_for_interrupt(void);    /* returns irq_time and clears it */
void ioapic_route(u32 gsi);      /* deliver a level-triggered line to IRQ_VECTOR */

#define MSI_ADDRESS 0xfee00000UL /* local APIC 0 (Intel SDM vol. 3, 11.11.1) */

void text(const char *string);
void number(u64 value);
__attribute__((noreturn)) void leave(u32 code);
__attribute__((noreturn)) void fail(const char *what, u32 line);
#define check(condition, what) do { if (!(condition)) fail(what, __LINE__); } while (0)

#endif
