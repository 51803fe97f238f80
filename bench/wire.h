/* The vfio-user wire, as far as the benchmark's C programs need it (the ratified text; names as there). */
#ifndef WIRE_H
#define WIRE_H

#include <errno.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;

enum command {
    VERSION = 1, DMA_MAP, DMA_UNMAP, GET_INFO, GET_REGION_INFO, GET_REGION_IO_FDS, GET_IRQ_INFO, SET_IRQS,
    REGION_READ, REGION_WRITE, DEVICE_RESET = 13, REGION_WRITE_MULTI = 15,
};

enum { REPLY = 1, NO_REPLY = 0x10, ERROR = 0x20 };
enum { BAR0, BAR1, BAR2, BAR3, BAR4, CONFIG = 7, REGIONS = 9, IRQ_KINDS = 5, MSIX = 2 };
enum { IOEVENTFD, IOREGIONFD };
enum { MAPPABLE = 4 };
enum { DATAMATCH = 1, PIO = 2, REGION_PIO = 1, POSTED = 2 };
enum { LARGEST = 1 << 16, MOST_FDS = 16 };

struct header { u16 id, command; u32 size, flags, error; };
struct device_info { u32 argsz, flags, regions, irqs; };
struct region_info { u32 argsz, flags, index, cap_offset; u64 size, offset; };
struct irq_info { u32 argsz, flags, index, count; };
struct set_irqs { u32 argsz, flags, index, start, count; };
struct io_fds { u32 argsz, flags, index, count; };
struct sub_region { u64 offset, size; u32 fd_index, type, flags, padding; u64 value; };
struct access { u64 offset; u32 region, count; };
struct multi_entry { u64 offset; u32 region, count; u8 data[8]; };
struct dma_map { u32 argsz, flags; u64 offset, address, size; };
struct dma_unmap { u32 argsz, flags; u64 address, size; };

struct io_command { u8 command, info, padding[6]; u64 user_data, offset, data; };   /* the ioregionfd wire, v3 */
struct io_response { u64 data; u8 padding[24]; };

static inline void fail(const char *what)
{
    fprintf(stderr, "%s: %s\n", what, errno ? strerror(errno) : "not as expected");
    exit(1);
}

/* Send a message whose payload lies in two pieces, either of which may be empty. */
static inline void send_message(int sock, struct header header, const void *first, u32 first_size,
                                const void *second, u32 second_size, const int *fds, int fd_count)
{
    struct iovec parts[] = {{&header, sizeof header}, {(void *)first, first_size}, {(void *)second, second_size}};
    union { struct cmsghdr align; u8 bytes[CMSG_SPACE(sizeof(int) * MOST_FDS)]; } control;
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
    struct pollfd writable = {sock, POLLOUT, 0};

    header.size = sizeof header + first_size + second_size;
    if (fd_count) {
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        *rights = (struct cmsghdr){CMSG_LEN(sizeof(int) * fd_count), SOL_SOCKET, SCM_RIGHTS};
        memcpy(CMSG_DATA(rights), fds, sizeof(int) * fd_count);
    }
    for (;;) {
        ssize_t sent = sendmsg(sock, &message, MSG_NOSIGNAL);
        if (sent == header.size)
            return;
        if (sent >= 0 || errno != EAGAIN)
            fail("sendmsg");                     /* a message cut short: the benchmark's peers always read all */
        poll(&writable, 1, -1);
    }
}

/* Bytes received and not yet looked at; one for each socket. */
struct stream {
    u8 bytes[2 * LARGEST];
    u32 start, end;
    int fds[MOST_FDS];
    int fd_count;
};

/* The next message: 1, or 0 if there is none yet (only with MSG_DONTWAIT in flags), or -1 at the stream's end. The
 * payload is valid until the next call. Fds come with the first message of a batch: no peer sends more before a reply. */
static inline int receive_message(int sock, struct stream *stream, int flags, struct header *header, u8 **payload)
{
    for (;;) {
        u32 held = stream->end - stream->start;
        if (held >= sizeof *header) {
            memcpy(header, stream->bytes + stream->start, sizeof *header);
            if (header->size < sizeof *header || header->size > LARGEST)
                return -1;
            if (held >= header->size) {
                *payload = stream->bytes + stream->start + sizeof *header;
                stream->start += header->size;
                return 1;
            }
        }
        if (stream->start) {
            memmove(stream->bytes, stream->bytes + stream->start, held);
            stream->start = 0, stream->end = held;
        }
        struct iovec room = {stream->bytes + held, sizeof stream->bytes - held};
        union { struct cmsghdr align; u8 bytes[CMSG_SPACE(sizeof(int) * MOST_FDS)]; } control;
        struct msghdr message = {
            .msg_iov = &room, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control,
        };
        ssize_t count = recvmsg(sock, &message, flags | MSG_CMSG_CLOEXEC);
        if (count < 0 && errno == EAGAIN)
            return 0;
        if (count < 0 && errno == EINTR)
            continue;
        if (count <= 0)
            return -1;
        stream->end += count;
        struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
        if (rights && rights->cmsg_type == SCM_RIGHTS) {
            stream->fd_count = (rights->cmsg_len - CMSG_LEN(0)) / sizeof(int);
            memcpy(stream->fds, CMSG_DATA(rights), sizeof(int) * stream->fd_count);
        }
    }
}

#endif
