/* PCI configuration by mechanism #1 (PCI 3.0, 3.2.2.3.2): bus 0 only. */
#ifndef CONFIG_H
#define CONFIG_H

#include "cpu.h"

#define CFG_COMMAND 0x04
#define CFG_BAR0 0x10
#define CFG_CAPABILITIES 0x34
#define CFG_LINE 0x3c            /* the VMM, as firmware would, leaves the GSI of the device's INTx here */

#define COMMAND_PORTS 1
#define COMMAND_MEMORY 2
#define COMMAND_MASTER 4

#define CAP_MSI 0x05
#define CAP_MSIX 0x11

u32 cfg_read32(u32 slot, u32 offset);
u16 cfg_read16(u32 slot, u32 offset);
u8 cfg_read8(u32 slot, u32 offset);
void cfg_write32(u32 slot, u32 offset, u32 value);
void cfg_write16(u32 slot, u32 offset, u16 value);

u32 pci_find(u32 vendor, u32 device);            /* slot; fails the guest when there is none */
u32 pci_capability(u32 slot, u32 id);            /* offset in config space, 0 = none */
u64 pci_bar(u32 slot, u32 bar);                  /* address, type bits removed */
void pci_enable(u32 slot);                       /* decoding and bus mastering on */
void pci_enable_msix(u32 slot);                  /* vector 0 goes to IRQ_VECTOR, the others stay masked */
void pci_enable_msi(u32 slot, int on);

#endif
