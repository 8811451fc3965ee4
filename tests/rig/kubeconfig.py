# SPDX-License-Identifier: Apache-2.0
"""kubeconfig files with everything inside, so that they can be carried to another machine. JSON is valid YAML."""

import base64
import json
from dataclasses import dataclass
from typing import Any

from tests.rig.certificates import KeyPair


@dataclass(frozen=True)
class Server:
    """Where an API server listens and the CA (PEM) that vouches for it."""

    url: str
    ca: bytes


def with_client_certificate(server: Server, *, user: str, identity: KeyPair) -> bytes:
    """Return a kubeconfig that identifies its user by a client certificate."""
    credentials = {
        "client-certificate-data": _base64(identity.certificate),
        "client-key-data": _base64(identity.key),
    }
    return _kubeconfig(server, user, credentials)


def with_token(server: Server, *, user: str, token: str) -> bytes:
    """Return a kubeconfig that identifies its user by a bearer token."""
    return _kubeconfig(server, user, {"token": token})


def _kubeconfig(server: Server, user: str, credentials: dict[str, str]) -> bytes:
    config: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {"name": "test", "cluster": {"server": server.url, "certificate-authority-data": _base64(server.ca)}}
        ],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        "current-context": "test",
    }
    return json.dumps(config, indent=2).encode()


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
