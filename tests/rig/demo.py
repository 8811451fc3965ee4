# SPDX-License-Identifier: Apache-2.0
"""`make demo`: memory of a running VM moves because somebody applied a NumaPlacement, on real parts.

Nothing is pretended: real kube-apiserver, real operator and agent with rights of their own, real kernel with four NUMA
nodes, real VM under
KVM. What is shown is checked against numastat and numa_maps; the demo fails when they and the status disagree.
"""

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel

from tests.rig.control_plane import ControlPlane, ControlPlaneError
from tests.rig.gotoolchain import ToolError
from tests.rig.guest import Guest, GuestError
from tests.rig.installation import HOST, REPOSITORY, Installation, PlacedVm
from tests.rig.picture import before_and_after, mebibytes
from tests.rig.waiting import DeadlineError, wait_until

NAMESPACE = "prod"
TARGET = 0
NUMA_NODES = range(4)
PAGE = 4096
TIME_LIMIT = 600.0
VERDICT_LIMIT = 120.0
EXAMPLES = Path("manifests/examples")
GPU_MEMORY = "64M"
WATCHED = "custom-columns=name:.metadata.name," + ",".join(
    f"{kind}:.status.conditions[?(@.type=='Ready')].{kind}" for kind in ("status", "reason", "message")
)


class Demo:
    """What the demo has at hand while it tells its story."""

    def __init__(self, console: Console, installation: Installation) -> None:
        self.console = console
        self.installation = installation
        self.cluster = installation.control_plane
        self.faults: list[str] = []

    def say(self, text: str) -> None:
        """Tell the reader what happens next."""
        self.console.print(f"\n[bold]{text}[/bold]")

    def show(self, *words: str) -> None:
        """Run a kubectl command in front of the reader."""
        self.console.print(f"[cyan]$ kubectl {' '.join(words)}[/cyan]", highlight=False)
        self.console.print(self.cluster.kubectl(*words).stdout.rstrip(), highlight=False, markup=False)

    def check(self, fact: bool, text: str) -> None:
        """Show whether something is as it must be, and remember it if not."""
        self.console.print(f"  [{'green' if fact else 'bold red'}]{'✓' if fact else '✗'}[/] {text}", highlight=False)
        if not fact:
            self.faults.append(text)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Show `kubectl get nump -w` while the block runs."""
        words = ["get", "nump", "-n", NAMESPACE, "--watch"]
        self.console.print(f"[cyan]$ kubectl {' '.join(words)}[/cyan]", highlight=False)
        with self.cluster.kubectl_lines(*words, "--no-headers", "-o", WATCHED) as lines:
            reader = threading.Thread(target=self._follow, args=(lines,), daemon=True)
            reader.start()
            yield
        reader.join(10)

    def _follow(self, lines: Iterator[str]) -> None:
        begin, last = time.monotonic(), ""
        for line in lines:
            if line != last:
                self.console.print(f"  {time.monotonic() - begin:5.1f} s  {line}", highlight=False, markup=False)
            last = line

    def verdict(self, placement: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Wait until a placement is done with, and return it and its newest order."""

        def done() -> dict[str, Any] | None:
            found = self.installation.placement(NAMESPACE, placement)
            states = {condition["type"]: condition["status"] for condition in found["status"].get("conditions", [])}
            return found if "True" in (states.get("Ready"), states.get("Stalled")) else None

        found = wait_until(done, what=f"NumaPlacement {placement} settled", timeout=VERDICT_LIMIT, interval=0.3) or {}
        name = found["status"]["vms"][0]["order"]
        return found, self.cluster.get("numam", name, "-n", NAMESPACE)


def bytes_by_numa_node(rows: list[Mapping[str, Any]]) -> dict[int, int]:
    """Add up an order's before or after by NUMA node."""
    total: dict[int, int] = {}
    for row in rows:
        if row["bytes"]:
            total[row["numaNode"]] = total.get(row["numaNode"], 0) + row["bytes"]
    return total


