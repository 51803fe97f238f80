/* A network bootstrap program (Preboot Execution Environment 2.1, 3.4): it was loaded at 0x7c00 as a whole. It prints
   the CRC-32 of the SIZE bytes behind its first 512. */
    .set SIZE, 64                /* KiB */

    .code16
    .text
    .globl start
start:
    cli
    xor %ax, %ax
    mov %ax, %ds
    mov %ax, %ss
    mov $0x7000, %sp
    ljmp $0, $1f
1:  cld
    mov $0x7e0, %ax              /* the segment of what is behind this */
    mov %ax, %es
    mov $0xffffffff, %ebx
    mov $SIZE, %di
next:
    xor %si, %si
    mov $1024, %cx
    call crc
    mov %es, %ax
    add $1024 >> 4, %ax
    mov %ax, %es
    dec %di
    jnz next
    not %ebx
    mov $done, %si
    call print
    mov %ebx, %eax
    call print_hex
    mov $10, %al
    call put
1:  hlt
    jmp 1b

    .include "common.S"

done:
    .asciz "network program: crc "

    .org 512
