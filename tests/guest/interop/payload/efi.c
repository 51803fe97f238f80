/*
 * An EFI application (UEFI 2.10): it reads the last MiB of the machine's disk, prints its CRC-32, and writes a block
 * before that MiB. It talks to the first serial port, and has no library.
 */
#include <stdint.h>

#define EFI __attribute__((ms_abi))
#define OFFSET(type, member, at) _Static_assert(__builtin_offsetof(type, member) == (at), #member)

enum { COM1 = 0x3f8, READ = 1 << 20 };

struct guid {
    uint32_t a;
    uint16_t b, c;
    uint8_t d[8];
};

/* 13.9 EFI Block I/O Protocol */
struct media {
    uint32_t id;
    uint8_t removable, present, is_partition, read_only, caching;
    uint32_t block_size, alignment;
    uint64_t last_block;
};
OFFSET(struct media, last_block, 24);

struct block_io {
    uint64_t revision;
    struct media *media;
    void *reset;
    uint64_t(EFI *read)(struct block_io *, uint32_t media, uint64_t block, uint64_t size, void *);
    uint64_t(EFI *write)(struct block_io *, uint32_t media, uint64_t block, uint64_t size, const void *);
    uint64_t(EFI *flush)(struct block_io *);
};

/* 4.4 EFI Boot Services Table */
struct boot_services {
    uint64_t header[3];
    void *memory_and_events[13];
    void *interfaces[3];
    uint64_t(EFI *protocol_of)(void *handle, const struct guid *, void *found); /* HandleProtocol */
    void *images_and_drivers[19];
    uint64_t(EFI *handles_with)(uint32_t how, const struct guid *, void *, uint64_t *count, void ***handles);
    void *more_interfaces[3];
    uint64_t(EFI *crc32)(const void *, uint64_t size, uint32_t *crc);
};
OFFSET(struct boot_services, protocol_of, 152);
OFFSET(struct boot_services, handles_with, 312); /* LocateHandleBuffer */
OFFSET(struct boot_services, crc32, 344);

/* 4.3 EFI System Table */
struct system_table {
    uint64_t header[3];
    void *vendor;
    uint64_t revision;
    void *console[6], *runtime;
    struct boot_services *boot;
};
OFFSET(struct system_table, boot, 96);

static uint8_t content[READ];
static const char mark[] = "written by an EFI program ";

static void put(char letter)
{
    uint8_t status;
    do
        __asm__ volatile("inb %w1, %0" : "=a"(status) : "d"(COM1 + 5));
    while (!(status & 0x20)); /* the transmitter is full */
    __asm__ volatile("outb %0, %w1" : : "a"(letter), "d"(COM1));
}

static void print(const char *text)
{
    while (*text)
        put(*text++);
}

static void print_hex(uint32_t value)
{
    for (int shift = 28; shift >= 0; shift -= 4)
        put("0123456789abcdef"[value >> shift & 15]);
}

static uint64_t EFI failed(const char *what, uint64_t status)
{
    print("efi program: ");
    print(what);
    print(" fails with ");
    print_hex((uint32_t)status);
    print("\n");
    return status;
}

/* The machine's only disk; partitions of it have the protocol, too. */
static struct block_io *find_disk(struct boot_services *boot)
{
    static const struct guid block_io = {0x964e5b21, 0x6459, 0x11d2, {0x8e, 0x39, 0, 0xa0, 0xc9, 0x69, 0x72, 0x3b}};
    uint64_t count;
    void **handles;
    struct block_io *disk;
    if (boot->handles_with(2 /* ByProtocol */, &block_io, 0, &count, &handles))
        return 0;
    while (count--)
        if (!boot->protocol_of(handles[count], &block_io, &disk) && disk->media->present && !disk->media->is_partition)
            return disk;
    return 0;
}

uint64_t EFI entry(void *image, struct system_table *system)
{
    (void)image;
    struct block_io *disk = find_disk(system->boot);
    uint32_t crc;
    if (!disk)
        return failed("finding the disk", 0);
    struct media *media = disk->media;
    uint64_t from = media->last_block + 1 - READ / media->block_size;
    uint64_t status = disk->read(disk, media->id, from, READ, content);
    if (status)
        return failed("reading", status);
    status = system->boot->crc32(content, READ, &crc);
    if (status)
        return failed("CalculateCrc32", status);
    for (unsigned at = 0; at < sizeof mark - 1; at++)
        content[at] = (uint8_t)mark[at];
    *(uint32_t *)(content + sizeof mark - 1) = crc;
    status = disk->write(disk, media->id, from - 1, media->block_size, content);
    if (!status)
        status = disk->flush(disk);
    if (status)
        return failed("writing", status);
    print("efi program: crc ");
    print_hex(crc);
    print("\n");
    for (;;)
        __asm__ volatile("hlt");
}
