/* Rings bell's doorbells, one kind after the other: whoever runs it types a letter at the serial port for each. */
#include "config.h"

#define RINGS 200
#define SERIAL 0x3f8             /* 16550A: data, and line status at 5, bit 0: a byte has come */

#define MATCH 0x42
#define WILDCARD 0x00
#define DATAMATCH 0x10
#define VALUE 0x20
#define FEW 0x30
#define LATEST 0x40
#define REGION 0x100

static u64 control, bells;
static u16 ports;

static u8 typed(void)
{
    while (!(in8(SERIAL + 5) & 1))
        ;
    return in8(SERIAL);
}

static void count(const char *name, u32 offset)
{
    text(name);
    text(" ");
    number(read32(control + offset));
    text("\n");
}

static void counts(void)
{
    count("wildcard", 0x40);
    count("datamatch", 0x48);
    count("value", 0x50);
    count("pio", 0x58);
    count("acknowledged", 0x60);
    count("read", 0x78);
    count("value errors", 0x80);
    count("acknowledged errors", 0x88);
    count("few", 0xd0);
    count("few seen", 0xd8);
    count("latest value", 0xdc);
    count("latest", 0xe0);
    count("latest errors", 0xe8);
}

static void ring(u8 kind)
{
    for (u32 n = 1; n <= RINGS; n++)
        switch (kind) {
        case 'w': write32(bells + WILDCARD, n); break;
        case 'd': write32(bells + DATAMATCH, MATCH); break;
        case 'f': write32(bells + FEW, n & 7); break;
        case 'l': write32(bells + LATEST, n); break;
        case 'v': write32(bells + VALUE, n); break;
        case 'a': write32(bells + REGION, n); break;
        case 'r': check(read32(bells + REGION) == RINGS, "what was written is read back"); break;
        case 'p': out16(ports, n); break;
        }
}

void main(void)
{
    u32 slot = pci_find(0x1234, 0xbe11);
    u8 kind;

    pci_enable(slot);
    control = pci_bar(slot, 0);
    bells = pci_bar(slot, 1);
    ports = pci_bar(slot, 2);
    text("ready\n");
    while ((kind = typed()) != 'q') {
        if (kind == 'c')
            counts();
        else
            ring(kind);
        text("done\n");
    }
}
