/* The bell device (docs/devices.md) as a C programmer would write it: the baseline for the device in Python.
 *
 * reference FD [polled] serves one client on the connected socket FD, then ends; polled, it has BAR3 to be mapped, where
 * it looks for the guest's count when it is told to. It keeps the same promises as the device in Python: a read flushes
 * rings, a ring sees every write that was posted before it, rings coalesce. It trusts its client.
 */
#define _GNU_SOURCE
#include "wire.h"

#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>

enum { VECTORS = 8, MATCH = 0x42, SCRATCH = 256, MAPS = 64, MSIX_AT = 0x40 };
enum {
    ID = 0x00, IRQ_ON_RING = 0x04, IRQ_NOW = 0x08, RESET_COUNTERS = 0x0c, PLAIN = 0x10, LOAD = 0x14, NOTE_AT = 0x18,
    BATCHED = 0x20, LOOK = 0x24, COUNTERS = 0x40, TIME = 0xc0,
};
enum counter {                                   /* u64 registers from COUNTERS on */
    WILDCARD_COUNT, MATCH_COUNT, VALUE_COUNT, PIO_COUNT, ACKED_COUNT, PLAIN_COUNT, PIO_PLAIN_COUNT, READ_COUNT,
    VALUE_ERRORS, ACKED_ERRORS, PLAIN_ERRORS, PIO_PLAIN_ERRORS,
    LOAD_COUNT, BATCHED_COUNT, BATCHED_ERRORS, MAPPED_COUNT, COUNTER_COUNT,
};
enum source { WILDCARD, MATCHED, PIO_BELL, VALUES, STRETCH, SOURCES, SOCKET };

static int sock, loop, bells;                    /* bells: an epoll with the sources alone */
static int ours[SOURCES], theirs[SOURCES];       /* both ends; an eventfd has but one */
static u64 rung[SOURCES];                        /* taken out of an eventfd, not yet acted upon */
static u64 counters[COUNTER_COUNT];
static u32 irq_on_ring, plain_value, pio_plain_value;
static u64 arrival;                              /* ns of CLOCK_MONOTONIC */
static u8 scratch[SCRATCH], config[256];
static int irq_fds[VECTORS];
static struct { u64 address, size; void *at; } maps[MAPS];
static volatile u32 *note;                       /* a word of the guest's, changed with each arrival */
static int polled = -1;                          /* the file behind BAR3 */
static volatile u32 *mapped;
static u32 looking;                              /* arrivals to look for */
static u64 sizes[REGIONS] = {[BAR0] = 4096, [BAR1] = 4096, [BAR2] = 16, [BAR4] = 4096, [CONFIG] = 256};

static void trigger(u32 vector)
{
    if (vector < VECTORS && irq_fds[vector] >= 0)
        eventfd_write(irq_fds[vector], 1);
}

static void arrived(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    arrival = now.tv_sec * 1000000000ull + now.tv_nsec;
    if (note)
        ++*note;
    if (irq_on_ring)
        trigger(irq_on_ring - 1);
}

static void counted(enum counter count, enum counter errors, u64 value)
{
    counters[errors] += (u32)value != (u32)++counters[count];
    arrived();
}

/* ---- registers */

static void note_at(u64 address)
{
    note = NULL;
    for (int i = 0; i < MAPS; i++)
        if (maps[i].at && address >= maps[i].address && address + sizeof *note <= maps[i].address + maps[i].size && address)
            note = (u32 *)((u8 *)maps[i].at + (address - maps[i].address));
}

static void write_region(u32 region, u64 offset, const u8 *data, u32 size)
{
    u64 value = 0;
    memcpy(&value, data, size > 8 ? 8 : size);
    switch (region) {
    case BAR0:
        switch (offset) {
        case IRQ_ON_RING: irq_on_ring = value; break;
        case IRQ_NOW: trigger(value); break;
        case RESET_COUNTERS: memset(counters, 0, sizeof counters), *mapped = 0; break;
        case PLAIN: plain_value = value; counted(PLAIN_COUNT, PLAIN_ERRORS, value); break;
        case BATCHED: counted(BATCHED_COUNT, BATCHED_ERRORS, value); break;
        case NOTE_AT: note_at(value); break;
        case LOOK: looking = value; break;
        }
        break;
    case BAR1:
        if (offset == 0x00) counters[WILDCARD_COUNT]++, arrived();
        else if (offset == 0x10 && value == MATCH) counters[MATCH_COUNT]++, arrived();
        else if (offset == 0x20) counted(VALUE_COUNT, VALUE_ERRORS, value);
        else if (offset >= 0x100 && offset + size <= 0x100 + SCRATCH) {
            memcpy(scratch + offset - 0x100, data, size);
            if (offset == 0x100) counted(ACKED_COUNT, ACKED_ERRORS, value);
        }
        break;
    case BAR2:
        if (offset == 0) counters[PIO_COUNT]++, arrived();
        else if (offset == 4) pio_plain_value = value, counted(PIO_PLAIN_COUNT, PIO_PLAIN_ERRORS, value);
        break;
    case CONFIG:                                 /* command, the BARs, the line, MSI-X control */
        for (u32 at = offset; at < offset + size; at++)
            if (at == 4 || at == 5 || (at >= 0x10 && at < 0x28) || at == 0x3c || at == MSIX_AT + 3)
                config[at] = data[at - offset];
    }
}

