// The little that must run in ring 0: from the PVH entry to ring 3, exceptions, and the way to the kernel.
//
// What reads the disk is compiled Rust in ring 3: what a hostile disk may yet find wrong in it ends in an exception
// that is reported, and software KVM, which emulates ring 0 and lacks SSE there, runs ring 3 at full speed. What
// follows uses plain instructions only. Ports are allowed twice, by IOPL and by the task state's map of ports, because
// software KVM loses the first and QEMU's SVM may lose the second.

.section .note.pvh, "a", @note
.balign 4
    .long 4, 8, 18              // XEN_ELFNOTE_PHYS32_ENTRY
    .asciz "Xen"
    .quad pvh_start

.section .boot, "ax"
.code32
.globl pvh_start
pvh_start:                      // 32-bit, no paging, EBX: start_info
    mov [start_info_address], ebx
    lgdt [gdt_pointer]
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov eax, 0x620              // PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    // The first 2 MiB, where all of this is; paging.rs maps the rest, in ring 3.
    mov dword ptr [pml4], offset pdpt + 7
    mov dword ptr [pdpt], offset low_pages + 7
    mov dword ptr [low_pages], 0x87
    mov eax, offset pml4
    mov cr3, eax
    // The task state: the stack for ring 0, and the map of ports, of which all are allowed.
    mov dword ptr [task + 4], offset kernel_stack_top
    mov dword ptr [task + 0x64], 0x680000
    mov byte ptr [task_end - 1], 0xff
    mov eax, offset task
    mov [gdt_task + 2], ax
    shr eax, 16
    mov [gdt_task + 4], al
    mov ecx, 0xc0000080         // EFER
    rdmsr
    or eax, 0x100               // LME
    wrmsr
    mov eax, cr0
    and eax, 0x9ffffff3         // caches on, no FPU emulation, no lazy FPU
    or eax, 0x80000003          // PG, MP, PE
    mov cr0, eax
    .byte 0xea                  // far jump
    .long start64
    .word 0x08

.code64
start64:
    mov rsp, offset kernel_stack_top
    lidt [idt_pointer]
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov eax, 0x28
    ltr ax
    push 0x1b                   // to ring 3, interrupts off
    push offset user_stack_top - 8
    push 0x3002                 // IOPL 3
    push 0x23
    push offset start
    iretq

// One entry for each exception: its vector and an error code are pushed, the rest is common.
.balign 16
exceptions:
.set v, 0
.rept 32
    .balign 16
    .if !((v == 8) || ((v >= 10) && (v <= 14)) || (v == 17) || (v == 21) || (v == 29) || (v == 30))
    push 0
    .endif
    push v
    jmp exception
    .set v, v + 1
.endr

exception:                      // on the stack: vector, error code, RIP, CS, RFLAGS, RSP, SS
    cmp dword ptr [rsp], 6
    jne report
    mov rax, [rsp + 16]
    cmp rax, offset leave_gate
    je leave
    cmp rax, offset halt_gate
    je halt
report:                         // goes on in ring 3 with what happened
    mov rax, [rsp]
    mov [exception_record], rax
    mov rax, [rsp + 8]
    mov [exception_record + 8], rax
    mov rax, [rsp + 16]
    mov [exception_record + 16], rax
    mov rax, cr2
    mov [exception_record + 24], rax
    add rsp, 16
    mov qword ptr [rsp], offset on_exception
    mov qword ptr [rsp + 24], offset exception_stack_top - 8
    iretq

halt:
    hlt
    jmp halt

leave:                          // to the kernel, by Linux's 64-bit boot protocol: RDI its entry, RSI the zero page
    lgdt [kernel_gdt_pointer]
    mov eax, 0x18
    mov ds, eax
    mov es, eax
    mov fs, eax
    mov gs, eax
    mov ss, eax
    mov eax, 0x20
    mov cr4, rax
    mov rsp, offset kernel_stack_top
    push 0x10
    push rdi
    xor ebx, ebx
    xor ebp, ebp
    xor edi, edi
    retfq

// Ring 3's ways to ring 0.
.globl leave_to_kernel, stop_forever
leave_to_kernel:
leave_gate:
    ud2
stop_forever:
halt_gate:
    ud2

.section .tables, "aw"
.balign 8
idt:                            // the entries are in the first 64 KiB from 1 MiB on
.set v, 0
.rept 32
    .word exceptions - 0x100000 + v * 16
    .word 0x08
    .byte 0, 0x8e
    .word 0x10
    .long 0, 0
    .set v, v + 1
.endr
idt_end:
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    // 08 ring 0 code, 64-bit
    .quad 0x00cf93000000ffff    // 10 ring 0 data
    .quad 0x00cff3000000ffff    // 18 ring 3 data
    .quad 0x00affb000000ffff    // 20 ring 3 code, 64-bit
gdt_task:
    .word task_end - task - 1   // 28 task state
    .word 0
    .byte 0, 0x89, 0, 0
    .quad 0
gdt_end:
kernel_gdt:
    .quad 0, 0
    .quad 0x00af9b000000ffff    // 10 __BOOT_CS
    .quad 0x00cf93000000ffff    // 18 __BOOT_DS
kernel_gdt_end:
.balign 8
.globl exception_record, start_info_address
exception_record:
    .fill 4, 8, 0
start_info_address:
    .quad 0
    .word 0, 0, 0
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
    .word 0, 0, 0
kernel_gdt_pointer:
    .word kernel_gdt_end - kernel_gdt - 1
    .quad kernel_gdt
    .word 0, 0, 0
idt_pointer:
    .word idt_end - idt - 1
    .quad idt

.section .bss
.balign 4096
.globl pml4, low_pages
pml4:
    .skip 4096
pdpt:
    .skip 4096
low_pages:                      // for the first 4 GiB
    .skip 4 * 4096
task:
    .skip 0x68 + 0x2000 + 1
task_end:
.balign 4096
    .skip 4096
kernel_stack_top:
    .skip 0x40000
.globl user_stack_top
user_stack_top:
    .skip 4096
exception_stack_top:
