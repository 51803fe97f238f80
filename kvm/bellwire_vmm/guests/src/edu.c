/* Drive QEMU's edu device (docs/specs/edu.rst): factorial, DMA both ways, interrupts by INTx and by MSI. */
#include "config.h"

#define EDU_ID 0x00
#define EDU_LIVENESS 0x04
#define EDU_FACTORIAL 0x08
#define EDU_STATUS 0x20
#define EDU_IRQ_STATUS 0x24
#define EDU_RAISE 0x60
#define EDU_ACKNOWLEDGE 0x64
#define EDU_DMA_SOURCE 0x80
#define EDU_DMA_TARGET 0x88
#define EDU_DMA_COUNT 0x90
#define EDU_DMA_COMMAND 0x98
#define EDU_BUFFER 0x40000

#define STATUS_IRQ 0x80
#define DMA_START 1
#define DMA_TO_RAM 2
#define DMA_IRQ 4

#define SOURCE 0x40000UL         /* in RAM, inside the results area */
#define TARGET 0x42000UL

static const struct edu_parameters *parameters = (void *)PARAMETERS;
static u64 edu;
static volatile u32 seen;        /* irq status as the handler found it */
static u32 let_pass;             /* how many more times the handler leaves the line asserted */

/* A line may come once more than it was raised (it is shared, and a KVM may resample it as it delivers it):
   a driver asks its device. */
static int on_interrupt(void)
{
    u32 status = read32(edu + EDU_IRQ_STATUS);
    if (!status)
        return 0;
    seen = status;
    if (let_pass) {
        let_pass--;
        return 1;
    }
    write32(edu + EDU_ACKNOWLEDGE, status);
    (void)read32(edu + EDU_IRQ_STATUS);  /* the line is down before the local APIC hears that we are done */
    return 1;
}

static u32 wait(void)
{
    wait_for_interrupt();
    return seen;
}

static u32 copy(u64 source, u64 target, u32 direction)
{
    write64(edu + EDU_DMA_SOURCE, source);
    write64(edu + EDU_DMA_TARGET, target);
    write64(edu + EDU_DMA_COUNT, parameters->length);
    write64(edu + EDU_DMA_COMMAND, DMA_START | DMA_IRQ | direction);
    return wait();
}

static void exercise(struct edu_interrupts *result, u32 unacknowledged)
{
    u8 *source = (u8 *)SOURCE, *target = (u8 *)TARGET;
    u32 before;

    irq_count = 0;
    write32(edu + EDU_STATUS, STATUS_IRQ);
    write32(edu + EDU_FACTORIAL, parameters->number);
    result->factorial_status = wait();
    result->factorial = read32(edu + EDU_FACTORIAL);

    for (u32 i = 0; i < parameters->length; i++) {
        source[i] = i * 7 + 1;
        target[i] = 0;
    }
    result->to_device_status = copy(SOURCE, EDU_BUFFER, 0);
    result->from_device_status = copy(EDU_BUFFER, TARGET, DMA_TO_RAM);
    for (result->copied = 0; result->copied < parameters->length; result->copied++)
        if (target[result->copied] != source[result->copied])
            break;

    before = irq_count;
    let_pass = unacknowledged;
    write32(edu + EDU_RAISE, 0x12340000);
    do
        result->raised_status = wait();
    while (irq_count - before <= unacknowledged);
    result->raised_arrivals = irq_count - before;
    result->arrivals = irq_count;
}

void main(void)
{
    struct edu_results *results = (void *)RESULTS;
    u32 slot;

    check(parameters->magic == EDU_MAGIC, "the parameter page is not edu's");
    check(parameters->length <= 4096, "edu's buffer holds 4096 bytes");
    slot = pci_find(0x1234, 0x11e8);
    pci_enable(slot);
    edu = pci_bar(slot, 0);
    results->magic = EDU_MAGIC;
    results->identification = read32(edu + EDU_ID);
    write32(edu + EDU_LIVENESS, 0x12345678);
    results->liveness = read32(edu + EDU_LIVENESS);

    irq_hook = on_interrupt;
    ioapic_route(cfg_read8(slot, CFG_LINE));
    exercise(&results->intx, parameters->unacknowledged);
    pci_enable_msi(slot, 1);
    exercise(&results->msi, 0);
}
