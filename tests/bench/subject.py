# SPDX-License-Identifier: Apache-2.0
"""The process of the bench: memory of one kind, and a writer that times its writes (subject.c)."""

from __future__ import annotations

import contextlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.kernel.memory_process import read_line
from tests.rig.vm import numa_pages

HERE = Path(__file__).parent
HUGE = 2 << 20
PAGE_SIZES = {"4 KiB": 4096, "THP": HUGE, "memfd": 4096, "hugetlb": HUGE}
_KINDS = {"4 KiB": "base", "THP": "thp", "memfd": "memfd", "hugetlb": "hugetlb"}


@dataclass(frozen=True)
class Stalls:
    """What the writer saw: writes, and seconds one took."""

    writes: int
    p50: float
    p99: float
    p999: float
    longest: float


@dataclass
class Subject:
    """A running subject."""

    process: subprocess.Popen[str]
    address: int
    size: int
    kind: str

    @property
    def pid(self) -> int:
        """Its number."""
        return self.process.pid

    def ask(self, command: str) -> str:
        """Give a command and return the answer."""
        assert self.process.stdin
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return read_line(self.process)

    def rest(self) -> Stalls:
        """End the writer, and return what it saw."""
        writes, *nanoseconds = (float(word) for word in self.ask("rest").split())
        return Stalls(int(writes), *(value / 1e9 for value in nanoseconds))

    def off(self, numa_node: int) -> int:
        """Bytes of its memory that numa_maps does not show on a NUMA node."""
        return self.size - numa_pages(self.pid, self.address).get(numa_node, 0) * 4096

    def huge(self) -> int:
        """Bytes of its memory in transparent huge pages, from smaps."""
        text = Path(f"/proc/{self.pid}/smaps").read_text()
        own = text.partition(f"\n{self.address:x}-")[2]
        found = re.search(
            r"^(?:AnonHugePages|ShmemPmdMapped): +([1-9]\d*) kB$", own.partition("VmFlags")[0], re.MULTILINE
        )
        return int(found[1]) * 1024 if found else 0


@contextlib.contextmanager
def programs() -> Iterator[Path]:
    """Compile the C programs into a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        for name in ("subject", "move_loop"):
            command = ["gcc", "-O2", "-Wall", "-Werror", "-pthread", "-o", f"{folder}/{name}", str(HERE / f"{name}.c")]
            subprocess.run(command, check=True)
        yield Path(folder)


@contextlib.contextmanager
def subject(folder: Path, kind: str, size: int, *, numa_node: int, writer_cpu: int) -> Iterator[Subject]:
    """Start a subject with its memory on a NUMA node."""
    command = [str(folder / "subject"), _KINDS[kind], str(size), str(numa_node), str(writer_cpu)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        address = int(read_line(process).split()[1])
        yield Subject(process, address, size, kind)
    finally:
        process.kill()
        process.communicate()
