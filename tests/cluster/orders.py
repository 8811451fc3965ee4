# SPDX-License-Identifier: Apache-2.0
"""Orders as an operator writes them, and waiting for what becomes of them."""

import asyncio
import secrets
from typing import Any

from numaplacement.api.resources import MIGRATIONS
from numaplacement.apiserver.client import Client

PATIENCE = 30.0
"""Seconds in which anything that is waited for has to happen."""


def new_host() -> str:
    """Return the name of a host that nobody else uses."""
    return f"host-{secrets.token_hex(4)}"


def order(namespace: str, name: str, *, host: str, **spec: Any) -> dict[str, Any]:
    """Return an order for a VM that runs nowhere."""
    wanted = {
        "nodeName": host,
        "vm": {"name": "db", "uid": "11111111-0000-4000-8000-000000000000"},
        "podUID": "6e7b6e74-c27a-488b-ac18-c6c49d07c506",
        "target": {"numaNode": 0},
    }
    return {
        "apiVersion": MIGRATIONS.api_version,
        "kind": MIGRATIONS.kind,
        "metadata": {"namespace": namespace, "name": name},
        "spec": wanted | spec,
    }


async def status_of(client: Client, namespace: str, name: str) -> dict[str, Any]:
    """Return the status of an order."""
    found = await client.get(MIGRATIONS, name, namespace=namespace)
    status: dict[str, Any] = found["status"]
    return status


def ready(status: dict[str, Any]) -> dict[str, Any]:
    """Return the Ready condition of a status, or an empty one."""
    return next((each for each in status.get("conditions", ()) if each["type"] == "Ready"), {"reason": ""})


async def until(condition, *, what: str):
    """Await `condition` until it is true, and return that."""
    last = None
    try:
        async with asyncio.timeout(PATIENCE):
            while True:
                last = condition()
                if asyncio.iscoroutine(last):
                    last = await last
                if last:
                    return last
                await asyncio.sleep(0.05)
    except TimeoutError as error:
        raise AssertionError(f"{what}: not within {PATIENCE:g} s (last seen: {last!r})") from error


async def result_of(client: Client, namespace: str, name: str) -> dict[str, Any]:
    """Wait for an order's verdict and return its status."""

    async def decided():
        status = await status_of(client, namespace, name)
        return status if status.get("result") else None

    return await until(decided, what=f"verdict on {name}")
