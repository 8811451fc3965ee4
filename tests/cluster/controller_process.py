# SPDX-License-Identifier: Apache-2.0
"""The controller as a process of its own, with the token of its service account and the rights of `manifests/`."""

from __future__ import annotations

import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tests.rig.children import Child, Children
from tests.rig.control_plane import ControlPlane
from tests.rig.stand_in_agent import Behaviour, StandInAgent, places
from tests.rig.waiting import DeadlineError, wait_until

MANIFESTS = Path(__file__).resolve().parent.parent.parent / "manifests"
PATIENCE = 40.0
"""Seconds in which anything that is waited for has to happen."""
QUICK = {
    "NUMAPLACEMENT_RETRY": "200ms",
    "NUMAPLACEMENT_TAKE_UP": "2s",
    "NUMAPLACEMENT_STATUS_INTERVAL": "100ms",
    "NUMAPLACEMENT_ERROR_BACKOFF": "200ms",
    # What a watch tells must be enough: the sweep is tested where it is what is tested.
    "NUMAPLACEMENT_SWEEP": "10m",
}


def install_rights(control_plane: ControlPlane) -> None:
    """Apply service accounts and roles, as people do."""
    for part in ("namespace", "controller", "agent"):
        control_plane.apply(MANIFESTS / "base" / part)


class ControllerProcess:
    """One controller, started and ended at will; `log` holds what it says, of all its starts."""

    def __init__(self, control_plane: ControlPlane, children: Children, log: Path) -> None:
        self._control_plane, self._children = control_plane, children
        self.log = log
        self.child: Child | None = None

    def start(self, settings: Mapping[str, str] | None = None) -> None:
        """Start it and wait until it has listed everything."""
        account = self._control_plane.service_account_kubeconfig("numaplacement", "numaplacement-controller")
        env = {"PATH": os.environ.get("PATH", os.defpath), "KUBECONFIG": str(account), **QUICK, **(settings or {})}
        begun = self.log.stat().st_size if self.log.exists() else 0
        self.child = self._children.start(
            "controller", [sys.executable, "-m", "numaplacement.controller"], log=self.log, env=env
        )

        def ready() -> bool:
            assert self.child is not None
            self.child.check()
            return "placements," in self.log.read_text()[begun:]

        wait_until(ready, what="the controller has listed everything", timeout=PATIENCE)

    def kill(self) -> None:
        """End it with SIGKILL."""
        assert self.child is not None
        self._children.stop(self.child, force=True)
        self.child = None

    def check(self) -> None:
        """Fail if it has ended, or has met a fault of its own."""
        assert self.child is not None
        self.child.check()
        assert "Traceback" not in self.log.read_text(), self.log.read_text()


class Scene:
    """A namespace and a host of one test's own."""

    def __init__(self, control_plane: ControlPlane, namespace: str) -> None:
        self.control_plane = control_plane
        self.namespace = namespace
        self.host = f"host-{secrets.token_hex(4)}"

    def agent(self, *, behaviour: Behaviour = places, host: str = "", **facts: Any) -> StandInAgent:
        """Return an agent of the host, with the agent's rights; it works while entered."""
        account = self.control_plane.service_account_kubeconfig("numaplacement", "numaplacement-agent")
        return StandInAgent(account, host or self.host, behaviour=behaviour, **facts)

    def place(self, name: str = "db", *, vm: str | Mapping[str, Any] = "db", **spec: Any) -> None:
        """Apply a placement, as a person does with kubectl; NUMA node 0 unless said otherwise."""
        selection = {"name": vm} if isinstance(vm, str) else {"selector": dict(vm)}
        target = {} if "cells" in spec else {"numaNode": 0}
        self.control_plane.apply(
            {
                "apiVersion": "numaplacement.io/v1alpha1",
                "kind": "NumaPlacement",
                "metadata": {"name": name, "namespace": self.namespace},
                "spec": {"vm": selection} | target | spec,
            }
        )

    def get(self, kind: str, name: str) -> dict[str, Any]:
        """Return an object of the namespace."""
        return self.control_plane.get(kind, name, "-n", self.namespace)

    def orders(self) -> list[dict[str, Any]]:
        """Return all orders of the namespace, by name."""
        return self.control_plane.get("numam", "-n", self.namespace)["items"]

    def reason(self, name: str = "db") -> tuple[str, str]:
        """Return which condition of a placement is True (Idle where none is) and the reason, of its present spec."""
        found = self.get("nump", name)
        status = found["status"]
        if status.get("observedGeneration") != found["metadata"]["generation"]:
            return ("", "")
        true = [each["type"] for each in status["conditions"] if each["status"] == "True"]
        [reason] = {each["reason"] for each in status["conditions"]}
        return (true[0] if true else "Idle", reason)

    def message(self, name: str = "db") -> str:
        """Return the message of a placement's conditions."""
        [text] = {each["message"] for each in self.get("nump", name)["status"]["conditions"]}
        return str(text)

    def wait(self, state: str, reason: str, *, name: str = "db") -> None:
        """Wait until a placement is in that state for that reason."""
        seen: list[tuple[str, str]] = []

        def there() -> bool:
            seen.append(self.reason(name))
            return seen[-1] == (state, reason)

        try:
            wait_until(there, what=f"{name} {state} {reason}", timeout=PATIENCE, interval=0.2)
        except DeadlineError as error:
            found = json.dumps({"placement": self.get("nump", name), "orders": self.orders()}, indent=1)
            raise AssertionError(f"{error}; seen: {list(dict.fromkeys(seen))}; {found}") from error

    def until(self, condition: Callable[[], Any], what: str) -> Any:
        """Wait until `condition` holds."""
        return wait_until(condition, what=what, timeout=PATIENCE, interval=0.2)
