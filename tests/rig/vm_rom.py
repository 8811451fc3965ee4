# SPDX-License-Identifier: Apache-2.0
"""The whole software of a rig VM: a ROM that writes to all of its RAM without end, and checks what it wrote before.

Made here byte by byte (Intel SDM volume 2 has the encodings): no firmware or disk boots in sensible time when KVM
itself is emulated. Page by page, from 1 MiB up to the end of RAM, the guest stores the number of its present pass and
the page's own address, after having checked that the page still holds its address and the number of the pass before.
It works in one timer tick (20 ms) out of `one_tick_in` and halts in the others, so that a busy VM does not take a
whole CPU. To the first serial port go `alive` and a dot for each pass.

For whoever watches from outside, in guest physical memory: u32 at PASSES_ADDRESS = complete passes, u32 at
ERRORS_ADDRESS = pages found wrong; each page: u32 pass number, u32 own address.
"""

from __future__ import annotations

import struct

ROM_SIZE = 64 << 10
FIRST_PAGE = 1 << 20
PASSES_ADDRESS = 0x8000
ERRORS_ADDRESS = 0x8004
_TICKS_ADDRESS = 0x8008
LARGEST_RAM = 3 << 30  # machine type pc puts more than this above 4 GiB, out of reach of 32-bit addresses

_ROM_ADDRESS = (1 << 32) - ROM_SIZE
_RESET_VECTOR = ROM_SIZE - 16
_GDT, _IDT, _GDTR, _IDTR, _CODE32, _HANDLER = 0x100, 0x200, 0x140, 0x148, 0x400, 0x700
_TIMER_VECTOR = 0x20
_PIT_DIVISOR = 23864  # 1.193182 MHz / 50 Hz
_COM1 = 0x3F8
_APIC = 0xFEE00000


def _u16(value: int) -> bytes:
    return struct.pack("<H", value)


def _u32(value: int) -> bytes:
    return struct.pack("<I", value)


def _out(port: int, value: int) -> bytes:
    return bytes([0xB0, value, 0xE6, port])  # mov al, value; out port, al


def _print(text: bytes) -> bytes:
    code = b"\x66\xba" + _u16(_COM1)  # mov dx, COM1
    for letter in text:
        code += bytes([0xB0, letter, 0xEE])  # mov al, letter; out dx, al
    return code


def _real_mode() -> bytes:
    """From the reset state (16 bit) into flat 32-bit protected mode at _CODE32."""
    return b"".join(
        (
            b"\xfa",  # cli
            b"\x2e\x66\x0f\x01\x16" + _u16(_GDTR),  # lgdt cs:[GDTR], 32-bit base
            b"\x2e\x66\x0f\x01\x1e" + _u16(_IDTR),  # lidt cs:[IDTR]
            b"\x0f\x20\xc0",  # mov eax, cr0
            b"\x0c\x01",  # or al, 1 (PE)
            b"\x0f\x22\xc0",  # mov cr0, eax
            b"\x66\xea" + _u32(_ROM_ADDRESS + _CODE32) + _u16(0x08),  # jmp 0x08:CODE32
        )
    )


