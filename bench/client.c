/* A client of the bell device, to time what a message costs: client FD COUNT writes samples to stdout.
 *
 * Each operation gives a record: its name (24 bytes, NUL-padded), the number of samples (u64), and the samples (u64, ns).
 */
#define _GNU_SOURCE
#include "wire.h"

#include <fcntl.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <time.h>

enum { IRQ_ON_RING = 0x04, RESET_COUNTERS = 0x0c, PLAIN = 0x10, TIME = 0xc0, BATCH = 64, MAPPED = 1 << 20 };

static int sock, memory, interrupt;
static struct stream stream;
static u32 written;

static u64 now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

/* Send a command and wait for its reply, whose payload is returned. */
static u8 *ask(u32 command, const void *first, u32 first_size, const void *second, u32 second_size,
               const int *fds, int fd_count)
{
    static u16 id;
    struct header header = {++id, command, 0, 0, 0}, reply;
    u8 *payload;
    send_message(sock, header, first, first_size, second, second_size, fds, fd_count);
    errno = 0;
    if (receive_message(sock, &stream, 0, &reply, &payload) != 1 || reply.id != header.id || reply.flags & ERROR)
        fail("reply");
    return payload;
}

static u64 read_region(u32 region, u64 offset, u32 size)
{
    u64 value = 0;
    struct access access = {offset, region, size};
    memcpy(&value, ask(REGION_READ, &access, sizeof access, NULL, 0, NULL, 0) + sizeof access, size);
    return value;
}

static void write_region(u32 region, u64 offset, u32 value)
{
    struct access access = {offset, region, sizeof value};
    ask(REGION_WRITE, &access, sizeof access, &value, sizeof value, NULL, 0);
}

/* ---- the operations: each returns how many ns one took */

static u64 reads(void)
{
    u64 begin = now();
    read_region(BAR0, IRQ_ON_RING, 4);
    return now() - begin;
}

static u64 writes(void)
{
    u64 begin = now();
    write_region(BAR0, PLAIN, ++written);
    return now() - begin;
}

static u64 posted_writes(void)                   /* one of a batch, and the read that shows it has been taken */
{
    struct access access = {PLAIN, BAR0, 4};
    struct header header = {0, REGION_WRITE, 0, NO_REPLY, 0};
    u64 begin = now();
    for (int i = 0; i < BATCH; i++) {
        written++;
        send_message(sock, header, &access, sizeof access, &written, sizeof written, NULL, 0);
    }
    read_region(BAR0, IRQ_ON_RING, 4);
    return (now() - begin) / BATCH;
}

static u64 multi_writes(void)                    /* one of a batch in a single message */
{
    u64 count = BATCH, begin = now();
    struct multi_entry entries[BATCH];
    for (int i = 0; i < BATCH; i++) {
        entries[i] = (struct multi_entry){PLAIN, BAR0, 4, {0}};
        written++;
        memcpy(entries[i].data, &written, sizeof written);
    }
    ask(REGION_WRITE_MULTI, &count, sizeof count, entries, sizeof entries, NULL, 0);
    return (now() - begin) / BATCH;
}

static u64 maps(void)                            /* a map and its unmap */
{
    struct dma_map map = {sizeof map, 3, 0, 1ull << 32, MAPPED};
    struct dma_unmap unmap = {sizeof unmap, 0, 1ull << 32, MAPPED};
    u64 begin = now();
    ask(DMA_MAP, &map, sizeof map, NULL, 0, &memory, 1);
    ask(DMA_UNMAP, &unmap, sizeof unmap, NULL, 0, NULL, 0);
    return now() - begin;
}

static u64 irq_settings(void)
{
    struct set_irqs request = {sizeof request, 4 | 32, MSIX, 0, 1};
    u64 begin = now();
    ask(SET_IRQS, &request, sizeof request, NULL, 0, &interrupt, 1);
    return now() - begin;
}

static int bell;
static u64 hooked;                               /* of the last ring: ns until the device's code ran; 0 = not told */

