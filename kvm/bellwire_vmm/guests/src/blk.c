/* Read a virtio disk (virtio 1.2, 4.1 and 5.2): one split queue, first polled, then with interrupts. */
#include "config.h"

#define CAP_VENDOR 0x09
#define CAP_COMMON 1             /* cfg_type, virtio 1.2, 4.1.4 */
#define CAP_NOTIFY 2
#define CAP_DEVICE 4

#define DRIVER_FEATURE_SELECT 0x08
#define DRIVER_FEATURE 0x0c
#define DEVICE_STATUS 0x14
#define QUEUE_SELECT 0x16
#define QUEUE_SIZE 0x18
#define QUEUE_VECTOR 0x1a
#define QUEUE_ENABLE 0x1c
#define QUEUE_NOTIFY_OFF 0x1e
#define QUEUE_DESC 0x20
#define QUEUE_DRIVER 0x28
#define QUEUE_DEVICE 0x30

#define ACKNOWLEDGE 1
#define DRIVER 2
#define DRIVER_OK 4
#define FEATURES_OK 8
#define VERSION_1 1              /* bit 32, so bit 0 of the second word */

#define ENTRIES 8
#define SECTOR 512
#define NO_INTERRUPT 1
#define NEXT 1
#define WRITE 2

struct descriptor { u64 address; u32 length; u16 flags, next; };
struct available { u16 flags, index, ring[ENTRIES]; };
struct used { u16 flags, index; struct { u32 id, length; } ring[ENTRIES]; };
struct request { u32 type, reserved; u64 sector; };

/* In RAM, inside the results area. */
static struct descriptor *const descriptors = (void *)0x30000UL;
static volatile struct available *const available = (void *)0x31000UL;
static volatile struct used *const used = (void *)0x32000UL;
static volatile struct request *const request = (void *)0x33000UL;
static volatile u8 *const status = (void *)0x33100UL;
static volatile u64 *const data = (void *)0x34000UL;

static const struct blk_parameters *parameters = (void *)PARAMETERS;
static volatile struct blk_results *const results = (void *)RESULTS;

static u64 common, device, bell;
static u32 multiplier;

static void write8(u64 at, u8 value) { *(volatile u8 *)at = value; }
static void write16(u64 at, u16 value) { *(volatile u16 *)at = value; }
static u16 read16(u64 at) { return *(volatile u16 *)at; }

static void locate(u32 slot)
{
    u32 at = cfg_read8(slot, CFG_CAPABILITIES) & 0xfc;
    for (u32 hops = 0; at && hops < 48; hops++) {
        if (cfg_read8(slot, at) == CAP_VENDOR) {
            u64 place = pci_bar(slot, cfg_read8(slot, at + 4)) + cfg_read32(slot, at + 8);
            u8 kind = cfg_read8(slot, at + 3);
            if (kind == CAP_COMMON)
                common = place;
            else if (kind == CAP_DEVICE)
                device = place;
            else if (kind == CAP_NOTIFY) {
                bell = place;
                multiplier = cfg_read32(slot, at + 16);
            }
        }
        at = cfg_read8(slot, at + 1) & 0xfc;
    }
    check(common && device && bell, "the device lacks a capability");
}

static void advance(u8 bit)
{
    write8(common + DEVICE_STATUS, read8(common + DEVICE_STATUS) | bit);
}

static void start(void)
{
    write8(common + DEVICE_STATUS, 0);
    advance(ACKNOWLEDGE);
    advance(DRIVER);
    write32(common + DRIVER_FEATURE_SELECT, 1);
    write32(common + DRIVER_FEATURE, VERSION_1);
    advance(FEATURES_OK);
    check(read8(common + DEVICE_STATUS) & FEATURES_OK, "the device refuses VERSION_1");
    write16(common + QUEUE_SELECT, 0);
    write16(common + QUEUE_SIZE, ENTRIES);
    write16(common + QUEUE_VECTOR, 0);
    write64(common + QUEUE_DESC, (u64)descriptors);
    write64(common + QUEUE_DRIVER, (u64)available);
    write64(common + QUEUE_DEVICE, (u64)used);
    write16(common + QUEUE_ENABLE, 1);
    bell += multiplier * read16(common + QUEUE_NOTIFY_OFF);
    advance(DRIVER_OK);

    descriptors[0] = (struct descriptor){(u64)request, sizeof(*request), NEXT, 1};
    descriptors[1] = (struct descriptor){(u64)data, SECTOR, NEXT | WRITE, 2};
    descriptors[2] = (struct descriptor){(u64)status, 1, WRITE, 0};
}

/* x86 keeps stores in order, so the index is never seen before what it stands for. */
static void ask(u64 sector)
{
    request->sector = sector;
    *status = 0xff;
    available->ring[available->index % ENTRIES] = 0;
    available->index++;
    write16(bell, 0);
}

static void verify(u64 sector)
{
    results->failed += *status != 0;
    for (u32 word = 0; word < SECTOR / 8; word++)
        if (data[word] != sector * (SECTOR / 8) + word) {
            results->wrong++;
            return;
        }
}

void main(void)
{
    u32 slot;
    u64 sector, begin;

    check(parameters->magic == BLK_MAGIC, "the parameter page is not blk's");
    slot = pci_find(0x1af4, 0x1042);
    pci_enable(slot);
    pci_enable_msix(slot);
    locate(slot);
    start();
    results->magic = BLK_MAGIC;
    results->sectors = read32(device);
    check(results->sectors, "the disk is empty");

    available->flags = NO_INTERRUPT;
    out32(PORT_MARK, PHASE_RINGS);
    begin = rdtsc();
    for (u32 n = 0; n < parameters->polled; n++) {
        sector = n % results->sectors;
        ask(sector);
        while (used->index != available->index)
            asm volatile("pause" : : : "memory");
        verify(sector);
        results->polled++;
    }
    results->ticks = rdtsc() - begin;
    out32(PORT_MARK, PHASE_RINGS_END);

    available->flags = 0;
    out32(PORT_MARK, PHASE_ROUNDTRIPS);
    for (u32 n = 0; n < parameters->waited; n++) {
        sector = n % results->sectors;
        ask(sector);
        wait_for_interrupt();
        check(used->index == available->index, "an interrupt, and nothing used");
        verify(sector);
        results->waited++;
    }
    out32(PORT_MARK, PHASE_ROUNDTRIPS_END);
}