def _protected_mode(ram_size: int, one_tick_in: int) -> bytes:
    start = b"".join(
        (
            b"\xb8" + _u32(0x10),  # mov eax, 0x10
            b"\x8e\xd8\x8e\xc0\x8e\xd0",  # mov ds, ax; mov es, ax; mov ss, ax
            b"\xbc" + _u32(0x7000),  # mov esp, 0x7000
            # Both interrupt controllers: IRQ 0 is vector 0x20; all but the timer masked.
            _out(0x20, 0x11) + _out(0xA0, 0x11) + _out(0x21, _TIMER_VECTOR) + _out(0xA1, _TIMER_VECTOR + 8),
            _out(0x21, 4) + _out(0xA1, 2) + _out(0x21, 1) + _out(0xA1, 1) + _out(0x21, 0xFE) + _out(0xA1, 0xFF),
            # The local APIC: enabled, and its LINT0 passing on what the interrupt controllers say (ExtINT).
            b"\xc7\x05" + _u32(_APIC + 0xF0) + _u32(0x1FF),  # mov dword [spurious vector], 0x1ff
            b"\xc7\x05" + _u32(_APIC + 0x350) + _u32(0x700),  # mov dword [LINT0], ExtINT
            # Timer channel 0, rate generator.
            _out(0x43, 0x34) + _out(0x40, _PIT_DIVISOR & 0xFF) + _out(0x40, _PIT_DIVISOR >> 8),
            _print(b"alive\n"),
            b"\xc7\x05" + _u32(ERRORS_ADDRESS) + _u32(0),  # mov dword [ERRORS], 0
            b"\xbb" + _u32(1),  # mov ebx, 1: the pass
            b"\xfb",  # sti
        )
    )
    check = b"".join(
        (
            b"\x83\xfb\x01",  # cmp ebx, 1
            b"\x74\x12",  # je write: nothing to check in the first pass
            b"\x8d\x43\xff",  # lea eax, [ebx - 1]
            b"\x39\x07",  # cmp [edi], eax
            b"\x75\x05",  # jne wrong
            b"\x39\x7f\x04",  # cmp [edi + 4], edi
            b"\x74\x06",  # je write
            b"\xff\x05" + _u32(ERRORS_ADDRESS),  # wrong: inc dword [ERRORS]
        )
    )
    page = b"".join(
        (
            check,
            b"\x89\x1f",  # write: mov [edi], ebx
            b"\x89\x7f\x04",  # mov [edi + 4], edi
            b"\xf6\x05" + _u32(_TICKS_ADDRESS) + bytes([one_tick_in - 1]),  # rest: test byte [TICKS], one_tick_in - 1
            b"\x74\x03",  # jz next
            b"\xf4",  # hlt
            b"\xeb\xf4",  # jmp rest
            b"\x81\xc7" + _u32(4096),  # next: add edi, 4096
            b"\x81\xff" + _u32(ram_size),  # cmp edi, end of RAM
        )
    )
    one_pass = b"\xbf" + _u32(FIRST_PAGE) + page  # mov edi, first page
    one_pass += b"\x72" + struct.pack("b", -(len(page) + 2))  # jb page
    one_pass += b"\x89\x1d" + _u32(PASSES_ADDRESS)  # mov [PASSES], ebx
    one_pass += _print(b".") + b"\x43"  # inc ebx
    return start + one_pass + b"\xeb" + struct.pack("b", -(len(one_pass) + 2))  # jmp one_pass


def build(*, ram_size: int, one_tick_in: int = 4) -> bytes:
    """The 64 KiB image for QEMU's -bios, for a VM of `ram_size` bytes.

    Raises ValueError when the RAM is not whole pages between 2 MiB and 3 GiB, or `one_tick_in` no power of two up to
    128.
    """
    if one_tick_in not in {1 << bit for bit in range(8)}:
        raise ValueError(f"one tick in {one_tick_in}: this must be a power of two up to 128")
    if ram_size % 4096 or not 2 << 20 <= ram_size <= LARGEST_RAM:
        raise ValueError(f"RAM of {ram_size} bytes: the rig's VMs have whole pages between 2 MiB and 3 GiB")
    handler = _ROM_ADDRESS + _HANDLER
    gate = _u16(handler & 0xFFFF) + _u16(0x08) + b"\x00\x8e" + _u16(handler >> 16)  # 32-bit interrupt gate, present
    # Flat 4 GiB segments, code 0x08 and data 0x10, "accessed" already set: the CPU cannot write it into a ROM.
    gdt = bytes(8) + bytes.fromhex("ffff0000009bcf00") + bytes.fromhex("ffff00000093cf00")
    parts = {
        0: _real_mode(),
        _GDT: gdt,
        _GDTR: _u16(len(gdt) - 1) + _u32(_ROM_ADDRESS + _GDT),
        _IDTR: _u16((_TIMER_VECTOR + 1) * 8 - 1) + _u32(_ROM_ADDRESS + _IDT),
        _IDT + _TIMER_VECTOR * 8: gate,
        _CODE32: _protected_mode(ram_size, one_tick_in),
        # push eax; inc dword [TICKS]; end of interrupt; pop eax; iretd
        _HANDLER: b"\x50\xff\x05" + _u32(_TICKS_ADDRESS) + _out(0x20, 0x20) + b"\x58\xcf",
        _RESET_VECTOR: b"\xe9" + _u16(-(_RESET_VECTOR + 3) & 0xFFFF),  # jmp 0
    }
    rom = bytearray(ROM_SIZE)
    for offset, part in parts.items():
        if any(rom[offset : offset + len(part)]):
            raise AssertionError(f"the ROM's part at {offset:#x} overlaps another")
        rom[offset : offset + len(part)] = part
    return bytes(rom)
