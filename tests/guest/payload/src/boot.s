// The little that must run in ring 0: from the PVH entry to ring 3, interrupts, and what ring 3 asks of ring 0.
//
// Software KVM emulates ring 0 and lacks SSE there, which compiled code is full of; so all Rust runs in ring 3, with
// every page mapped for it and every port allowed. That is said twice: software KVM loses IOPL, and QEMU's SVM (the
// lab) ignores the task state's map of ports once TR has been restored. What follows uses plain instructions only.

.set CPUS, 64
.set USER_STACK, 0x8000

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
start32:
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    mov eax, cr4
    or eax, 0x620               // PAE, OSFXSR, OSXMMEXCPT
    mov cr4, eax
    mov eax, offset pml4
    mov cr3, eax
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
    mov eax, 0x10
    mov ds, eax
    mov es, eax
    mov ss, eax
    lidt [idt_pointer]
    mov eax, 1
    lock xadd [cpus_started], eax
    mov ebx, eax                // index of this CPU in order of arrival
    // Its task state: the stack for ring 0, and where the map of ports is, which all share.
    mov edx, ebx
    shl edx, 7
    add edx, offset task_states
    mov ecx, ebx
    inc ecx
    shl ecx, 12
    add ecx, offset kernel_stacks
    mov [rdx + 4], rcx
    mov rsp, rcx
    mov eax, ebx
    shl eax, 7
    neg eax
    add eax, CPUS * 128
    mov [rdx + 0x66], ax
    mov ecx, ebx
    shl ecx, 4
    add ecx, offset gdt_tasks
    mov word ptr [rcx], CPUS * 128 + 0x2000
    mov [rcx + 2], dx
    shr edx, 16
    mov [rcx + 4], dl
    mov word ptr [rcx + 5], 0x89
    mov [rcx + 7], dh
    mov eax, ebx
    shl eax, 4
    add eax, 0x30               // gdt_tasks
    ltr ax
    // To ring 3, interrupts off.
    mov ecx, ebx
    inc ecx
    imul ecx, ecx, USER_STACK
    add ecx, offset user_stacks - 8
    push 0x1b
    push rcx
    push 0x3002                 // IOPL 3
    push 0x23
    push offset start
    mov edi, ebx
    iretq

// A processor started by SIPI begins here, in real mode, at a copy of this on a page below 1 MiB.
.code16
.globl ap_start, ap_end
ap_start:
    cli
    .byte 0x66, 0x2e, 0x0f, 0x01, 0x16    // lgdt cs:[...], 32-bit base
    .word ap_gdt_pointer - ap_start
    mov eax, cr0
    or al, 1
    mov cr0, eax
    .byte 0x66, 0xea                      // far jump, 32-bit offset
    .long start32
    .word 0x28
ap_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
ap_end:
.code64

// One entry for each vector, 16 bytes each: vector and error code are pushed, the rest is common.
.balign 16
.globl interrupt_entries
interrupt_entries:
.set v, 0
.rept 256
    .balign 16
    .if !((v == 8) || ((v >= 10) && (v <= 14)) || (v == 17) || (v == 21) || (v == 29) || (v == 30))
    push 0
    .endif
    push v
    jmp interrupt
    .set v, v + 1
.endr

interrupt:                      // on the stack: vector, error code, RIP, CS, RFLAGS, RSP, SS
    cmp dword ptr [rsp], 32
    jb exception
    push rax
    mov eax, [rsp + 8]
    lock inc qword ptr [interrupt_counts + rax * 8]
    lock inc dword ptr [interrupts_taken]
    mov eax, 0xfee000b0         // end of interrupt
    mov dword ptr [rax], 0
    pop rax
    add rsp, 16
    iretq

exception:
    push rax
    cmp dword ptr [rsp + 8], 6
    jne report
    mov rax, [rsp + 24]
    cmp rax, offset gate
    jne report
    add qword ptr [rsp + 24], 2 // past the gate's instruction
    pop rax
    add rsp, 16
    cmp eax, 1
    jb halt
    je breakpoint
    cmp eax, 3
    jb wait_for_fpu
    je give_up
    or dword ptr [rsp + 16], 0x200
    iretq
halt:                           // unless one came since EDI was read
    cmp edi, [interrupts_taken]
    jne awake
    sti
    hlt
awake:
    iretq
breakpoint:
    int3
    iretq
wait_for_fpu:
    fwait
    iretq
give_up:
    lidt [no_idt]
    ud2                         // no handler for this, nor for that: triple fault

report:                         // goes on in ring 3 with what happened
    mov eax, [rsp + 8]
    mov [exception_record], rax
    mov rax, [rsp + 16]
    mov [exception_record + 8], rax
    mov rax, [rsp + 24]
    mov [exception_record + 16], rax
    mov rax, cr2
    mov [exception_record + 24], rax
    add rsp, 24
    mov qword ptr [rsp], offset on_exception
    mov qword ptr [rsp + 8], 0x23
    mov qword ptr [rsp + 16], 0x3002
    mov qword ptr [rsp + 24], offset exception_stack_top - 8
    mov qword ptr [rsp + 32], 0x1b
    iretq

// Ring 3's way to ring 0: ESI says what for (`Ring0` in cpu.rs), EDI is for that.
.globl ring0
ring0:
    mov eax, esi
gate:
    ud2
    ret

.section .tables, "aw"
.balign 4096
pml4:
    .quad pdpt + 7
    .fill 511, 8, 0
pdpt:                           // the first 16 GiB map to themselves, open to ring 3
.set i, 0
.rept 16
    .quad pages + i * 4096 + 7
    .set i, i + 1
.endr
    .fill 496, 8, 0
pages:
.set i, 0
.rept 16 * 512
    .quad i * 0x200000 + 0x87
    .set i, i + 1
.endr
gdt:
    .quad 0
    .quad 0x00af9b000000ffff    // 08 ring 0 code, 64-bit
    .quad 0x00cf93000000ffff    // 10 ring 0 data
    .quad 0x00cff3000000ffff    // 18 ring 3 data
    .quad 0x00affb000000ffff    // 20 ring 3 code, 64-bit
    .quad 0x00cf9b000000ffff    // 28 ring 0 code, 32-bit
gdt_tasks:
    .fill CPUS * 2, 8, 0
gdt_end:
.balign 16
.globl idt
idt:
    .fill 512, 8, 0
task_states:
    .fill CPUS * 128, 1, 0
    .fill 0x2000, 1, 0          // the map of ports: all allowed
    .byte 0xff
.balign 16
.globl interrupt_counts
interrupt_counts:
    .fill 256, 8, 0
.globl exception_record
exception_record:
    .fill 4, 8, 0
.globl start_info_address, cpus_started
start_info_address:
    .quad 0
cpus_started:
    .long 0
.globl interrupts_taken
interrupts_taken:
    .long 0
.balign 8
    .word 0, 0, 0
gdt_pointer:
    .word gdt_end - gdt - 1
    .quad gdt
    .word 0, 0, 0
idt_pointer:
    .word 4095
    .quad idt
no_idt:
    .word 0
    .quad 0

.section .stacks, "aw", @nobits
.balign 4096
kernel_stacks:
    .skip CPUS * 4096
user_stacks:
    .skip CPUS * USER_STACK
    .skip 4096
exception_stack_top:
