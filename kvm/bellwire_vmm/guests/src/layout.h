/* What the VMM and a guest tell each other through memory. guests/layout.py mirrors this file. */
#ifndef LAYOUT_H
#define LAYOUT_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

/* Guest-physical addresses; memory is mapped one to one. */
#define PARAMETERS 0x10000UL     /* one page, written by the VMM before the guest starts */
#define RESULTS 0x20000UL        /* written by the guest */
#define RESULTS_END 0x100000UL   /* the image starts here */

#define PORT_TEXT 0xe9           /* 8-bit out: a character of debug text */
#define PORT_EXIT 0xf4           /* 32-bit out: the run ends with this code; 0 = all is well */
#define PORT_MARK 0xf5           /* 32-bit out: a mark that the VMM stamps with its counts */
#define PORT_FLUSH 0xf6          /* 8-bit out: an exit and nothing else */

/* A mark is entry << 8 | phase. */
enum phase {
    PHASE_RINGS = 1,             /* ringing the device, no interrupt wanted */
    PHASE_RINGS_END = 2,
    PHASE_RAM = 3,               /* the same loop, storing to RAM */
    PHASE_RAM_END = 4,
    PHASE_ROUNDTRIPS = 5,        /* ring, wait for the interrupt, again */
    PHASE_ROUNDTRIPS_END = 6,
    PHASE_NOTES = 7,             /* ring, wait for the device's note in memory, again */
    PHASE_NOTES_END = 8,
};

#define BATCH 64                 /* rings between two rdtsc */

/* ---- bell, bell3 ---- */

#define BELL_MAGIC 0x4c4c4542u   /* "BELL" */

enum { SPACE_MEMORY = 0, SPACE_PORTS = 1 };
enum { MODE_CONSTANT = 0, MODE_COUNTING = 1, MODE_LOADING = 2 };
#define NONE 0xffffffffu

struct bell_parameters {
    u32 magic;
    u32 count;                   /* entries that follow */
    u64 reserved;
};

struct bell_entry {              /* one measurement */
    u32 space;                   /* SPACE_MEMORY or SPACE_PORTS; must agree with the BAR */
    u32 bar;                     /* 0..5 */
    u32 offset;                  /* of the doorbell in its BAR, bytes */
    u32 width;                   /* of a ring, bytes: 1, 2, 4 or (memory only) 8 */
    u32 mode;                    /* MODE_CONSTANT: `value` each time; MODE_COUNTING: 1, 2, 3, ...;
                                    MODE_LOADING: nothing is stored, a ring is a load of 4 bytes from memory */
    u32 count;                   /* rings in the first phase */
    u32 roundtrips;              /* rings in the second one, each waited for */
    u32 counter;                 /* offset in BAR0 of the u64 that counts arrivals; NONE = not asked */
    u32 errors;                  /* offset in BAR0 of the u64 that counts values out of order; NONE = not asked */
    u32 notes;                   /* offset in BAR0 of the u64 that takes an address: the device changes the u32
                                    there with each arrival. NONE = there is no third phase */
    u32 look;                    /* offset in BAR0 of the u32 that is told how many arrivals to look for, before
                                    each phase, of a device that polls; NONE = it does not */
    u32 flush;                   /* 1: an exit after each BATCH, and each ring that is waited for */
    u64 value;
};

struct bell_results {
    u32 magic;                   /* BELL_MAGIC once the guest runs */
    u32 done;                    /* entries finished */
    u64 reserved;
};

struct bell_result {
    u64 rung;                    /* rings of the first phase, as counted by the guest */
    u64 received;                /* arrivals after the first phase, as counted by the device */
    u64 answered;                /* interrupts that came, one for each ring of the second phase */
    u64 received_in_all;         /* arrivals after the last phase */
    u64 disorder;                /* values out of order, as counted by the device */
    u64 noted;                   /* notes that came, one for each ring of the third phase */
    u64 rings;                   /* address of the batches' times: u64 TSC ticks, one for each begun BATCH */
    u64 ram;                     /* the same, for stores to RAM */
    u64 trips;                   /* address of the round trips' times: u64 TSC ticks, `answered` of them */
    u64 notes;                   /* address of the times until they did: u64 TSC ticks, `noted` of them */
};

/* ---- edu ---- */

#define EDU_MAGIC 0x20554445u    /* "EDU " */

