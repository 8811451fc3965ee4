# SPDX-License-Identifier: Apache-2.0
"""The same VM, placed the same way, moved by migratepages once and by us once: pages left behind and seconds of both.

Runs inside the emulated host: ``make compare``. Pages are counted from numa_maps by the rig, for both sides alike.
"""

import json
import subprocess
import time
from collections.abc import Callable

from numaplacement.engine.kernel import Kernel
from numaplacement.engine.run import run
from numaplacement.engine.verdict import Progress, Request, Verdict
from tests.rig.vm import RunningVm, VmSpec, numa_pages, start_vm

TARGET = 0
SOURCES = "1,2,3"


class _Unwatched:
    def progressed(self, progress: Progress, /) -> None:
        pass

    def cancelled(self) -> bool:
        return False


def by_migratepages(vm: RunningVm) -> dict[str, object]:
    """Move with migratepages(8)."""
    status = subprocess.run(["migratepages", str(vm.pid), SOURCES, str(TARGET)], check=False).returncode
    return {"exit status": status}


def by_us(vm: RunningVm) -> dict[str, object]:
    """Move with the engine, at its defaults."""
    verdict: Verdict = run(pid=vm.pid, request=Request(target=TARGET), kernel=Kernel(), watcher=_Unwatched())
    rows = {f"{row.reason} N{row.numa_node}": row.bytes // 4096 for row in verdict.residue}
    return {
        "outcome": verdict.outcome,
        "said of it": rows,
        "seconds moving": round(verdict.move_seconds, 2),
        "p50": round(verdict.calls.p50, 4),
        "p99": round(verdict.calls.p99, 4),
    }


def measure(name: str, move: Callable[[RunningVm], dict[str, object]]) -> dict[str, object]:
    """Start the VM, move it, count what is left, end it."""
    vm = start_vm(VmSpec(namespace="prod", name="db"))
    try:
        before = numa_pages(vm.pid)
        begin = time.monotonic()
        said = move(vm)
        seconds = time.monotonic() - begin
        after = numa_pages(vm.pid)
        errors = vm.errors()
    finally:
        vm.stop()
    return {
        "by": name,
        "pages before": before,
        "pages after": after,
        "off target before": sum(count for numa_node, count in before.items() if numa_node != TARGET),
        "left behind": sum(count for numa_node, count in after.items() if numa_node != TARGET),
        "seconds": round(seconds, 2),
        "pages the VM found wrong": errors,
        **said,
    }


def main() -> None:
    """Measure both and print a line of JSON for each."""
    for name, move in (("migratepages", by_migratepages), ("numaplacement", by_us)):
        print(json.dumps(measure(name, move)), flush=True)


if __name__ == "__main__":
    main()
