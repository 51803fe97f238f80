/* The plainest VMM that can run the bell guest: what our VMM's loop is measured against.
 *
 * vmm SOCKET MEMORY STATE: a device on SOCKET, guest memory (already holding the guest) in the file MEMORY, and in the file
 * STATE what a vCPU starts with: struct kvm_sregs, struct kvm_regs, and the leaves of CPUID. It ends with the guest's own
 * exit code. One vCPU, one device in slot 1, its BARs where nobody moves them; one MSI-X vector.
 */
#include "wire.h"

#include <fcntl.h>
#include <linux/kvm.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>

enum { TEXT = 0xe9, LEAVE = 0xf4, MARK = 0xf5, CONFIG_ADDRESS = 0xcf8, CONFIG_DATA = 0xcfc, SLOT = 1, GSI = 24 };
enum { BARS = 6, BAR_AT = 0x10, PORTS = 0xc000 };
enum { BATCHED = 0x20 };                         /* the register of BAR0 whose writes may wait for an exit */
static const u64 FIRST = 0xe0000000;             /* memory BARs lie 64 KiB apart */

static int sock, vm, vcpu, interrupt;
static struct stream stream;
static struct kvm_run *run;
static u32 config_address, table_bar, msix_at;
static u64 bars[BARS];
static struct { u32 address, high, data, control; } entry;     /* vector 0, the only one in use */
static int values = -1, stretch = -1;            /* ioregionfd sockets: a posted doorbell, an acknowledged stretch */
static struct sub_region value_region, stretch_region;
static struct kvm_coalesced_mmio_ring *late;     /* writes that have waited */
static u32 late_most;
static int is_mapped;                            /* a device that polls: no write is posted beside its memory */

static void check(int result, const char *what)
{
    if (result < 0)
        fail(what);
}

/* ---- the device */

static u8 *ask(u32 command, const void *first, u32 first_size, const void *second, u32 second_size,
               const int *fds, int fd_count)
{
    static u16 id;
    struct header header = {++id, command, 0, 0, 0}, reply;
    u8 *payload;
    send_message(sock, header, first, first_size, second, second_size, fds, fd_count);
    if (receive_message(sock, &stream, 0, &reply, &payload) != 1 || reply.flags & ERROR)
        fail("reply");
    return payload;
}

static void read_region(u32 region, u64 offset, void *data, u32 size)
{
    struct access access = {offset, region, size};
    memcpy(data, ask(REGION_READ, &access, sizeof access, NULL, 0, NULL, 0) + sizeof access, size);
}

static void write_region(u32 region, u64 offset, const void *data, u32 size, int posted)
{
    struct access access = {offset, region, size};
    struct header header = {0, REGION_WRITE, 0, NO_REPLY, 0};
    if (posted)
        send_message(sock, header, &access, sizeof access, data, size, NULL, 0);
    else
        ask(REGION_WRITE, &access, sizeof access, data, size, NULL, 0);
}

static u64 relay(int fd, u64 user_data, u64 offset, const void *data, u32 size, int is_write, int wait)
{
    struct io_command command = {.command = is_write, .user_data = user_data, .offset = offset};
    struct io_response response = {0};
    command.info = __builtin_ctz(size) | (wait ? 0x10 : 0);
    if (is_write)
        memcpy(&command.data, data, size);
    if (send(fd, &command, sizeof command, MSG_NOSIGNAL) != sizeof command ||
        (wait && recv(fd, &response, sizeof response, 0) != sizeof response))
        fail("ioregionfd");
    return response.data;
}

static void register_bells(u32 bar)
{
    struct io_fds request = {4096, 0, bar, 0};
    struct io_fds *reply = (void *)ask(GET_REGION_IO_FDS, &request, sizeof request, NULL, 0, NULL, 0);
    struct sub_region *sub = (void *)(reply + 1);
    for (u32 i = 0; i < reply->count; i++, sub++) {
        int fd = stream.fds[sub->fd_index];
        if (sub->type == IOREGIONFD) {
            if (sub->flags & POSTED) values = fd, value_region = *sub;
            else stretch = fd, stretch_region = *sub;
            continue;
        }
        struct kvm_ioeventfd bell = {
            .datamatch = sub->value, .addr = bars[bar] + sub->offset, .len = sub->size, .fd = fd,
            .flags = (sub->flags & DATAMATCH ? KVM_IOEVENTFD_FLAG_DATAMATCH : 0) |
                     (sub->flags & PIO ? KVM_IOEVENTFD_FLAG_PIO : 0),
        };
        check(ioctl(vm, KVM_IOEVENTFD, &bell), "KVM_IOEVENTFD");
    }
}