struct edu_parameters {
    u32 magic;
    u32 number;                  /* whose factorial is wanted, modulo 2^32 */
    u32 length;                  /* bytes to copy through the device, at most 4096 */
    u32 unacknowledged;          /* how often the INTx handler returns without acknowledging, to see the level */
};

struct edu_interrupts {          /* what one kind of interrupt did */
    u32 factorial;               /* the device's answer */
    u32 factorial_status;        /* irq status seen by the handler; expect 1 */
    u32 to_device_status;        /* expect 0x100 */
    u32 from_device_status;      /* expect 0x100 */
    u32 raised_status;           /* what was written to 0x60 */
    u32 raised_arrivals;         /* interrupts taken for that one raise: 1 for MSI, unacknowledged + 1 for INTx */
    u32 copied;                  /* bytes that came back unharmed */
    u32 arrivals;                /* interrupts taken in all */
};

struct edu_results {
    u32 magic;
    u32 identification;          /* 0x010000ed */
    u32 liveness;                /* ~0x12345678 */
    u32 reserved;
    struct edu_interrupts intx;
    struct edu_interrupts msi;
};

/* ---- pci ---- */

#define PCI_MAGIC 0x20494350u    /* "PCI " */

struct pci_parameters {
    u32 magic;
    u32 vendor;
    u32 device;
    u32 doorbell_bar;            /* a 32-bit memory BAR */
    u32 doorbell;                /* offset of a 4-byte doorbell in it */
    u32 counter;                 /* offset in BAR0 of the u64 that counts its rings */
    u32 new_address;             /* where to move that BAR */
    u32 reserved;
};

struct pci_bar {
    u64 address;
    u64 size;
    u32 flags;                   /* the BAR's low type bits; bit 0 = ports */
    u32 reserved;
};

struct pci_results {
    u32 magic;
    u32 functions;               /* devices found on bus 0, the host bridge included */
    struct pci_bar bars[6];
    u64 old_place;               /* rings counted before the move (1) */
    u64 after_move;              /* after a ring at the new place (2) */
    u64 at_old_place;            /* after a ring at the old place (2 still) */
    u64 decoding_off;            /* after a ring with memory decoding off (2 still) */
    u64 decoding_on;             /* after a ring with it on again (3) */
    u64 moved_back;              /* after moving the BAR home and a ring there (4) */
};

/* ---- blk ---- */

#define BLK_MAGIC 0x204b4c42u    /* "BLK " */

struct blk_parameters {
    u32 magic;
    u32 polled;                  /* sectors to read with no interrupt wanted, watching the used ring */
    u32 waited;                  /* sectors to read, each waited for by interrupt */
    u32 reserved;
};

struct blk_results {
    u32 magic;
    u32 sectors;                 /* the disk's, low 32 bits */
    u32 polled;                  /* reads of the first kind that ended */
    u32 waited;                  /* of the second */
    u32 wrong;                   /* sectors that did not hold 0, 1, 2, ... from the disk's start, as u64 */
    u32 failed;                  /* requests that ended badly */
    u64 ticks;                   /* TSC ticks of all polled reads */
};

/* ---- nvme ---- */

#define NVME_MAGIC 0x454d564eu   /* "NVME" */

struct nvme_parameters {
    u32 magic;
    u32 polled;                  /* blocks to rewrite, from the disk's start: read, written with all bits flipped,
                                    and read again, watching the completion queue */
    u32 waited;                  /* the blocks after them, one by one, waiting for interrupts */
    u32 shadowed;                /* 1: the I/O doorbells have buffers in memory (Doorbell Buffer Config) */
};

struct nvme_results {
    u32 magic;
    u32 block_size;              /* bytes */
    u64 blocks;                  /* the disk's */
    u32 polled;                  /* blocks rewritten in the first way */
    u32 waited;                  /* in the second */
    u32 wrong;                   /* blocks that did not hold what had been written */
    u32 failed;                  /* I/O commands that ended badly */
    u32 moves;                   /* how often an I/O queue's tail or head moved */
    u32 rings;                   /* and how often its doorbell was written for that */
    u64 ticks;                   /* TSC ticks of the polled part */
};

_Static_assert(sizeof(struct nvme_results) == 48, "mirrored in layout.py");
_Static_assert(sizeof(struct blk_results) == 32, "mirrored in layout.py");
_Static_assert(sizeof(struct bell_entry) == 56 && sizeof(struct bell_result) == 80, "mirrored in layout.py");
_Static_assert(sizeof(struct edu_results) == 80 && sizeof(struct pci_results) == 200, "mirrored in layout.py");

#endif
