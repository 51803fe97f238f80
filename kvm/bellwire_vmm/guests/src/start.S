/* Entered by the VMM in 64-bit long mode, ring 0, interrupts off: rdi = vCPU number, rsp = a stack of its own. */
    .section .text.start, "ax"
    .globl _start
_start:
    test %edi, %edi
    jnz park
    call cpu_init
    call main
    xor %edi, %edi
    call leave
park:                            /* these guests use one vCPU; the others sleep */
    cli
    hlt
    jmp park

    .text
    .globl enter_ring3
enter_ring3:                     /* rdi = where to go; interrupts on, all ports open: by the TSS's bitmap, and by IOPL 3 */
    mov %rsp, %rax
    pushq $0x1b                  /* ss: the VMM's ring 3 data segment */
    pushq %rax
    pushq $0x3202                /* under SVM, QEMU takes a busy TSS (and KVM has no other) for none */
    pushq $0x23                  /* cs: its ring 3 code segment */
    pushq %rdi
    iretq

    .section .note.GNU-stack, "", @progbits
