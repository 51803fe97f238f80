#include "config.h"

#define CONFIG_ADDRESS 0xcf8
#define CONFIG_DATA 0xcfc

static u16 select(u32 slot, u32 offset)
{
    out32(CONFIG_ADDRESS, 0x80000000u | slot << 11 | (offset & 0xfc));
    return CONFIG_DATA + (offset & 3);
}

u32 cfg_read32(u32 slot, u32 offset) { return in32(select(slot, offset)); }
u16 cfg_read16(u32 slot, u32 offset) { return in16(select(slot, offset)); }
u8 cfg_read8(u32 slot, u32 offset) { return in8(select(slot, offset)); }
void cfg_write32(u32 slot, u32 offset, u32 value) { out32(select(slot, offset), value); }
void cfg_write16(u32 slot, u32 offset, u16 value) { out16(select(slot, offset), value); }

u32 pci_find(u32 vendor, u32 device)
{
    for (u32 slot = 0; slot < 32; slot++)
        if (cfg_read32(slot, 0) == (device << 16 | vendor))
            return slot;
    text("no device ");
    number(device << 16 | vendor);
    fail(" on the bus", __LINE__);
}

u32 pci_capability(u32 slot, u32 id)
{
    u32 at = cfg_read8(slot, CFG_CAPABILITIES) & 0xfc;
    for (u32 hops = 0; at && hops < 48; hops++) {
        if (cfg_read8(slot, at) == id)
            return at;
        at = cfg_read8(slot, at + 1) & 0xfc;
    }
    return 0;
}

u64 pci_bar(u32 slot, u32 bar)
{
    u64 low = cfg_read32(slot, CFG_BAR0 + 4 * bar);
    if (low & 1)
        return low & ~3UL;
    if ((low & 6) == 4)
        low |= (u64)cfg_read32(slot, CFG_BAR0 + 4 * bar + 4) << 32;
    return low & ~15UL;
}

void pci_enable(u32 slot)
{
    cfg_write16(slot, CFG_COMMAND, COMMAND_PORTS | COMMAND_MEMORY | COMMAND_MASTER);
}

void pci_enable_msix(u32 slot)
{
    u32 cap = pci_capability(slot, CAP_MSIX);
    check(cap, "the device has no MSI-X");
    u32 where = cfg_read32(slot, cap + 4);
    u64 entry = pci_bar(slot, where & 7) + (where & ~7u);

    cfg_write16(slot, cap + 2, 0xc000);          /* enabled, the whole function masked while we fill the table */
    write32(entry + 0, MSI_ADDRESS);
    write32(entry + 4, 0);
    write32(entry + 8, IRQ_VECTOR);
    write32(entry + 12, 0);
    cfg_write16(slot, cap + 2, 0x8000);
}

void pci_enable_msi(u32 slot, int on)
{
    u32 cap = pci_capability(slot, CAP_MSI);
    check(cap, "the device has no MSI");
    u16 control = cfg_read16(slot, cap + 2);
    u32 data = control & 0x80 ? 12 : 8;          /* 64-bit addresses move the data field */

    cfg_write32(slot, cap + 4, MSI_ADDRESS);
    if (control & 0x80)
        cfg_write32(slot, cap + 8, 0);
    cfg_write16(slot, cap + data, IRQ_VECTOR);
    cfg_write16(slot, cap + 2, (control & ~0x71) | (on ? 1 : 0));
}
