# SPDX-License-Identifier: Apache-2.0
"""The rig's pure parts: kernel choice, QEMU's command line, frames, the VM's ROM, what the kernel's texts say."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rig import vm_rom
from tests.rig.guest import GuestError, newest_kernel, qemu_command
from tests.rig.guest_exec import FrameDecoder, encode_frame
from tests.rig.vm import parse_size
from tests.rig.vm_cgroup import cgroup_path
from tests.rig.vm_memory import VmError, parse_list, parse_numa_maps, parse_numastat

UID = "6e7b6e74-c27a-488b-ac18-c6c49d07c506"


@pytest.mark.parametrize(
    ("names", "newest"),
    [
        (["vmlinuz-6.1.0-56-amd64"], "vmlinuz-6.1.0-56-amd64"),
        (["vmlinuz-6.1.0-9-amd64", "vmlinuz-6.1.0-56-amd64"], "vmlinuz-6.1.0-56-amd64"),
        (["vmlinuz-6.12.95-amd64", "vmlinuz-6.2.0-amd64", "initrd.img-7.0.0-amd64"], "vmlinuz-6.12.95-amd64"),
        (["vmlinuz-6.1.0-56-cloud-amd64", "vmlinuz-5.10.0-1-amd64"], "vmlinuz-5.10.0-1-amd64"),
        (["vmlinuz-6.1.0-56-amd64", "vmlinuz.old", "vmlinuz"], "vmlinuz-6.1.0-56-amd64"),
    ],
)
def test_newest_kernel(names: list[str], newest: str) -> None:
    assert newest_kernel(names) == newest


@pytest.mark.parametrize("names", [[], ["config-6.1.0-56-amd64"], ["vmlinuz-6.1.0-56-cloud-amd64"]])
def test_no_kernel_says_what_to_install(names: list[str]) -> None:
    with pytest.raises(GuestError, match="apt-get install linux-image-amd64"):
        newest_kernel(names)


def test_qemu_command_line() -> None:
    command = qemu_command(
        kernel=Path("/boot/vmlinuz-1"),
        initramfs=Path("/b/initramfs"),
        console=Path("/b/console.log"),
        shared=Path("/b/shared"),
        python=Path("/usr/bin/python3"),
        kernel_args=["numa_balancing=disable"],
        qemu_opts=["-device", "virtio-rng-pci"],
    )
    assert [word for word in command if word.startswith("node,")] == [
        f"node,nodeid={n},cpus={n},memdev=ram{n}" for n in range(4)
    ]
    assert command[command.index("-m") + 1] == "8G"
    assert command[-2:] == ["-device", "virtio-rng-pci"]
    append = command[command.index("-append") + 1].split()
    assert "numa_balancing=disable" in append
    assert "rig.shared=/b/shared" in append
    assert append[-1].startswith("init=/")
    writable = [word for word in command if word.startswith("local,id=") and "readonly=on" not in word]
    assert writable == ["local,id=fs-rig-shared,path=/b/shared,security_model=none,multidevs=remap"]


FRAMES = st.lists(
    st.tuples(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=9)), st.binary(max_size=40))
)


@given(FRAMES, st.integers(min_value=1, max_value=50))
def test_frames_survive_any_cut_of_the_stream(frames: list[tuple[dict[str, object], bytes]], cut: int) -> None:
    stream = b"".join(encode_frame(header, payload) for header, payload in frames)
    decoder = FrameDecoder()
    found = [frame for at in range(0, len(stream), cut) for frame in decoder.feed(stream[at : at + cut])]
    assert found == frames


def test_what_is_no_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="not the guest protocol"):
        list(FrameDecoder().feed(b"GET / HTTP/1.1\r\n"))


def test_rom_begins_at_the_reset_vector_and_knows_its_ram() -> None:
    rom = vm_rom.build(ram_size=512 << 20)
    assert len(rom) == 64 << 10
    jump, distance = struct.unpack_from("<Bh", rom, 0xFFF0)
    assert (jump, (0xFFF3 + distance) & 0xFFFF) == (0xE9, 0)
    assert rom[0] == 0xFA
    assert b"\x81\xff" + struct.pack("<I", 512 << 20) + b"\x0f\x82" in rom  # cmp edi, end of RAM; jb
    assert rom != vm_rom.build(ram_size=512 << 20, one_tick_in=1)


def test_rom_jumps_land_where_they_are_meant_to() -> None:
    rom = vm_rom.build(ram_size=512 << 20)
    place = rom.index(b"\x83\xfb\x01")  # cmp ebx, 1
    write = rom.index(b"\x89\x1f")  # mov [edi], ebx
    wrong = rom.index(b"\xff\x05" + struct.pack("<I", vm_rom.ERRORS_ADDRESS))
    pause = rom.index(b"\x3b\x05" + struct.pack("<I", vm_rom.PAUSE_ADDRESS))  # cmp eax, [PAUSE]
    rest = rom.index(b"\xf6\x05")
    step = rom.index(b"\x81\xc7")
    more = rom.index(b"\x81\xff" + struct.pack("<I", 512 << 20))
    one_pass = rom.index(b"\xbf" + struct.pack("<I", vm_rom.FIRST_PAGE))
    targets = {}
    for opcode, after in (
        (b"\x74", place),
        (b"\x75", place),
        (b"\x74", wrong - 2),
        (b"\x76\x05", pause),
        (b"\x74", rest),
        (b"\xeb", rest),
        (b"\x75\x05", step),
        (b"\x0f\x82", more),
        (b"\xe9", more),
    ):
        at = rom.index(opcode, after)
        near = opcode[0] in b"\x0f\xe9"
        end = at + (len(opcode) + 4 if near else 2)
        targets[at] = end + struct.unpack_from("<i" if near else "b", rom, end - (4 if near else 1))[0]
    assert list(targets.values()) == [write, wrong, write, rest, step, rest, more, place, one_pass]


@pytest.mark.parametrize(
    ("ram_size", "ticks", "stride"),
    [
        (1 << 20, 4, 4096),
        (4 << 30, 4, 4096),
        ((64 << 20) + 1, 4, 4096),
        (64 << 20, 3, 4096),
        (64 << 20, 0, 4096),
        (64 << 20, 4, 96),
        (64 << 20, 4, 8192),
    ],
)
def test_rom_refuses_what_it_cannot_do(ram_size: int, ticks: int, stride: int) -> None:
    with pytest.raises(ValueError, match=r"RAM of|one tick in|stride of"):
        vm_rom.build(ram_size=ram_size, one_tick_in=ticks, stride=stride)


NUMA_MAPS = """\
555c29925000 bind:1-2 file=/usr/bin/qemu-system-x86_64 dirty=1148 mapmax=2 N0=1148 kernelpagesize_kB=4
7fe130021000 bind:1-2
7fe13dc00000 bind:2 file=/memfd:memory-backend-memfd\\040(deleted) huge dirty=32 N2=32 kernelpagesize_kB=2048
7fe145e39000 default anon=367 dirty=367 active=0 N1=366 N2=1 kernelpagesize_kB=4
"""


def test_numa_maps_count_4_kib_pages() -> None:
    assert parse_numa_maps(NUMA_MAPS) == {0: 1148, 1: 366, 2: 32 * 512 + 1}
    assert parse_numa_maps(NUMA_MAPS, 0x7FE145E39000) == {1: 366, 2: 1}
    assert parse_numa_maps(NUMA_MAPS, 0x7FE130021000) == {}


NUMASTAT = """
Per-node process memory usage (in MBs) for PID 178 (qemu-system-x86)
                           Node 0          Node 1           Total
                  --------------- --------------- ---------------