static void read_region(u32 region, u64 offset, u32 size, u8 *data)
{
    u64 value = 0;
    memset(data, 0, size);
    if (region == CONFIG && offset + size <= sizeof config)
        memcpy(data, config + offset, size);
    else if (region == BAR1 && offset >= 0x100 && offset + size <= 0x100 + SCRATCH)
        counters[READ_COUNT]++, memcpy(data, scratch + offset - 0x100, size);
    else if (region == BAR2 && offset == 4)
        memcpy(data, &pio_plain_value, size > 4 ? 4 : size);
    else if (region == BAR0) {
        if (offset == ID) value = 0xbe110001;
        else if (offset == IRQ_ON_RING) value = irq_on_ring;
        else if (offset == PLAIN) value = plain_value;
        else if (offset == TIME) value = arrival;
        else if (offset == LOAD) value = ++counters[LOAD_COUNT], arrived();
        else if (offset >= COUNTERS && offset < COUNTERS + sizeof counters) value = counters[(offset - COUNTERS) / 8];
        memcpy(data, &value, size > 8 ? 8 : size);
    }
}

/* ---- doorbells */

static void serve_commands(enum source source)
{
    struct io_command command;
    while (recv(ours[source], &command, sizeof command, MSG_DONTWAIT) == sizeof command) {
        struct io_response response = {0};
        u32 size = 1 << (command.info & 3);
        if (source == VALUES)
            write_region(BAR1, 0x20, (u8 *)&command.data, 4);
        else if (command.command)
            write_region(BAR1, 0x100 + command.offset, (u8 *)&command.data, size);
        else
            read_region(BAR1, 0x100 + command.offset, size, (u8 *)&response.data);
        if (command.info & 0x10)
            send(ours[source], &response, sizeof response, MSG_NOSIGNAL);
    }
}

static void take(enum source source)             /* commands stay in their socket, which keeps them in order */
{
    u64 count;
    if (source < VALUES && read(ours[source], &count, sizeof count) == sizeof count)
        rung[source] += count;
}

static void act(enum source source)
{
    static const enum counter count[] = {WILDCARD_COUNT, MATCH_COUNT, PIO_COUNT};
    if (source >= VALUES)
        serve_commands(source);
    else if (rung[source]) {
        counters[count[source]] += rung[source];
        rung[source] = 0;
        arrived();
    }
}

static void flush(int discard)
{
    struct epoll_event ready[SOURCES];
    int count = epoll_wait(bells, ready, SOURCES, 0);
    for (int i = 0; i < count; i++)
        take(ready[i].data.u32);
    for (int source = 0; source < SOURCES; source++)
        if (discard && source < VALUES)
            rung[source] = 0;
        else if (rung[source])
            act(source);
    for (int i = 0; i < count; i++)
        if (ready[i].data.u32 >= VALUES)
            act(ready[i].data.u32);
}

/* ---- messages */

static const char answer[] = "{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":1048576,\"max_dma_maps\":64,"
                             "\"pgsizes\":4096,\"write_multiple\":true,\"io_fds\":[\"ioeventfd\",\"ioregionfd\"]}}";

static void answer_fail(struct header header, u32 error)
{
    header.flags = REPLY | ERROR;
    header.error = error;
    send_message(sock, header, NULL, 0, NULL, 0, NULL, 0);
}

static void answer_io_fds(struct header header, const struct io_fds *request)
{
    struct { struct io_fds head; struct sub_region subs[4]; } reply = {.head = {.index = request->index}};
    int fds[SOURCES], count = 0;
    if (request->index == BAR1) {
        reply.subs[0] = (struct sub_region){0x00, 0, 0, IOEVENTFD, 0, 0, 0};
        reply.subs[1] = (struct sub_region){0x10, 4, 1, IOEVENTFD, DATAMATCH, 0, MATCH};
        reply.subs[2] = (struct sub_region){0x20, 4, 2, IOREGIONFD, POSTED, 0, 0};
        reply.subs[3] = (struct sub_region){0x100, SCRATCH, 3, IOREGIONFD, 0, 0, 0};
        fds[0] = theirs[WILDCARD], fds[1] = theirs[MATCHED], fds[2] = theirs[VALUES], fds[3] = theirs[STRETCH];
        count = 4;
    } else if (request->index == BAR2) {
        reply.subs[0] = (struct sub_region){0x0, 0, 0, IOEVENTFD, PIO, 0, 0};
        fds[0] = theirs[PIO_BELL];
        count = 1;
    }
    u32 need = sizeof reply.head + count * sizeof reply.subs[0];
    reply.head.argsz = need, reply.head.count = count;
    int room = request->argsz >= need;
    send_message(sock, header, &reply, room ? need : sizeof reply.head, NULL, 0, fds, room ? count : 0);
}

