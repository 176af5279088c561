/* The boot sector: asks the BIOS for the memory map, goes to long mode, enters Linux.
 *
 * Everything else is in memory already, put there by the emulator: boot_params and command
 * line at PARAMS, the kernel's image (entry ENTRY), the initial file system.  Linux's 64-bit
 * boot protocol wants: identity-mapped pages, interrupts off, rsi = boot_params.
 */
#ifndef ENTRY
#error "ENTRY is the kernel's 64-bit entry"
#endif
#define PARAMS          0x90000
#define E820_COUNT      0x1e8           /* in boot_params, as is the next */
#define E820_TABLE      0x2d0
#define E820_ENTRY      20
#define E820_MAX        128
#define E820_MAGIC      0x534d4150      /* "SMAP" */
#define PML4            0x70000
#define PDPT            0x71000
#define PD              0x72000         /* four tables: the first 4 GiB in 2 MiB pages */
#define MSR_EFER        0xc0000080

        .code16
        .globl  _start
_start: cli
        xorw    %ax, %ax
        movw    %ax, %ss
        movw    $0x7c00, %sp
        movw    %ax, %ds
        cld
        movw    $(PARAMS >> 4), %ax
        movw    %ax, %es
        movw    $E820_TABLE, %di
        xorl    %ebx, %ebx
        xorw    %bp, %bp
next_entry:
        movl    $0xe820, %eax
        movl    $E820_ENTRY, %ecx
        movl    $E820_MAGIC, %edx
        int     $0x15
        jc      map_done
        cmpl    $E820_MAGIC, %eax
        jne     map_done
        addw    $E820_ENTRY, %di
        incw    %bp
        cmpw    $E820_MAX, %bp
        jae     map_done
        testl   %ebx, %ebx
        jnz     next_entry
map_done:
        movw    %bp, %ax
        movb    %al, %es:E820_COUNT
        inb     $0x92, %al              /* the fast A20 gate, without its reset bit */
        orb     $2, %al
        andb    $0xfe, %al
        outb    %al, $0x92
        lgdtl   gdt_pointer
        movl    %cr0, %eax
        orb     $1, %al
        movl    %eax, %cr0
        ljmpl   $(code32 - gdt), $protected

        .code32
protected:
        movl    $(data - gdt), %eax
        movl    %eax, %ds
        movl    %eax, %es
        movl    %eax, %ss
        movl    $PML4, %edi
        xorl    %eax, %eax
        movl    $((PD + 0x4000 - PML4) / 4), %ecx
        rep     stosl
        movl    $(PDPT + 7), PML4
        movl    $(PD + 7), %eax
        movl    $PDPT, %edi
        movl    $4, %ecx
1:      movl    %eax, (%edi)
        addl    $8, %edi
        addl    $0x1000, %eax
        loop    1b
        movl    $PD, %edi
        movl    $0x87, %eax
        movl    $2048, %ecx
2:      movl    %eax, (%edi)
        addl    $8, %edi
        addl    $0x200000, %eax
        loop    2b
        movl    $PML4, %eax
        movl    %eax, %cr3
        movl    %cr4, %eax
        orl     $0x20, %eax             /* PAE */
        movl    %eax, %cr4
        movl    $MSR_EFER, %ecx
        rdmsr
        orl     $0x100, %eax            /* LME */
        wrmsr
        movl    %cr0, %eax
        orl     $0x80000001, %eax       /* PG, PE */
        movl    %eax, %cr0
        ljmp    $(code64 - gdt), $long

        .code64
long:   movl    $PARAMS, %esi
        movl    $ENTRY, %eax
        jmp     *%rax

        .p2align 3
gdt:    .quad   0
        .quad   0                       /* Linux expects code at 0x10 and data at 0x18 */
code64: .quad   0x00af9a000000ffff
data:   .quad   0x00cf92000000ffff
code32: .quad   0x00cf9a000000ffff
gdt_pointer:
        .word   gdt_pointer - gdt - 1
        .long   gdt

        .org    510
        .byte   0x55, 0xaa
