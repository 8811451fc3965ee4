# SPDX-License-Identifier: Apache-2.0
"""How long `numaplace show` takes for a VM-sized process, beyond the kernel's own time: `make bench-show`.

On this machine, whatever NUMA nodes it has: a process takes 4 GiB in base pages, the worst case, and is looked at some
times. The kernel's own time is what the command spent in system calls; a start of Python counts as ours.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

REPORT = Path("build/bench/show.json")
MOST_SECONDS = 1.0
GIB = 1 << 30
_CHILD = """
import mmap, sys
areas = [mmap.mmap(-1, int(sys.argv[1]) // 4, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) for _ in range(4)]
for area in areas:
    area.madvise(mmap.MADV_NOHUGEPAGE)
    for page in range(0, len(area), mmap.PAGESIZE):
        area[page] = 1
print("ready", flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Look:
    """Seconds of one look: by the clock, in the kernel, and in the command itself."""

    wall: float
    system: float
    user: float

    @property
    def beyond(self) -> float:
        """Seconds that are not the kernel's."""
        return self.wall - self.system


@contextmanager
def process(size: int) -> Iterator[int]:
    """Run a process that has so many bytes in base pages; the context's value is its process id."""
    command = [sys.executable, "-I", "-S", "-c", _CHILD, str(size)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdin
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
        try:
            yield child.pid
        finally:
            child.stdin.close()


def look(pid: int) -> Look:
    """Run `numaplace show` once."""
    command = [Path(sys.executable).with_name("numaplace"), "show", "--pid", str(pid), "-o", "json"]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as shown:
        _, status, usage = os.wait4(shown.pid, 0)
        shown.returncode = os.waitstatus_to_exitcode(status)
    wall = time.monotonic() - began
    assert shown.returncode == 0
    return Look(wall=wall, system=usage.ru_stime, user=usage.ru_utime)


def main() -> None:
    """Look some times, print a line, write the report, and fail when it takes too long."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.show", description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, default=4.0, metavar="GIB", help="memory of the process (4)")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    with process(int(options.size * GIB) // mmap.PAGESIZE * mmap.PAGESIZE) as pid:
        look(pid)
        looks = [look(pid) for _ in range(options.runs)]
    medians = {name: statistics.median(getattr(each, name) for each in looks) for name in ("wall", "system", "beyond")}
    print(
        f"numaplace show of {options.size:g} GiB in base pages, medians of {len(looks)}: {medians['wall']:.2f} s,"
        f" of which {medians['system']:.2f} s the kernel's own; {medians['beyond']:.2f} s beyond it"
        f" (at most {MOST_SECONDS:g} s)"
    )
    REPORT.parent.mkdir(parents=True, exist_ok=True)
    result = {"GiB": options.size, "medians": medians, "looks": [asdict(each) for each in looks]}
    REPORT.write_text(json.dumps(result, indent=1) + "\n")
    if medians["beyond"] > MOST_SECONDS:
        sys.exit(f"numaplace show takes more than {MOST_SECONDS:g} s beyond the kernel's own time")


if __name__ == "__main__":
    main()