static u32 set_irqs(const struct set_irqs *request, struct stream *stream)
{
    if (request->index != MSIX || request->start + request->count > VECTORS)
        return request->count ? EINVAL : 0;
    u32 count = request->count ? request->count : VECTORS;
    for (u32 i = 0; i < count && request->flags & (4 | 1) && request->flags & 32; i++) {
        int *fd = &irq_fds[request->start + i];
        if (*fd >= 0)
            close(*fd);
        *fd = (int)i < stream->fd_count ? stream->fds[i] : -1;
    }
    stream->fd_count = 0;
    return 0;
}

static u32 map_memory(const struct dma_map *request, struct stream *stream)
{
    struct stat file;
    int fd = stream->fd_count ? stream->fds[0] : -1;
    stream->fd_count = 0;
    for (int i = 0; i < MAPS; i++)
        if (maps[i].size && request->address < maps[i].address + maps[i].size &&
            maps[i].address < request->address + request->size)
            return EEXIST;
    for (int i = 0; i < MAPS; i++) {
        if (maps[i].size)
            continue;
        void *at = NULL;
        if (fd >= 0) {
            if (fstat(fd, &file) || request->offset + request->size > (u64)file.st_size)
                return EINVAL;
            at = mmap(NULL, request->size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, request->offset);
            close(fd);
            if (at == MAP_FAILED)
                return errno;
        }
        maps[i].address = request->address, maps[i].size = request->size, maps[i].at = at;
        return 0;
    }
    return ENOSPC;
}

static u32 unmap_memory(const struct dma_unmap *request)
{
    for (int i = 0; i < MAPS; i++)
        if (maps[i].size && maps[i].address == request->address && maps[i].size == request->size) {
            if (maps[i].at)
                munmap(maps[i].at, maps[i].size);
            maps[i].size = 0;
            return 0;
        }
    return ENOENT;
}

static void reset(void)
{
    flush(1);
    memset(counters, 0, sizeof counters);
    memset(scratch, 0, sizeof scratch);
    irq_on_ring = plain_value = pio_plain_value = 0;
    config[4] = config[5] = config[MSIX_AT + 3] = 0;
    looking = 0, note = NULL;
}

static void look(void)                           /* as long as the guest counts */
{
    struct timespec now;
    u64 end = counters[MAPPED_COUNT] + looking, deadline = 0;
    for (u64 tick = 0; counters[MAPPED_COUNT] < end; tick++) {
        u32 count = *mapped;
        if (count != counters[MAPPED_COUNT])
            counters[MAPPED_COUNT] = count, deadline = 0, arrived();
        if (tick % 1024)
            continue;
        clock_gettime(CLOCK_MONOTONIC, &now);
        if (!deadline)
            deadline = now.tv_sec + 2;
        if ((u64)now.tv_sec > deadline)
            break;
    }
    looking = 0;
}

static void respond(struct header header, const void *first, u32 first_size, const void *second, u32 second_size)
{
    header.flags = REPLY;
    header.error = 0;
    send_message(sock, header, first, first_size, second, second_size, NULL, 0);
}

