/* Walk the bus, size the BARs, move one, and see that its doorbell moves with it. */
#include "config.h"

static const struct pci_parameters *parameters = (void *)PARAMETERS;
static u64 registers;            /* BAR0 */

static u64 size_of(u32 low, u32 high, u32 mask)
{
    u64 bits = (u64)high << 32 | (low & mask);
    return bits & -bits;
}

static void size_bars(u32 slot, struct pci_bar *bars)
{
    for (u32 bar = 0; bar < 6; bar++) {
        u32 at = CFG_BAR0 + 4 * bar, low = cfg_read32(slot, at), high = 0, wide;

        bars[bar].flags = low & (low & 1 ? 3 : 15);
        bars[bar].address = pci_bar(slot, bar);
        wide = (low & 7) == 4;
        cfg_write32(slot, at, ~0u);
        if (wide) {
            high = cfg_read32(slot, at + 4);
            cfg_write32(slot, at + 4, ~0u);
            bars[bar].size = size_of(cfg_read32(slot, at), cfg_read32(slot, at + 4), ~15u);
            cfg_write32(slot, at + 4, high);
        } else {
            bars[bar].size = size_of(cfg_read32(slot, at), 0, low & 1 ? ~3u : ~15u);
        }
        cfg_write32(slot, at, low);
        check(pci_bar(slot, bar) == bars[bar].address, "a BAR did not take its address back");
        bar += wide;
    }
}

static u64 ring(u64 bar)
{
    write32(bar + parameters->doorbell, 1);
    return read64(registers + parameters->counter);
}

void main(void)
{
    struct pci_results *results = (void *)RESULTS;
    u32 slot, at;
    u64 home;

    check(parameters->magic == PCI_MAGIC, "the parameter page is not pci's");
    results->magic = PCI_MAGIC;
    for (u32 each = 0; each < 32; each++)
        results->functions += cfg_read16(each, 0) != 0xffff;
    slot = pci_find(parameters->vendor, parameters->device);
    cfg_write16(slot, CFG_COMMAND, 0);
    size_bars(slot, results->bars);
    pci_enable(slot);
    registers = pci_bar(slot, 0);
    home = pci_bar(slot, parameters->doorbell_bar);
    at = CFG_BAR0 + 4 * parameters->doorbell_bar;
    check(read64(registers + parameters->counter) == 0, "the doorbell was rung before us");

    results->old_place = ring(home);
    cfg_write32(slot, at, parameters->new_address);
    results->after_move = ring(parameters->new_address);
    results->at_old_place = ring(home);

    cfg_write16(slot, CFG_COMMAND, COMMAND_PORTS | COMMAND_MASTER);
    write32(parameters->new_address + parameters->doorbell, 1);
    check(read32(registers) == ~0u, "BAR0 answers with memory decoding off");
    pci_enable(slot);
    results->decoding_off = read64(registers + parameters->counter);
    results->decoding_on = ring(parameters->new_address);

    cfg_write32(slot, at, home);
    results->moved_back = ring(home);
}
