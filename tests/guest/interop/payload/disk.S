/* A boot sector: it reads the first MiB of the disk that it came from by the BIOS (INT 13h), prints its CRC-32, and
   writes a sector behind that MiB. (Enhanced Disk Drive Specification 3.0: extended read, extended write.) */
    .set PART, 64                /* sectors a read */
    .set PARTS, 32
    .set BUFFER, 0x1000          /* its segment */

    .code16
    .text
    .globl start
start:
    cli
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov $0x7c00, %sp
    ljmp $0, $1f
1:  sti
    cld
    mov %dl, drive
    mov $BUFFER, %ax
    mov %ax, %es
    mov $0xffffffff, %ebx
    mov $PARTS, %di
next:
    mov $0x42, %ah
    call disk
    xor %si, %si
    mov $PART * 512, %cx
    call crc
    addl $PART, block
    dec %di
    jnz next
    not %ebx
    mov %ebx, mark_crc

    xor %di, %di                 /* the sector to write begins with the mark */
    mov $mark, %si
    mov $mark_end - mark, %cx
    rep movsb
    movw $1, count
    mov $0x43, %ah
    call disk

    mov $done, %si
    call print
    mov mark_crc, %eax
    call print_hex
    jmp end

/* Read or write by the packet. */
disk:
    mov $packet, %si
    mov drive, %dl
    xor %al, %al
    push %ebx
    push %di
    push %es
    int $0x13
    pop %es
    pop %di
    pop %ebx
    jc failed
    ret
failed:
    push %ax
    mov $error, %si
    call print
    pop %ax
    movzbl %ah, %eax
    call print_hex
end:
    mov $10, %al
    call put
1:  hlt
    jmp 1b

    .include "common.S"

packet:
    .byte 16, 0
count:
    .word PART
    .word 0, BUFFER
block:
    .quad 0
drive:
    .byte 0
done:
    .asciz "boot sector: crc "
error:
    .asciz "boot sector: INT 13h fails with "
mark:
    .ascii "written by a boot sector "
mark_crc:
    .long 0
mark_end:

    .org 510
    .word 0xaa55