static void map_bar(u32 bar, u64 size, u64 offset)
{
    struct kvm_userspace_memory_region region = {
        .slot = 1 + bar, .guest_phys_addr = bars[bar], .memory_size = size,
        .userspace_addr = (u64)mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, stream.fds[0], offset),
    };
    check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
    is_mapped = 1;
}

static void hold_back(u64 address, u32 size)     /* until the next exit */
{
    struct kvm_coalesced_mmio_zone zone = {.addr = address, .size = size};
    late = (void *)((u8 *)run + 4096 * ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_COALESCED_MMIO));
    late_most = (4096 - sizeof *late) / sizeof late->coalesced_mmio[0];
    check(ioctl(vm, KVM_REGISTER_COALESCED_MMIO, &zone), "KVM_REGISTER_COALESCED_MMIO");
}

static void bring_late_writes(void)
{
    struct { u64 count; struct multi_entry entries[256]; } multi = {0};
    struct header header = {0, REGION_WRITE_MULTI, 0, NO_REPLY, 0};
    for (u32 at = late->first; at != late->last; at = (at + 1) % late_most, late->first = at) {
        struct kvm_coalesced_mmio *write = &late->coalesced_mmio[at];
        struct multi_entry *entry = &multi.entries[multi.count++];
        *entry = (struct multi_entry){write->phys_addr - bars[BAR0], BAR0, write->len, {0}};
        memcpy(entry->data, write->data, sizeof entry->data);
    }
    send_message(sock, header, &multi, 8 + multi.count * sizeof multi.entries[0], NULL, 0, NULL, 0);
}

static void plug(int memory, u64 memory_size)
{
    static const char text[] = "{\"capabilities\":{\"max_msg_fds\":16,\"max_data_xfer_size\":1048576,\"pgsizes\":4096,"
                               "\"write_multiple\":true,\"io_fds\":[\"ioeventfd\",\"ioregionfd\"]}}";
    struct { u16 major, minor; } version = {0, 1};
    struct dma_map map = {sizeof map, 3, 0, 0, memory_size};
    struct set_irqs irqs = {sizeof irqs, 4 | 32, MSIX, 0, 1};
    u8 config[256];

    ask(VERSION, &version, sizeof version, text, sizeof text, NULL, 0);
    ask(DEVICE_RESET, NULL, 0, NULL, 0, NULL, 0);
    read_region(CONFIG, 0, config, sizeof config);
    for (msix_at = config[0x34]; msix_at && config[msix_at] != 0x11; msix_at = config[msix_at + 1])
        ;
    table_bar = config[msix_at + 4] & 7;         /* the table begins its BAR */
    for (u32 bar = 0; bar < BARS; bar++) {
        struct region_info info = {.argsz = sizeof info, .index = bar};
        info = *(struct region_info *)ask(GET_REGION_INFO, &info, sizeof info, NULL, 0, NULL, 0);
        if (info.size)
            bars[bar] = config[BAR_AT + 4 * bar] & 1 ? PORTS : FIRST + bar * 0x10000;
        if (info.flags & MAPPABLE)
            map_bar(bar, info.size, info.offset);
        else if (info.size)
            register_bells(bar);
    }
    if (!is_mapped)
        hold_back(bars[BAR0] + BATCHED, 4);
    ask(DMA_MAP, &map, sizeof map, NULL, 0, &memory, 1);
    interrupt = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    ask(SET_IRQS, &irqs, sizeof irqs, NULL, 0, &interrupt, 1);
}

/* ---- what the guest reaches for */

static void open_vector(void)
{
    struct { u32 count, flags; struct kvm_irq_routing_entry entry; } routing = {1, 0, {
        .gsi = GSI, .type = KVM_IRQ_ROUTING_MSI,
        .u.msi = {.address_lo = entry.address, .address_hi = entry.high, .data = entry.data},
    }};
    struct kvm_irqfd irqfd = {.fd = interrupt, .gsi = GSI};
    check(ioctl(vm, KVM_SET_GSI_ROUTING, &routing), "KVM_SET_GSI_ROUTING");
    check(ioctl(vm, KVM_IRQFD, &irqfd), "KVM_IRQFD");
}

