/* What the programs in real mode share. They talk to the first serial port; %ebx has a CRC-32 in the making. */
    .set COM1, 0x3f8

/* Print the character in %al. */
put:
    push %dx
    push %ax
    mov $COM1 + 5, %dx
1:  in %dx, %al                  /* Line Status Register: wait until the transmitter is empty */
    test $0x20, %al
    jz 1b
    pop %ax
    mov $COM1, %dx
    out %al, %dx
    pop %dx
    ret

/* Print the string at %cs:%si, up to its NUL. */
print:
    mov %cs:(%si), %al
    inc %si
    test %al, %al
    jz 1f
    call put
    jmp print
1:  ret

/* Print %eax as eight hexadecimal digits. */
print_hex:
    mov $8, %cx
1:  rol $4, %eax
    push %eax
    and $0xf, %al
    add $'0', %al
    cmp $'9', %al
    jbe 2f
    add $'a' - '9' - 1, %al
2:  call put
    pop %eax
    loop 1b
    ret

/* Take %cx bytes at %es:%si into the CRC (reflected, polynomial 0xedb88320: the one of zlib and Ethernet). */
crc:
    movzbl %es:(%si), %eax
    inc %si
    xor %eax, %ebx
    mov $8, %dx
1:  shr $1, %ebx
    jnc 2f
    xor $0xedb88320, %ebx
2:  dec %dx
    jnz 1b
    loop crc
    ret
