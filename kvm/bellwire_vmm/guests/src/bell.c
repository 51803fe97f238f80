/* Ring the bell device in every way that the parameter page asks for, and time it. */
#include "config.h"

#define BELL_IRQ_ON_RING 0x04
#define BELL_RESET_COUNTERS 0x0c

static u64 registers;            /* BAR0 */
static u32 slot;
static u64 free_results;         /* where the next times go */

/* What an entry's rings are made of. */
struct way {
    u32 space, width, mode, flush;
    u64 at;
};

/* n stores of value, value + step, ...: four instructions a turn, since ring 0 may be emulated one by one. */
#define LOOP(store)                                                                                          \
    asm volatile("1: " store "; add %[step], %%rax; dec %%ecx; jnz 1b"                                       \
                 : "+a"(value), "+c"(n) : "d"(way->at), [step] "r"(step) : "rbx", "memory")

static u64 batch(const struct way *way, u64 value, u64 step, u32 n)
{
    u64 begin = rdtsc();
    switch (way->mode << 8 | way->space << 4 | way->width) {
    case MODE_COUNTING << 8 | 0x01: case 0x01: LOOP("movb %%al, (%%rdx)"); break;
    case MODE_COUNTING << 8 | 0x02: case 0x02: LOOP("movw %%ax, (%%rdx)"); break;
    case MODE_COUNTING << 8 | 0x04: case 0x04: LOOP("movl %%eax, (%%rdx)"); break;
    case MODE_COUNTING << 8 | 0x08: case 0x08: LOOP("movq %%rax, (%%rdx)"); break;
    case MODE_COUNTING << 8 | 0x11: case 0x11: LOOP("outb %%al, %%dx"); break;
    case MODE_COUNTING << 8 | 0x12: case 0x12: LOOP("outw %%ax, %%dx"); break;
    case MODE_COUNTING << 8 | 0x14: case 0x14: LOOP("outl %%eax, %%dx"); break;
    case MODE_LOADING << 8 | 0x04: LOOP("movl (%%rdx), %%ebx"); break;
    default: fail("a ring of this kind does not exist", __LINE__);
    }
    if (way->flush)
        out8(PORT_FLUSH, 0);
    return rdtsc() - begin;
}

static u64 *reserve(u32 samples)
{
    u64 *at = (u64 *)free_results;
    free_results += samples * 8UL;
    check(free_results <= RESULTS_END, "more samples than the results area holds");
    return at;
}

static void flush(void)          /* a read comes back after every earlier write has been seen */
{
    (void)read32(registers);
}

static void irq_on_ring(u32 vector_plus_one)
{
    write32(registers + BELL_IRQ_ON_RING, vector_plus_one);
    flush();
}

static void look(const struct bell_entry *entry, u32 arrivals)
{
    if (entry->look != NONE)
        write32(registers + entry->look, arrivals);
}

static u64 counted(u32 offset) { return offset == NONE ? 0 : read64(registers + offset); }

static void rings(const struct bell_entry *entry, const struct way *way, u64 *times)
{
    u64 step = entry->mode == MODE_COUNTING, value = step ? 1 : entry->value;
    for (u32 left = entry->count; left;) {
        u32 n = left < BATCH ? left : BATCH;
        *times++ = batch(way, value, step, n);
        value += step * n;
        left -= n;
    }
}

static u64 wait_for_note(volatile u32 *note, u32 seen)
{
    while (*note == seen)
        asm volatile("pause");
    return rdtsc();
}

static void measure(u32 index, const struct bell_entry *entry, struct bell_result *result)
{
    static u32 ram[2], note;
    u32 batches = (entry->count + BATCH - 1) / BATCH, noted = entry->notes == NONE ? 0 : entry->roundtrips;
    u64 *ring_times = reserve(batches), *ram_times = reserve(batches);
    u64 *trip_times = reserve(entry->roundtrips), *note_times = reserve(noted);
    u64 at = pci_bar(slot, entry->bar) + entry->offset;
    u64 step = entry->mode == MODE_COUNTING, value = step ? entry->count + 1UL : entry->value;
    int is_ports = cfg_read32(slot, CFG_BAR0 + 4 * entry->bar) & 1;
    struct way way = {entry->space, entry->width, entry->mode, entry->flush, at};
    struct way to_ram = {SPACE_MEMORY, entry->width, entry->mode, 0, (u64)ram};

    check(entry->bar < 6 && at != entry->offset, "no such BAR");
    check(is_ports == (entry->space == SPACE_PORTS), "the BAR is in the other address space");
    irq_on_ring(0);
    write32(registers + BELL_RESET_COUNTERS, 1);
    flush();

    look(entry, entry->count);
    out32(PORT_MARK, index << 8 | PHASE_RINGS);
    rings(entry, &way, ring_times);
    out32(PORT_MARK, index << 8 | PHASE_RINGS_END);
    flush();
    result->rung = entry->count;
    result->received = counted(entry->counter);

    out32(PORT_MARK, index << 8 | PHASE_RAM);
    rings(entry, &to_ram, ram_times);
    out32(PORT_MARK, index << 8 | PHASE_RAM_END);

    irq_on_ring(1);
    irq_time = 0;
    look(entry, entry->roundtrips);
    out32(PORT_MARK, index << 8 | PHASE_ROUNDTRIPS);
    for (u32 trip = 0; trip < entry->roundtrips; trip++, value += step) {
        u64 begin = rdtsc();
        batch(&way, value, 0, 1);
        trip_times[trip] = wait_for_interrupt() - begin;
        result->answered++;
    }
    out32(PORT_MARK, index << 8 | PHASE_ROUNDTRIPS_END);
    irq_on_ring(0);

    if (noted) {
        write64(registers + entry->notes, (u64)&note);
        look(entry, noted);
        out32(PORT_MARK, index << 8 | PHASE_NOTES);
        for (u32 trip = 0; trip < noted; trip++, value += step) {
            u32 seen = note;
            u64 begin = rdtsc();
            batch(&way, value, 0, 1);
            note_times[trip] = wait_for_note(&note, seen) - begin;
            result->noted++;
        }
        out32(PORT_MARK, index << 8 | PHASE_NOTES_END);
        write64(registers + entry->notes, 0);
        flush();
    }
    result->received_in_all = counted(entry->counter);
    result->disorder = counted(entry->errors);
    result->rings = (u64)ring_times;
    result->ram = (u64)ram_times;
    result->trips = (u64)trip_times;
    result->notes = (u64)note_times;
}

static void program(void)
{
    const struct bell_parameters *parameters = (void *)PARAMETERS;
    const struct bell_entry *entries = (void *)(parameters + 1);
    struct bell_results *results = (void *)RESULTS;
    struct bell_result *each = (void *)(results + 1);

    check(parameters->magic == BELL_MAGIC, "the parameter page is not bell's");
    slot = pci_find(0x1234, 0xbe11);
    pci_enable(slot);
    pci_enable_msix(slot);
    registers = pci_bar(slot, 0);
    check(read32(registers) == 0xbe110001, "the device is not a bell");
    results->magic = BELL_MAGIC;
    free_results = (u64)(each + parameters->count);
    check(free_results <= RESULTS_END, "more entries than the results area holds");
    for (u32 i = 0; i < parameters->count; i++) {
        measure(i, &entries[i], &each[i]);
        results->done = i + 1;
    }
    leave(0);
}

void main(void)
{
#ifdef RING3
    enter_ring3(program);
#else
    program();
#endif
}
