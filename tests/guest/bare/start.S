/* Entered by a multiboot loader (Multiboot 0.6.96, 3.2) in 32-bit protected mode, paging off; goes on in long mode with
   the lower 4 GiB identity-mapped (Intel SDM vol. 3, 10.8.5), and ends the machine when main returns. */
    .set MAGIC, 0x1badb002
    .set ADDRESSES, 1 << 16      /* the header says where to load: this is a flat image */

    .section .text.start, "ax"
    .code32
    .balign 4
header:
    .long MAGIC, ADDRESSES, -(MAGIC + ADDRESSES)
    .long header, header, image_end, image_end, entry

    .globl entry
entry:
    mov $0xff, %al               /* the 8259s stay silent: interrupts come through the I/O APIC */
    outb %al, $0x21
    outb %al, $0xa1

    mov $tables, %edi
    lea 0x1003(%edi), %eax       /* one entry for the table of 1 GiB parts */
    mov %eax, (%edi)
    lea 0x1000(%edi), %ebx
    lea 0x2003(%edi), %eax
    mov $4, %ecx
1:  mov %eax, (%ebx)             /* 4 of those, each 512 large pages */
    add $0x1000, %eax
    add $8, %ebx
    loop 1b
    lea 0x2000(%edi), %ebx
    mov $0x83, %eax
    mov $2048, %ecx
2:  mov %eax, (%ebx)
    add $0x200000, %eax
    add $8, %ebx
    loop 2b

    mov %edi, %cr3
    mov $0x20, %eax              /* CR4.PAE */
    mov %eax, %cr4
    mov $0xc0000080, %ecx        /* EFER.LME */
    rdmsr
    or $0x100, %eax
    wrmsr
    mov %cr0, %eax
    or $0x80000001, %eax
    mov %eax, %cr0
    lgdt descriptor
    ljmp $8, $long_mode

    .code64
long_mode:
    mov $16, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov $stack_end, %esp
    call cpu_init
    call main
    xor %edi, %edi
    call leave

    .balign 8
gdt:
    .quad 0, 0x00af9a000000ffff, 0x00cf92000000ffff      /* null, 64-bit code, data */
descriptor:
    .word descriptor - gdt - 1
    .long gdt

    .bss
    .balign 4096
tables:
    .skip 6 * 4096
    .skip 16384
stack_end:

    .section .note.GNU-stack, "", @progbits