def pages_text(pages: Mapping[int, int]) -> str:
    """Return pages by NUMA node in one line."""
    return ", ".join(f"N{numa_node}={count}" for numa_node, count in sorted(pages.items()))


def numastat(demo: Demo, vm: PlacedVm) -> dict[int, int]:
    """Show `numastat -p` of the VM's QEMU, and return the pages by NUMA node that numa_maps counts."""
    command = ["numastat", "-p", str(vm.pid)]
    demo.console.print(f"[cyan]{HOST}# {' '.join(command)}[/cyan]", highlight=False)
    lines = demo.installation.guest.run(command, timeout=60).stdout.splitlines()
    for line in (lines[2], lines[-1]) if len(lines) > 4 else lines:
        demo.console.print(line, highlight=False, markup=False)
    return demo.installation.pages(vm)


def first_act(demo: Demo) -> None:
    """A VM whose memory is elsewhere is placed while it runs."""
    demo.say("A VM of 512 MiB under KVM, its memory on NUMA nodes 1 to 3, in a kubelet-shaped cgroup")
    vm = demo.installation.start_vm(namespace=NAMESPACE, name="db")
    demo.console.print(f"  QEMU has PID {vm.pid} on {HOST}, cgroup {vm.process['cgroup']}", highlight=False)
    before = numastat(demo, vm)

    demo.say("Somebody writes down where its memory belongs")
    example = EXAMPLES / "first-placement.yaml"
    demo.console.print((REPOSITORY / example).read_text().split("\n", 1)[1].rstrip(), style="dim", highlight=False)
    with demo.watching():
        demo.show("apply", "-f", str(example))
        placement, order = demo.verdict("db")
    after = demo.installation.pages(vm)

    demo.say("The verdict")
    status = order["status"]
    demo.show("get", "nump", "-n", NAMESPACE)
    demo.console.print(
        before_and_after(
            bytes_by_numa_node(status["before"]),
            bytes_by_numa_node(status["after"]),
            numa_nodes=NUMA_NODES,
            target=TARGET,
        )
    )
    calls, threads = status["calls"], status["threads"]
    demo.console.print(
        f"  moved {mebibytes(status['moved'])} in {status['seconds']:.1f} s and {status['passes']} passes; "
        f"{calls['count']} kernel calls, median {calls['p50']}, 99th percentile {calls['p99']}; "
        f"{threads['followed']} threads on CPUs {threads['cpus']}",
        highlight=False,
    )
    show_residue(demo, status)

    demo.say("The same, asked of numastat and numa_maps")
    numastat(demo, vm)
    ours = {kind: {n: b // PAGE for n, b in bytes_by_numa_node(status[kind]).items()} for kind in ("before", "after")}
    demo.check(before == ours["before"], f"before: numa_maps {pages_text(before)}; status {pages_text(ours['before'])}")
    demo.check(after == ours["after"], f"after:  numa_maps {pages_text(after)}; status {pages_text(ours['after'])}")
    demo.check(
        sum(before.values()) * PAGE - status["freed"] + status["grown"] == sum(after.values()) * PAGE,
        "the sums close: before - freed + grown = after",
    )
    ready = next(condition for condition in placement["status"]["conditions"] if condition["type"] == "Ready")
    demo.check(ready["status"] == "True", f"NumaPlacement db is Ready: {ready['message']}")
    inside = demo.installation.vm_tool("watch", "--pid", str(vm.pid))
    demo.check(
        inside["errors"] == 0 and inside["passes"] > 0,
        f"the VM checked all its memory {inside['passes']} times meanwhile, {inside['errors']} pages were wrong",
    )


def show_residue(demo: Demo, status: Mapping[str, Any]) -> None:
    """Show every row of an order's residue."""
    for row in status["residue"]:
        demo.console.print(
            Panel(
                f"{row['evidence']}\n[italic]{row['remedy']}[/italic]",
                title=f"{row['reason']}: {mebibytes(row['bytes'])} on NUMA node {row['numaNode']}",
                title_align="left",
            )
        )


def second_act(demo: Demo) -> None:
    """A VM with a device passed through: nothing can be moved, and our status says why where migratepages says
    nothing."""
    demo.say("A second VM, with a PCI device really passed through by VFIO")
    vm = demo.installation.start_vm(
        namespace=NAMESPACE, name="gpu", numa_nodes="3", options=("--vfio", "--memory", GPU_MEMORY)
    )
    guest = demo.installation.guest
    before = demo.installation.vm_tool("numa", "--pid", str(vm.pid))
    migrate = ["migratepages", str(vm.pid), "all", str(TARGET)]
    demo.console.print(f"[cyan]{HOST}# {' '.join(migrate)}[/cyan]", highlight=False)
    exit_status = guest.run(migrate, timeout=120, check=False).returncode
    after = demo.installation.vm_tool("numa", "--pid", str(vm.pid))
    arrived = after["ram"].get(str(TARGET), 0) - before["ram"].get(str(TARGET), 0)
    whole = sum(before["ram"].values())
    demo.check(
        exit_status == 0 and arrived * 100 < whole,
        f"migratepages says nothing and exits {exit_status}; of the VM's {whole} pages of RAM {arrived} have moved",
    )

    demo.say("The same wish as a NumaPlacement")
    untouched = demo.installation.ram_pages(vm)
    with demo.watching():
        demo.show("apply", "-f", str(EXAMPLES / "passthrough.yaml"))
        placement, order = demo.verdict("gpu")
    demo.show("get", "nump", "-n", NAMESPACE)
    stalled = next(condition for condition in placement["status"]["conditions"] if condition["type"] == "Stalled")
    demo.console.print(f"  {stalled['reason']}: {stalled['message']}", highlight=False, markup=False)
    status = order["status"]
    show_residue(demo, status)
    pinned = [row for row in status["residue"] if row["reason"] == "pinned-by-device"]
    demo.check(bool(pinned), "the reason, the bytes and the remedy are in the status")
    demo.check(status["calls"]["count"] == 0 and status["moved"] == 0, "no page was touched")
    demo.check(demo.installation.ram_pages(vm) == untouched, "numa_maps says the same of its RAM before and after")


def main() -> int:
    """Tell the story; the exit status is 0 only if everything was as it must be."""
    console = Console() if sys.stdout.isatty() else Console(width=120)
    begin = time.monotonic()
    with ExitStack() as stack:
        console.print("[bold]Starting a control plane and, beside it, a host with four NUMA nodes (about 30 s)[/bold]")
        # AutoNUMA moves a VM's pages by itself; without it what two looks count can be compared to the page.
        guest, cluster = Guest(time_limit=TIME_LIMIT, kernel_args=["numa_balancing=disable"]), ControlPlane()
        with ThreadPoolExecutor(max_workers=1) as pool:
            booting = pool.submit(stack.enter_context, guest)
            stack.enter_context(cluster)
            cluster.install_crds()
            console.print(f"  etcd and kube-apiserver ready after {time.monotonic() - begin:.1f} s", highlight=False)
            booting.result()
        console.print(f"  {HOST} up after {time.monotonic() - begin:.1f} s", highlight=False)
        installation = stack.enter_context(Installation(control_plane=cluster, guest=guest, logs=guest.folder))
        installation.install()
        cluster.create_namespace(NAMESPACE)
        installation.start_controller()
        installation.start_agent()
        installation.wait_agent()
        console.print(f"  controller and agent at work after {time.monotonic() - begin:.1f} s", highlight=False)
        demo = Demo(console, installation)
        demo.show("get", "numahosts")
        first_act(demo)
        second_act(demo)
    minutes, seconds = divmod(round(time.monotonic() - begin), 60)
    if demo.faults:
        console.print(f"\n[bold red]{len(demo.faults)} of the checks failed[/bold red] ({minutes} min {seconds} s)")
        console.print(json.dumps(demo.faults, indent=2), highlight=False, markup=False)
        return 1
    console.print(f"\n[bold green]Everything was as it must be[/bold green] ({minutes} min {seconds} s)")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ControlPlaneError, DeadlineError, GuestError, ToolError) as error:
        sys.exit(f"demo: {error}")
