# SPDX-License-Identifier: Apache-2.0
"""How kopf is set up."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import kopf

from numaplacement.api.resources import GROUP


def kopf_settings() -> kopf.OperatorSettings:
    """Return kopf's settings. A watch that says nothing for 70 s (no bookmark even) is opened again, by its default."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.posting.enabled = False
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    settings.watching.connect_timeout = 30
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
    settings.networking.enforce_retry_after = True
    settings.execution.max_workers = 1
    # Below the 30 s that Kubernetes gives a pod to end.
    settings.process.ultimate_exiting_timeout = 20
    # Nothing is ever stored on an object; should that change by mistake, it is found under our own name.
    settings.persistence.finalizer = f"{GROUP}/finalizer"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP, v1=False)
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP, key="seen", v1=False)
    return settings


def register_login(registry: kopf.OperatorRegistry, environ: Mapping[str, str]) -> None:
    """Have kopf log in as `numaplacement.apiserver.connection.connect` does: KUBECONFIG, else the service account.

    kopf asks again when a token is no longer accepted, so one that was replaced is read anew.
    """
    login = kopf.login_with_kubeconfig if environ.get("KUBECONFIG") else kopf.login_with_service_account

    @kopf.on.login(registry=registry, errors=kopf.ErrorsMode.PERMANENT)
    def log_in(**arguments: Any) -> kopf.ConnectionInfo | None:  # noqa: ANN401 - kopf passes what it has
        return login(**arguments)


def register_probe(registry: kopf.OperatorRegistry, complaint: Callable[[], str]) -> None:
    """Answer liveness probes: alive while `complaint` returns nothing."""

    @kopf.on.probe(registry=registry, id="controller", errors=kopf.ErrorsMode.PERMANENT)
    async def probe(**_: Any) -> str:  # noqa: ANN401 - kopf passes what it has
        words = complaint()
        if words:
            raise kopf.PermanentError(words)
        return "alive"