static u64 rings(void)                           /* an eventfd's ring, until the interrupt's eventfd */
{
    struct pollfd arrived = {interrupt, POLLIN, 0};
    u64 count, begin = now();
    eventfd_write(bell, 1);
    if (poll(&arrived, 1, 5000) != 1 || read(interrupt, &count, sizeof count) != sizeof count)
        fail("interrupt");
    u64 end = now();
    u64 at = read_region(BAR0, TIME, 8);
    hooked = at ? at - begin : 0;
    return end - begin;
}

/* ---- set-up */

static void introduce(void)
{
    static const char text[] = "{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":1048576,\"pgsizes\":4096,"
                               "\"write_multiple\":true,\"io_fds\":[\"ioeventfd\",\"ioregionfd\"]}}";
    struct { u16 major, minor; } version = {0, 1};
    ask(VERSION, &version, sizeof version, text, sizeof text, NULL, 0);
}

static int wildcard(void)                        /* the eventfd of the first doorbell of BAR1 */
{
    struct io_fds request = {4096, 0, BAR1, 0};
    struct io_fds *reply = (void *)ask(GET_REGION_IO_FDS, &request, sizeof request, NULL, 0, NULL, 0);
    struct sub_region *sub = (void *)(reply + 1);
    for (u32 i = 0; i < reply->count; i++, sub++)
        if (sub->offset == 0 && sub->type == IOEVENTFD && sub->fd_index < (u32)stream.fd_count)
            return stream.fds[sub->fd_index];
    fail("the wildcard doorbell");
    return -1;
}

static void enable(void)                         /* bus mastering and MSI-X on, as a driver does */
{
    struct access command = {4, CONFIG, 2};
    u16 on = 6;
    ask(REGION_WRITE, &command, sizeof command, &on, sizeof on, NULL, 0);
    for (u32 at = read_region(CONFIG, 0x34, 1); at; at = read_region(CONFIG, at + 1, 1))
        if (read_region(CONFIG, at, 1) == 0x11) {
            struct access control = {at + 2, CONFIG, 2};
            on = 0x8000 | read_region(CONFIG, at + 2, 2);
            ask(REGION_WRITE, &control, sizeof control, &on, sizeof on, NULL, 0);
        }
}

static void record(const char *name, const u64 *samples, u64 count)
{
    char label[24] = {0};
    strncpy(label, name, sizeof label - 1);
    fwrite(label, sizeof label, 1, stdout);
    fwrite(&count, sizeof count, 1, stdout);
    fwrite(samples, sizeof *samples, count, stdout);
}

int main(int argc, char **argv)
{
    static const struct { const char *name; u64 (*run)(void); int share; } operations[] = {
        {"REGION_READ", reads, 1},
        {"REGION_WRITE", writes, 1},
        {"REGION_WRITE posted", posted_writes, 16},
        {"REGION_WRITE_MULTI", multi_writes, 16},
        {"DMA_MAP and UNMAP", maps, 4},
        {"SET_IRQS", irq_settings, 4},
        {"ring to interrupt", rings, 2},
    };
    if (argc != 3)
        fail("usage: client FD COUNT");
    sock = atoi(argv[1]);
    u64 count = atoi(argv[2]), *samples = calloc(count, 8), *hooks = calloc(count, 8);
    memory = memfd_create("guest", MFD_CLOEXEC);
    interrupt = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (ftruncate(memory, MAPPED) || !samples || !hooks)
        fail("memory");
    introduce();
    bell = wildcard();
    enable();
    irq_settings();
    write_region(BAR0, RESET_COUNTERS, 1);
    for (u32 i = 0; i < sizeof operations / sizeof *operations; i++) {
        u64 n = count / operations[i].share ? count / operations[i].share : 1;
        write_region(BAR0, IRQ_ON_RING, operations[i].run == rings);
        operations[i].run();                     /* warm */
        for (u64 k = 0; k < n; k++) {
            samples[k] = operations[i].run();
            hooks[k] = hooked;
        }
        record(operations[i].name, samples, n);
        if (operations[i].run == rings && hooked)
            record("ring to hook", hooks, n);
    }
    return 0;
}
