# SPDX-License-Identifier: Apache-2.0
"""Carries one order out on this host: check, find QEMU, run the engine. In the engine's own thread; knows no API."""

from __future__ import annotations

from collections.abc import Iterable

from numaplacement.api.migration import NumaMigrationSpec, Result
from numaplacement.engine.host import HostFacts, read_host
from numaplacement.engine.kernel import Kernel
from numaplacement.engine.ledger import Ledger
from numaplacement.engine.listformat import format_list
from numaplacement.engine.run import run
from numaplacement.engine.staying import with_stay
from numaplacement.engine.verdict import Verdict, Watcher

from .identify import ProcessFacts, WantedVm, identify
from .orders import Order
from .processes import held, processes_in_pods
from .support import Refusal, engine_request, invalid


def carry_out(order: Order, watcher: Watcher, *, kernel: Kernel, ledger: Ledger) -> Verdict | Refusal:
    """Do what `order` says, and return what came of it or why nothing was done.

    `ledger` is where moves of this host, also those of others than the agent, say what they are going to take.

    :raises EngineError: the engine cannot look at the process.
    :raises OSError: /proc cannot be read.
    """
    if order.spec is None:
        return invalid(order.problem)
    request = engine_request(order.spec)
    if isinstance(request, Refusal):
        return request
    missing = missing_numa_node(read_host(kernel), order.spec.target.numa_nodes)
    if missing is not None:
        return missing
    wanted = wanted_vm(order, order.spec)
    process = identify(processes_in_pods(kernel.proc, wanted=lambda uid: uid == wanted.pod_uid.lower()), wanted)
    if isinstance(process, Refusal):
        return process
    with held(process, kernel) as pidfd:
        if pidfd is None:
            return _ended(process, wanted)
        return run(pid=process.pid, request=request, kernel=kernel, watcher=watcher, pidfd=pidfd, ledger=ledger)


def look_whether_it_stays(order: Order, watcher: Watcher, verdict: Verdict, *, kernel: Kernel) -> Verdict:
    """Return the verdict on an order with whether memory stayed; unchanged where that cannot be told any more.

    Takes as long as AutoNUMA needs to go through the VM's memory twice.

    :raises EngineError: the engine cannot look at the process.
    :raises OSError: /proc cannot be read.
    """
    if order.spec is None or isinstance(request := engine_request(order.spec), Refusal):
        return verdict
    wanted = wanted_vm(order, order.spec)
    process = identify(processes_in_pods(kernel.proc, wanted=lambda uid: uid == wanted.pod_uid.lower()), wanted)
    if isinstance(process, Refusal):
        return verdict
    with held(process, kernel) as pidfd:
        if pidfd is None:
            return verdict
        return with_stay(verdict, pid=process.pid, request=request, kernel=kernel, watcher=watcher, pidfd=pidfd)


def wanted_vm(order: Order, spec: NumaMigrationSpec) -> WantedVm:
    """Return the VM an order is about. Its namespace is the order's own: nobody can name a VM of another."""
    return WantedVm(
        namespace=order.namespace, name=spec.vm.name, pod_uid=spec.pod_uid, firmware_uuid=spec.vm.firmware_uuid
    )


def missing_numa_node(host: HostFacts, targets: Iterable[int]) -> Refusal | None:
    """Return why memory cannot go to these NUMA nodes when the host lacks one of them."""
    missing = [target for target in targets if host.numa_node(target) is None]
    if not missing:
        return None
    there = format_list(node.numa_node for node in host.numa_nodes)
    return Refusal(
        reason="NumaNodeNotFound",
        seen=f"This host has no NUMA node {format_list(missing)}; it has {there}.",
        remedy="Choose one of these.",
        permanent=True,
    )


def _ended(process: ProcessFacts, wanted: WantedVm) -> Refusal:
    return Refusal(
        reason="VmGone",
        seen=f"QEMU process {process.pid} of pod {wanted.pod_uid} ended before its memory was looked at.",
        remedy="Nothing was touched; the VM is placed where it runs next.",
        result=Result.VM_GONE,
    )
