# SPDX-License-Identifier: Apache-2.0
"""Where the API server is and who we are to it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import yaml
from kubernetes.aio.client.api_client import ApiClient
from kubernetes.aio.client.configuration import Configuration
from kubernetes.aio.config.config_exception import ConfigException
from kubernetes.aio.config.incluster_config import SERVICE_CERT_FILENAME, SERVICE_TOKEN_FILENAME, InClusterConfigLoader
from kubernetes.aio.config.kube_config import load_kube_config

from .client import Client


class Misconfigured(Exception):
    """It cannot be told how to reach the API server; the message says what is missing."""


@contextlib.asynccontextmanager
async def connect(
    environ: Mapping[str, str] = os.environ, *, user_agent: str = "numaplacement"
) -> AsyncIterator[Client]:
    """Yield a client for the API server that `environ` names; its connections are closed in the end.

    ``KUBECONFIG`` (one file, or several joined by colons) is used when it is set, else the pod's service account, whose
    token is read again at least once a minute (the kubelet replaces it before it expires).

    :raises Misconfigured: neither is there, or what is there cannot be read.
    """
    api = ApiClient(await _configuration(environ))
    api.user_agent = user_agent
    client = Client(api)
    try:
        yield client
    finally:
        await client.finish()
        await api.close()


async def _configuration(environ: Mapping[str, str]) -> Configuration:
    configuration = Configuration()
    kubeconfig = environ.get("KUBECONFIG", "")
    try:
        if kubeconfig:
            _must_exist(kubeconfig)
            await load_kube_config(kubeconfig, client_configuration=configuration, persist_config=False)
        elif environ.get("KUBERNETES_SERVICE_HOST"):
            loader = InClusterConfigLoader(
                token_filename=SERVICE_TOKEN_FILENAME, cert_filename=SERVICE_CERT_FILENAME, environ=environ
            )
            loader.load_and_set(configuration)
        else:
            raise Misconfigured(
                "no API server: set KUBECONFIG to a kubeconfig file, or run in a pod with a service account"
            )
    except (ConfigException, OSError, yaml.YAMLError, ValueError, TypeError, KeyError) as error:
        source = f"KUBECONFIG={kubeconfig}" if kubeconfig else "the pod's service account"
        raise Misconfigured(f"cannot use {source}: {' '.join(str(error).split()) or type(error).__name__}") from error
    return configuration


def _must_exist(kubeconfig: str) -> None:
    if not any(Path(each).exists() for each in kubeconfig.split(os.pathsep) if each):
        raise Misconfigured(f"cannot use KUBECONFIG={kubeconfig}: there is no such file")
