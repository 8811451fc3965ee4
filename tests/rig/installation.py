# SPDX-License-Identifier: Apache-2.0
"""The product installed as people install it: resources and rights from `manifests/`, controller and agent as
processes of their own.

The controller runs on the machine, the agent inside the emulated host; each has a token of its own service account and
no other
right. The host's Node object stands for a kubelet that is not there.
"""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.rig import kubevirt
from tests.rig.children import Child, Children
from tests.rig.control_plane import GUEST_VIEW_OF_LOOPBACK, ControlPlane
from tests.rig.guest import Guest, GuestProcess
from tests.rig.waiting import wait_until

HOST = "numa-host"
NAMESPACE = "numaplacement"
REPOSITORY = Path(__file__).resolve().parent.parent.parent
AGENT_WAIT = 180.0


@dataclass(frozen=True)
class PlacedVm:
    """A VM that runs on the emulated host and stands on the API server; `process` is what `tests.rig.vm` says of it."""

    api: kubevirt.Vm
    process: Mapping[str, Any]

    @property
    def pid(self) -> int:
        """PID of its QEMU on the emulated host."""
        return int(self.process["pid"])


class Installation:
    """Controller and agent, started and ended at will."""

    def __init__(self, *, control_plane: ControlPlane, guest: Guest, logs: Path) -> None:
        self.control_plane = control_plane
        self.guest = guest
        self._logs = logs
        self._children = Children()
        self._controller: Child | None = None
        self._agent: GuestProcess | None = None
        logs.mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._children.close()
        if self._agent is not None and self._agent.poll() is None:
            self._agent.kill()

    def install(self) -> None:
        """Apply the manifests and register the emulated host."""
        self.control_plane.apply(REPOSITORY / "manifests" / "overlays" / "default")
        self.control_plane.apply(kubevirt.host(HOST))

    @property
    def controller_log(self) -> Path:
        """What the controller says, of all its starts."""
        return self._logs / "controller.log"

    @property
    def agent_log(self) -> Path:
        """What the agent says, of all its starts."""
        return self._logs / "agent.log"

    def start_controller(self, **settings: str) -> None:
        """Start the controller as its own service account; `settings` are environment variables without their
        prefix."""
        account = self.control_plane.service_account_kubeconfig(NAMESPACE, "numaplacement-controller")
        env = {
            "PATH": os.environ.get("PATH", os.defpath),
            "KUBECONFIG": str(account),
            **{f"NUMAPLACEMENT_{name}": value for name, value in settings.items()},
        }
        command = [sys.executable, "-m", "numaplacement.controller"]
        self._controller = self._children.start("controller", command, log=self.controller_log, env=env)

    def kill_controller(self) -> None:
        """End the controller with SIGKILL."""
        assert self._controller is not None, "the controller was not started"
        self._children.stop(self._controller, force=True)
        self._controller = None

    def start_agent(self, **settings: str) -> None:
        """Start the agent inside the emulated host as its own service account."""
        account = self.control_plane.service_account_kubeconfig(
            NAMESPACE, "numaplacement-agent", server_host=GUEST_VIEW_OF_LOOPBACK
        )
        carried = self.guest.shared / "agent.kubeconfig"
        shutil.copyfile(account, carried)
        env = {
            "KUBECONFIG": str(carried),
            "NODE_NAME": HOST,
            **{f"NUMAPLACEMENT_{name}": value for name, value in settings.items()},
        }
        self._agent = self.guest.start(
            [sys.executable, "-m", "numaplacement.agent"], env=env, on_output=self._log_agent
        )

    def _log_agent(self, _stream: str, data: bytes) -> None:
        with self.agent_log.open("ab") as log:
            log.write(data)

    def wait_agent(self) -> dict[str, Any]:
        """Wait until the agent has written its NumaHost, and return that."""

        def seen() -> dict[str, Any] | None:
            assert self._agent is not None, "the agent was not started"
            if self._agent.poll() is not None:
                raise AssertionError(f"the agent ended with {self._agent.poll()}: {self._agent.stderr[-2000:]}")
            found = self.control_plane.kubectl("get", "numah", HOST, "-o", "json", check=False)
            document: dict[str, Any] = json.loads(found.stdout) if found.returncode == 0 else {}
            return document if document.get("status", {}).get("conditions") else None

        return wait_until(seen, what=f"NumaHost {HOST}", timeout=AGENT_WAIT, interval=0.3) or {}

    def kill_agent(self) -> None:
        """End the agent with SIGKILL, in the middle of whatever it does."""
        assert self._agent is not None, "the agent was not started"
        self._agent.kill()
        self._agent.wait(15)
        self._agent = None

    def schedule(self, *, namespace: str, name: str) -> kubevirt.Vm:
        """Bring a VM so far that its QEMU may start on the emulated host."""
        return kubevirt.schedule_vm(self.control_plane, namespace=namespace, name=name, host=HOST)

    def run(self, vm: kubevirt.Vm) -> None:
        """Bring a scheduled VM to phase Running."""
        kubevirt.run_vm(self.control_plane, vm)

    def start_vm(
        self, *, namespace: str, name: str, numa_nodes: str = "1,2,3", options: tuple[str, ...] = ()
    ) -> PlacedVm:
        """Start a VM on the emulated host and bring it to phase Running on the API server, in KubeVirt's order."""
        api = self.schedule(namespace=namespace, name=name)
        identity = ("--namespace", namespace, "--name", name, "--uuid", api.firmware_uuid, "--pod-uid", api.pod_uid)
        process = self.vm_tool("start", *identity, "--numa-nodes", numa_nodes, *options)
        vm = PlacedVm(api=api, process=process)
        self._wait_until_settled(vm)
        self.run(api)
        return vm

    def _wait_until_settled(self, vm: PlacedVm) -> None:
        """Wait until QEMU has taken all the memory it takes at its start, so that later looks can be compared."""
        seen: list[dict[int, int]] = [{}]

        def steady() -> bool:
            seen.append(self.pages(vm))
            return seen[-1] == seen[-2]

        wait_until(steady, what=f"memory of VM {vm.api.vm} steady", timeout=AGENT_WAIT, interval=0.5)

    def stop_vm(self, vm: PlacedVm) -> None:
        """End the VM's process and its objects."""
        self.vm_tool("stop", "--pid", str(vm.pid))
        kubevirt.delete_vm(self.control_plane, vm.api)

    def vm_tool(self, *words: str) -> dict[str, Any]:
        """Run `tests.rig.vm` on the emulated host and return its answer."""
        done = self.guest.run([sys.executable, "-m", "tests.rig.vm", *words], timeout=180)
        answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answer

    def pages(self, vm: PlacedVm) -> dict[int, int]:
        """Return the 4 KiB pages of the VM's QEMU by NUMA node, from its numa_maps: not read by any code of the
        product."""
        counts = self.vm_tool("numa", "--pid", str(vm.pid))["numa_maps"]
        return {int(numa_node): pages for numa_node, pages in counts.items() if pages}

    def ram_pages(self, vm: PlacedVm) -> dict[int, int]:
        """Return the same of the VM's RAM alone."""
        counts = self.vm_tool("numa", "--pid", str(vm.pid))["ram"]
        return {int(numa_node): pages for numa_node, pages in counts.items() if pages}

    def orders(self, namespace: str) -> list[dict[str, Any]]:
        """Return all orders of a namespace, oldest first."""
        items = self.control_plane.get("numam", "-n", namespace)["items"]
        return sorted(items, key=lambda item: (item["metadata"]["creationTimestamp"], item["spec"].get("attempt", 1)))

    def placement(self, namespace: str, name: str) -> dict[str, Any]:
        """Return a placement."""
        return self.control_plane.get("nump", name, "-n", namespace)
