# SPDX-License-Identifier: Apache-2.0
"""The whole software of a rig VM: a ROM that writes to all of its RAM without end, and checks what it wrote before.

Made here byte by byte (Intel SDM volume 2 has the encodings): no firmware or disk boots in sensible time when KVM
itself is emulated. Place by place, `stride` bytes apart, the guest stores the number of its present pass and the
place's own address, after having checked that the place still holds its address and the number of the pass before. It
goes over all the RAM a PC lets it reach, but for the 64 KiB it lives in. It works in one timer tick (20 ms) out of
`one_tick_in` and halts in the others, so that a busy VM does not take a whole CPU. To the first serial port go `alive`
and a dot for each pass.

Its clock is the time stamp counter by 1024, read at each place: the longest step from one place to the next is the
longest pause it has noticed. Times in which it halts of its own will do not count.

For whoever watches from outside, in guest physical memory: u32 at PASSES_ADDRESS = complete passes, u32 at
ERRORS_ADDRESS = places found wrong, u32 at TIME_ADDRESS = the clock when last read, u32 at PAUSE_ADDRESS = the longest
pause, which may be set to 0; each place: u32 pass number, u32 own address.
"""

from __future__ import annotations

import struct

ROM_SIZE = 64 << 10
FIRST_PAGE = 64 << 10
HOLE = (640 << 10, 1 << 20)  # video memory and ROMs
PASSES_ADDRESS = 0x8000
ERRORS_ADDRESS = 0x8004
_TICKS_ADDRESS = 0x8008
TIME_ADDRESS = 0x800C
PAUSE_ADDRESS = 0x8010
CLOCK_SHIFT = 10  # ticks of the time stamp counter by 1024: 32 bits hold many minutes
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


def _jump(opcode: bytes, body: bytes) -> bytes:
    """A jump back to the beginning of `body`, which comes right before it, with a distance of 32 bits."""
    return opcode + struct.pack("<i", -(len(body) + len(opcode) + 4))


def _read_clock() -> bytes:
    return b"\x0f\x31\x0f\xac\xd0" + bytes([CLOCK_SHIFT])  # rdtsc; shrd eax, edx, CLOCK_SHIFT


def _protected_mode(*, ram_size: int, one_tick_in: int, stride: int) -> bytes:
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
            b"\xc7\x05" + _u32(PAUSE_ADDRESS) + _u32(0),  # mov dword [PAUSE], 0
            _read_clock() + b"\xa3" + _u32(TIME_ADDRESS),  # mov [TIME], eax
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
    clock = b"".join(
        (
            _read_clock(),
            b"\x89\xc6",  # mov esi, eax
            b"\x2b\x05" + _u32(TIME_ADDRESS),  # sub eax, [TIME]
            b"\x89\x35" + _u32(TIME_ADDRESS),  # mov [TIME], esi
            b"\x3b\x05" + _u32(PAUSE_ADDRESS),  # cmp eax, [PAUSE]
            b"\x76\x05",  # jbe rest
            b"\xa3" + _u32(PAUSE_ADDRESS),  # mov [PAUSE], eax
        )
    )
    halt = b"\xf4" + _read_clock() + b"\xa3" + _u32(TIME_ADDRESS)  # hlt; and the clock anew
    rest = b"\xf6\x05" + _u32(_TICKS_ADDRESS) + bytes([one_tick_in - 1])  # rest: test byte [TICKS], one_tick_in - 1
    rest += b"\x74" + bytes([len(halt) + 2]) + halt  # jz next
    rest += b"\xeb" + struct.pack("b", -(len(rest) + 2))  # jmp rest
    hole, after_hole = HOLE
    place = b"".join(
        (
            check,
            b"\x89\x1f",  # write: mov [edi], ebx
            b"\x89\x7f\x04",  # mov [edi + 4], edi
            clock,
            rest,
            b"\x81\xc7" + _u32(stride),  # next: add edi, stride
            b"\x81\xff" + _u32(hole),  # cmp edi, the hole
            b"\x75\x05",  # jne more
            b"\xbf" + _u32(after_hole),  # mov edi, after the hole
            b"\x81\xff" + _u32(ram_size),  # more: cmp edi, end of RAM
        )
    )
    one_pass = b"\xbf" + _u32(FIRST_PAGE) + place  # mov edi, first page
    one_pass += _jump(b"\x0f\x82", place)  # jb place
    one_pass += b"\x89\x1d" + _u32(PASSES_ADDRESS)  # mov [PASSES], ebx
    one_pass += _print(b".") + b"\x43"  # inc ebx
    return start + one_pass + _jump(b"\xe9", one_pass)  # jmp one_pass


def build(*, ram_size: int, one_tick_in: int = 4, stride: int = 4096) -> bytes:
    """The 64 KiB image for QEMU's -bios, for a VM of `ram_size` bytes.

    Raises ValueError when the RAM is not whole pages between 2 MiB and 3 GiB, `one_tick_in` no power of two up to
    128, or `stride` none from 8 to 4096.
    """
    if stride not in {1 << bit for bit in range(3, 13)}:
        raise ValueError(f"a stride of {stride} bytes: this must be a power of two from 8 to 4096")
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
        _CODE32: _protected_mode(ram_size=ram_size, one_tick_in=one_tick_in, stride=stride),
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
