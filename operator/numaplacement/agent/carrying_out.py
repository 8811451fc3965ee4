# SPDX-License-Identifier: Apache-2.0
"""Carries one order out on this host: check, find QEMU, run the engine. In the engine's own thread; knows no API."""

from __future__ import annotations

from numaplacement.api.migration import NumaMigrationSpec, Result
from numaplacement.engine.host import HostFacts, read_host
from numaplacement.engine.kernel import Kernel
from numaplacement.engine.listformat import format_list
from numaplacement.engine.run import run
from numaplacement.engine.verdict import Verdict, Watcher

from .identify import ProcessFacts, WantedVm, identify
from .orders import Order
from .processes import held, processes_in_pods
from .support import Refusal, engine_request, invalid


def carry_out(order: Order, watcher: Watcher, *, kernel: Kernel) -> Verdict | Refusal:
    """Do what `order` says, and return what came of it or why nothing was done.

    :raises EngineError: the engine cannot look at the process.
    :raises OSError: /proc cannot be read.
    """
    if order.spec is None:
        return invalid(order.problem)
    request = engine_request(order.spec)
    if isinstance(request, Refusal):
        return request
    missing = missing_numa_node(read_host(kernel), request.target)
    if missing is not None:
        return missing
    wanted = wanted_vm(order, order.spec)
    process = identify(processes_in_pods(kernel.proc, wanted=lambda uid: uid == wanted.pod_uid.lower()), wanted)
    if isinstance(process, Refusal):
        return process
    with held(process, kernel) as pidfd:
        if pidfd is None:
            return _ended(process, wanted)
        return run(pid=process.pid, request=request, kernel=kernel, watcher=watcher, pidfd=pidfd)


def wanted_vm(order: Order, spec: NumaMigrationSpec) -> WantedVm:
    """Return the VM an order is about. Its namespace is the order's own: nobody can name a VM of another."""
    return WantedVm(
        namespace=order.namespace, name=spec.vm.name, pod_uid=spec.pod_uid, firmware_uuid=spec.vm.firmware_uuid
    )


def missing_numa_node(host: HostFacts, target: int) -> Refusal | None:
    """Return why memory cannot go to NUMA node `target` when the host has no such one."""
    if host.numa_node(target) is not None:
        return None
    there = format_list(node.numa_node for node in host.numa_nodes)
    return Refusal(
        reason="NumaNodeNotFound",
        seen=f"This host has no NUMA node {target}; it has {there}.",
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