static void handle(struct header header, u8 *payload, struct stream *stream)
{
    int posted = header.flags & NO_REPLY;
    u32 error = 0, size = header.size - sizeof header;
    struct access *access = (void *)payload;
    static u8 data[LARGEST];

    if (!posted && header.command != DEVICE_RESET)
        flush(0);
    switch (header.command) {
    case REGION_READ:
        if (access->region >= REGIONS || access->count > sizes[access->region] ||
            access->offset > sizes[access->region] - access->count)
            return answer_fail(header, EINVAL);
        read_region(access->region, access->offset, access->count, data);
        return respond(header, access, sizeof *access, data, access->count);
    case REGION_WRITE:
        if (access->region >= REGIONS || size != sizeof *access + access->count ||
            access->count > sizes[access->region] || access->offset > sizes[access->region] - access->count)
            return posted ? (void)0 : answer_fail(header, EINVAL);
        write_region(access->region, access->offset, payload + sizeof *access, access->count);
        return posted ? (void)0 : respond(header, access, sizeof *access, NULL, 0);
    case REGION_WRITE_MULTI: {
        u64 count = *(u64 *)payload;
        struct multi_entry *entries = (void *)(payload + 8);
        for (u64 i = 0; i < count && 8 + (i + 1) * sizeof *entries <= size; i++)
            write_region(entries[i].region, entries[i].offset, entries[i].data, entries[i].count);
        return posted ? (void)0 : respond(header, &count, sizeof count, NULL, 0);
    }
    case VERSION: {
        u16 numbers[] = {0, 1};
        return respond(header, numbers, sizeof numbers, answer, sizeof answer);
    }
    case GET_INFO: {
        struct device_info info = {sizeof info, 3, REGIONS, IRQ_KINDS};
        return respond(header, &info, sizeof info, NULL, 0);
    }
    case GET_REGION_INFO: {
        u32 index = ((struct region_info *)payload)->index;
        if (index >= REGIONS)
            return answer_fail(header, EINVAL);
        int to_map = index == BAR3 && sizes[BAR3];
        struct region_info info = {sizeof info, to_map ? 7 : sizes[index] ? 3 : 0, index, 0, sizes[index], 0};
        header.flags = REPLY;
        return send_message(sock, header, &info, sizeof info, NULL, 0, &polled, to_map);
    }
    case GET_REGION_IO_FDS:
        header.flags = REPLY;
        return answer_io_fds(header, (void *)payload);
    case GET_IRQ_INFO: {
        u32 index = ((struct irq_info *)payload)->index;
        struct irq_info info = {sizeof info, 1, index, index == MSIX ? VECTORS : 0};
        return respond(header, &info, sizeof info, NULL, 0);
    }
    case SET_IRQS: error = set_irqs((void *)payload, stream); break;
    case DMA_MAP: error = map_memory((void *)payload, stream); break;
    case DMA_UNMAP:
        error = unmap_memory((void *)payload);
        if (!error)
            return respond(header, payload, sizeof(struct dma_unmap), NULL, 0);
        break;
    case DEVICE_RESET: reset(); break;
    default: error = EINVAL;
    }
    if (error)
        answer_fail(header, error);
    else
        respond(header, NULL, 0, NULL, 0);
}

/* ---- start and loop */

static void watch(int epoll, int fd, u32 what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.u32 = what};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
        fail("epoll_ctl");
}

static void prepare(void)
{
    static const u8 identity[] = {0x34, 0x12, 0x11, 0xbe, 0, 0, 0x10, 0, 1, 0, 0x80, 0x08};
    static const u8 msix[] = {0x11, 0, VECTORS - 1, 0, BAR4, 0, 0, 0, BAR4, 8, 0, 0};   /* table at 0, bits at 0x800 */
    memcpy(config, identity, sizeof identity);
    config[0x18] = 1;                            /* BAR2: I/O ports */
    config[0x34] = MSIX_AT;
    memcpy(config + MSIX_AT, msix, sizeof msix);
    memset(irq_fds, -1, sizeof irq_fds);
    loop = epoll_create1(EPOLL_CLOEXEC), bells = epoll_create1(EPOLL_CLOEXEC);
    for (u32 source = 0; source < SOURCES; source++) {
        int pair[2];
        if (source >= VALUES) {
            if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair))
                fail("socketpair");
            ours[source] = pair[0], theirs[source] = pair[1];
        } else
            ours[source] = theirs[source] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        watch(bells, ours[source], source);
        watch(loop, ours[source], source);
    }
    watch(loop, sock, SOCKET);
    polled = memfd_create("bar3", MFD_CLOEXEC);
    if (polled < 0 || ftruncate(polled, 4096))
        fail("memfd");
    mapped = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, polled, 0);
}

int main(int argc, char **argv)
{
    static struct stream stream;
    struct epoll_event ready[SOURCES + 1];
    struct header header;
    u8 *payload;

    if (argc < 2)
        fail("usage: reference FD [polled]");
    sock = atoi(argv[1]);
    prepare();
    sizes[BAR3] = argc > 2 ? 4096 : 0;
    for (;;) {
        int count = epoll_wait(loop, ready, SOURCES + 1, -1), got;
        for (int i = 0; i < count; i++)
            if (ready[i].data.u32 != SOCKET)
                take(ready[i].data.u32);
        while ((got = receive_message(sock, &stream, MSG_DONTWAIT, &header, &payload)) > 0)
            handle(header, payload, &stream);    /* what was posted before a ring comes before it */
        if (got < 0)
            return 0;
        for (int i = 0; i < count; i++)
            if (ready[i].data.u32 != SOCKET)
                act(ready[i].data.u32);
        if (looking)
            look();
    }
}