static void access_config(u32 offset, u8 *data, u32 size, int is_write)
{
    u32 bar = (offset - BAR_AT) / 4;
    int is_bar = offset >= BAR_AT && bar < BARS;
    if ((config_address >> 11 & 31) != SLOT)
        memset(data, 0xff, size);
    else if (is_bar && !is_write) {
        u32 low = bars[bar] | (bars[bar] == PORTS);
        memcpy(data, &low, size);
    } else if (!is_write)
        read_region(CONFIG, offset, data, size);
    else if (!is_bar) {
        write_region(CONFIG, offset, data, size, 0);
        if (offset == msix_at + 2 && data[1] == 0x80)
            open_vector();
    }
}

static int access_port(u32 port, u8 *data, u32 size, int is_write)
{
    if (port == LEAVE)
        return 1;
    if (port == TEXT)
        fputc(*data, stderr);
    else if (port == CONFIG_ADDRESS && is_write)
        memcpy(&config_address, data, size);
    else if (port >= CONFIG_DATA && port < CONFIG_DATA + 4)
        access_config((config_address & 0xfc) + port - CONFIG_DATA, data, size, is_write);
    else if (port >= PORTS && port < PORTS + 16) {
        if (is_write) write_region(BAR2, port - PORTS, data, size, 0);
        else read_region(BAR2, port - PORTS, data, size);
    }
    return 0;
}

static int inside(const struct sub_region *sub, u64 offset) { return offset - sub->offset < sub->size; }

static void access_memory(u64 address, u8 *data, u32 size, int is_write)
{
    u32 bar = (address - FIRST) / 0x10000;
    u64 offset = address - FIRST - bar * 0x10000, value;
    if (address < FIRST || bar >= BARS || !bars[bar])
        memset(data, 0xff, size);
    else if (bar == table_bar && is_write && offset + size <= sizeof entry)
        memcpy((u8 *)&entry + offset, data, size);
    else if (bar == BAR1 && values >= 0 && is_write && inside(&value_region, offset))
        relay(values, value_region.value, offset - value_region.offset, data, size, 1, 0);
    else if (bar == BAR1 && stretch >= 0 && inside(&stretch_region, offset)) {
        value = relay(stretch, stretch_region.value, offset - stretch_region.offset, data, size, is_write, 1);
        if (!is_write)
            memcpy(data, &value, size);
    } else if (is_write)
        write_region(bar, offset, data, size, !is_mapped);
    else
        read_region(bar, offset, data, size);
}

static int loop(void)
{
    for (;;) {
        if (ioctl(vcpu, KVM_RUN, 0) < 0)
            fail("KVM_RUN");
        if (late && late->first != late->last)
            bring_late_writes();
        u8 *data = (u8 *)run + run->io.data_offset;
        switch (run->exit_reason) {
        case KVM_EXIT_MMIO:
            access_memory(run->mmio.phys_addr, run->mmio.data, run->mmio.len, run->mmio.is_write);
            break;
        case KVM_EXIT_IO:
            if (access_port(run->io.port, data, run->io.size, run->io.direction == KVM_EXIT_IO_OUT))
                return *data;
            break;
        default:
            fprintf(stderr, "KVM_RUN: exit reason %u\n", run->exit_reason);
            return 1;
        }
    }
}

static void start(int memory, int state)
{
    static struct { u32 count, padding; struct kvm_cpuid_entry2 leaves[256]; } cpuid;
    struct kvm_sregs sregs;
    struct kvm_regs regs;
    struct stat file;
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);

    check(kvm, "/dev/kvm");
    vm = ioctl(kvm, KVM_CREATE_VM, 0);
    check(vm, "KVM_CREATE_VM");
    check(ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000), "KVM_SET_TSS_ADDR");
    check(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
    check(fstat(memory, &file), "memory");
    struct kvm_userspace_memory_region region = {
        .memory_size = file.st_size,
        .userspace_addr = (u64)mmap(NULL, file.st_size, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0),
    };
    check(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
    vcpu = ioctl(vm, KVM_CREATE_VCPU, 0);
    check(vcpu, "KVM_CREATE_VCPU");
    run = mmap(NULL, ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu, 0);
    if (pread(state, &sregs, sizeof sregs, 0) != sizeof sregs ||
        pread(state, &regs, sizeof regs, sizeof sregs) != sizeof regs ||
        pread(state, &cpuid, sizeof cpuid, sizeof sregs + sizeof regs) < 8)
        fail("state");
    check(ioctl(vcpu, KVM_SET_CPUID2, &cpuid), "KVM_SET_CPUID2");
    check(ioctl(vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    check(ioctl(vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
    plug(memory, file.st_size);
}

int main(int argc, char **argv)
{
    if (argc != 4)
        fail("usage: vmm SOCKET MEMORY STATE");
    sock = atoi(argv[1]);
    start(atoi(argv[2]), atoi(argv[3]));
    return loop();
}