Private                      3.51          188.96          192.47
----------------  --------------- --------------- ---------------
Total                        3.51          192.77          196.28
"""


def test_numastat_totals() -> None:
    assert parse_numastat(NUMASTAT) == {0: 3.51, 1: 192.77}
    with pytest.raises(VmError, match="no totals"):
        parse_numastat("Found no processes")


@pytest.mark.parametrize(("text", "numbers"), [("0-2,5\n", [0, 1, 2, 5]), ("3", [3]), ("\n", [])])
def test_kernel_lists(text: str, numbers: list[int]) -> None:
    assert parse_list(text) == numbers


@pytest.mark.parametrize(("text", "size"), [("512M", 512 << 20), ("1GiB", 1 << 30), ("4096", 4096), ("64K", 64 << 10)])
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("qos", "driver", "path"),
    [
        ("Burstable", "cgroupfs", f"kubepods/burstable/pod{UID}/c0ffee"),
        ("Guaranteed", "cgroupfs", f"kubepods/pod{UID}/c0ffee"),
        (
            "BestEffort",
            "systemd",
            (
                "kubepods.slice/kubepods-besteffort.slice/"
                "kubepods-besteffort-pod6e7b6e74_c27a_488b_ac18_c6c49d07c506.slice/cri-containerd-c0ffee.scope"
            ),
        ),
        (
            "Guaranteed",
            "systemd",
            "kubepods.slice/kubepods-pod6e7b6e74_c27a_488b_ac18_c6c49d07c506.slice/cri-containerd-c0ffee.scope",
        ),
    ],
)
def test_cgroup_names_are_kubelets(qos: str, driver: str, path: str) -> None:
    assert cgroup_path(pod_uid=UID, container_id="c0ffee", qos=qos, driver=driver) == path
