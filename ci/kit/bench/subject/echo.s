# The guest of the benchmark "density": says "r" on the serial port when it is ready, then sleeps and
# sends back each byte that it is sent. Flat 32-bit code at 0x100000, entered by PVH, with the segments of
# vmlet's boot GDT: 0x10 code, 0x18 data.
.code32
.set BASE, 0x100000
.set COM1, 0x3f8
.set LOCAL_APIC, 0xfee00000
.set IO_APIC, 0xfec00000
.set VECTOR, 0x40

start:
    mov $(BASE + stack_end - start), %esp

    # One interrupt gate.
    mov $(BASE + received - start), %eax
    mov $(BASE + idt - start + VECTOR * 8), %ebx
    mov %ax, (%ebx)
    movw $0x10, 2(%ebx)
    movw $0x8e00, 4(%ebx)
    shr $16, %eax
    mov %ax, 6(%ebx)
    lidt BASE + idtr - start

    # The local APIC's spurious vector and its switch; the serial port's pin 4, edge-triggered, to vCPU 0.
    movl $0x1ff, LOCAL_APIC + 0xf0
    movl $0x18, IO_APIC
    movl $VECTOR, IO_APIC + 0x10
    movl $0x19, IO_APIC
    movl $0, IO_APIC + 0x10

    # The serial port: OUT2 lets its interrupts through, one for each byte received.
    mov $(COM1 + 4), %dx
    mov $0x0b, %al
    out %al, %dx
    mov $(COM1 + 1), %dx
    mov $1, %al
    out %al, %dx
    mov $COM1, %dx
    mov $'r', %al
    out %al, %dx
    sti
sleep:
    hlt
    jmp sleep

received:
    push %eax
    push %edx
next:
    mov $(COM1 + 5), %dx
    in %dx, %al
    test $1, %al
    jz done
    mov $COM1, %dx
    in %dx, %al
    out %al, %dx
    jmp next
done:
    movl $0, LOCAL_APIC + 0xb0
    pop %edx
    pop %eax
    iret

.balign 8
idtr:
    .word (VECTOR + 1) * 8 - 1
    .long BASE + idt - start
.balign 8
idt:
    .skip (VECTOR + 1) * 8
    .skip 256
stack_end:
