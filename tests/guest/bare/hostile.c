/* Writes to the doorbells of two devices whose servers send what QEMU must not believe. */
#include "config.h"

static u32 slots[2];

/* One BAR right behind the other, in a part of the address space that the firmware has left free. */
static void place(void)
{
    u32 base = (pci_bar(slots[0], 0) & ~0xfffffUL) - 0x100000;

    cfg_write32(slots[0], CFG_BAR0, base);
    cfg_write32(slots[1], CFG_BAR0, base + 0x1000);
}

static void turn_on(u32 first, u32 second)
{
    cfg_write16(first, CFG_COMMAND, 0);
    cfg_write16(second, CFG_COMMAND, 0);
    place();
    pci_enable(first);
    pci_enable(second);
}

static void drive(u32 slot)
{
    u64 bar = pci_bar(slot, 0);

    for (u32 offset = 0; offset < 0x1000; offset += 0x40)
        write32(bar + offset, offset);
    write32(bar + 0xffc, 0xffc);
    (void)read32(bar + 0x20);    /* the server has seen all messages when it answers */
}

void main(void)
{
    u32 count = 0;

    for (u32 slot = 0; slot < 32; slot++)
        if (cfg_read32(slot, 0) == 0x00011234 && count < 2)
            slots[count++] = slot;
    check(count == 2, "there are two devices");
    turn_on(slots[0], slots[1]);
    turn_on(slots[1], slots[0]);
    drive(slots[0]);
    drive(slots[1]);
}
