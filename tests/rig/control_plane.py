# SPDX-License-Identifier: Apache-2.0
"""A real Kubernetes control plane on loopback for one test session: etcd, kube-apiserver and, on request, the others.

It is configured as kubeadm would where that matters to the software under test: RBAC and the node authorizer, service
account tokens with claims, default admission plug-ins plus NodeRestriction, TLS verified in both directions. A guest on
QEMU's user network reaches the same server under 10.0.2.2, its name for the machine's loopback.
"""

import json
import os
import ssl
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.rig.certificates import CertificateAuthority, signing_key, write_private
from tests.rig.children import Child, ChildError, Children
from tests.rig.gotools import kubevirt_crds, tool_path
from tests.rig.kubeconfig import Server, with_client_certificate, with_token
from tests.rig.ports import free_ports
from tests.rig.state_folder import StateFolder
from tests.rig.waiting import DeadlineError, wait_until

LOOPBACK = "127.0.0.1"
GUEST_VIEW_OF_LOOPBACK = "10.0.2.2"
SERVICE_RANGE = "10.96.0.0/16"
API_SERVER_NAMES = (
    "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local",
)  # fmt: skip
API_SERVER_ADDRESSES = (LOOPBACK, GUEST_VIEW_OF_LOOPBACK, "10.96.0.1")
ISSUER = "https://kubernetes.default.svc.cluster.local"
# Without kubelets nobody renews the hosts' leases: these two would call each host dead and empty it.
CONTROLLERS_OFF = ("node-lifecycle-controller", "taint-eviction-controller")
START_SECONDS = 90
VMI = "virtualmachineinstances.kubevirt.io"
CRDS = Path(__file__).parent.parent.parent / "crds"


class ControlPlaneError(Exception):
    """The control plane or a kubectl call failed; the message carries what the program said."""


class ControlPlane:
    """etcd and kube-apiserver, started on entry and ended on exit or with this process, whichever comes first."""

    def __init__(self) -> None:
        self._state = StateFolder("numaplacement-control-plane-")
        self.folder = self._state.path
        """Certificates, kubeconfigs, logs and etcd's data; removed by `stop`."""
        self.port, self._etcd_port, self._peer_port, self._manager_port, self._scheduler_port = free_ports(5)
        self.started_in: float | None = None
        """Seconds from start to ready, of the first start."""
        self._children = Children()
        self._running: dict[str, Child] = {}
        self._custom_kinds: list[str] = []
        self._authority = CertificateAuthority.create("numaplacement-test-ca")
        self._kubectl = tool_path("kubectl")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def ca_file(self) -> Path:
        """The CA that issued every certificate here, PEM."""
        return self.folder / "ca.crt"

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the running programs by name."""
        return {name: child.pid for name, child in self._running.items()}

    def log(self, name: str) -> Path:
        """Return the log file of a program ("etcd", "kube-apiserver", …)."""
        return self.folder / f"{name}.log"

    # Starting and stopping

    def start(self) -> None:
        """Start etcd and kube-apiserver and wait until the server is ready. Raises `ControlPlaneError`."""
        begin = time.monotonic()
        try:
            self._write_credentials()
            self._start_etcd()
            self.start_apiserver()
        except BaseException:
            self.stop()
            raise
        self.started_in = time.monotonic() - begin

    def stop(self) -> None:
        """End every program and remove the folder; a second call does nothing."""
        # All state is thrown away: nothing is gained by letting anybody finish in order.
        for name in reversed(self._running.copy()):
            self._end(name, force=True)
        self._children.close()
        self._state.remove()

    def start_apiserver(self) -> None:
        """Start kube-apiserver on this control plane's port and data, and wait until /readyz says ok."""
        folder = self.folder
        self._start(
            "kube-apiserver",
            f"--etcd-servers=https://{LOOPBACK}:{self._etcd_port}",
            f"--etcd-cafile={self.ca_file}",
            f"--etcd-certfile={folder / 'etcd-client.crt'}",
            f"--etcd-keyfile={folder / 'etcd-client.key'}",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={self.port}",
            # What Service "kubernetes" points to; it may not be loopback, and this is loopback to a guest.
            f"--advertise-address={GUEST_VIEW_OF_LOOPBACK}",
            f"--tls-cert-file={folder / 'kube-apiserver.crt'}",
            f"--tls-private-key-file={folder / 'kube-apiserver.key'}",
            f"--client-ca-file={self.ca_file}",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={folder / 'service-account.pub'}",
            f"--service-account-signing-key-file={folder / 'service-account.key'}",
            f"--service-cluster-ip-range={SERVICE_RANGE}",
            "--authorization-mode=Node,RBAC",
            "--enable-admission-plugins=NodeRestriction",
            # The aggregation layer; without a CA here every component keeps complaining in its log.
            f"--requestheader-client-ca-file={folder / 'front-proxy-ca.crt'}",
            "--requestheader-allowed-names=front-proxy-client",
            "--requestheader-username-headers=X-Remote-User",
            "--requestheader-group-headers=X-Remote-Group",
            "--requestheader-extra-headers-prefix=X-Remote-Extra-",
            f"--proxy-client-cert-file={folder / 'front-proxy-client.crt'}",
            f"--proxy-client-key-file={folder / 'front-proxy-client.key'}",
            "--allow-privileged=true",
            # A clean stop ends the watches after this, not at their leisure (60 s).
            "--shutdown-watch-termination-grace-period=1s",
        )
        self._wait_ready("kube-apiserver", self.port, "/readyz")

    def stop_apiserver(self, *, force: bool = False) -> None:
        """End kube-apiserver, with SIGKILL if `force`; data and port stay for `start_apiserver`."""
        self._end("kube-apiserver", force=force)

    def start_controller_manager(self) -> None:
        """Start kube-controller-manager: garbage collector, namespaces, service accounts and the rest.

        The garbage collector looks for new kinds every 30 s: install CRDs first where that matters.
        """
        folder = self.folder
        identity = self.kubeconfig("system:kube-controller-manager")
        self._start(
            "kube-controller-manager",
            f"--kubeconfig={identity}",
            f"--authentication-kubeconfig={identity}",
            f"--authorization-kubeconfig={identity}",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={self._manager_port}",
            f"--tls-cert-file={folder / 'components.crt'}",
            f"--tls-private-key-file={folder / 'components.key'}",
            f"--root-ca-file={self.ca_file}",
            f"--service-account-private-key-file={folder / 'service-account.key'}",
            "--use-service-account-credentials=true",
            "--leader-elect=false",
            # Its default of 20 requests a second makes a fresh cluster wait seconds for its own first objects.
            "--kube-api-qps=200",
            "--kube-api-burst=400",
            "--controllers=*," + ",".join(f"-{name}" for name in CONTROLLERS_OFF),
        )
        self._wait_ready("kube-controller-manager", self._manager_port, "/healthz")
        self._wait_for_service_account("default")

    def start_scheduler(self) -> None:
        """Start kube-scheduler."""
        identity = self.kubeconfig("system:kube-scheduler")
        self._start(
            "kube-scheduler",
            f"--kubeconfig={identity}",
            f"--authentication-kubeconfig={identity}",
            f"--authorization-kubeconfig={identity}",
            f"--bind-address={LOOPBACK}",
            f"--secure-port={self._scheduler_port}",
            f"--tls-cert-file={self.folder / 'components.crt'}",
            f"--tls-private-key-file={self.folder / 'components.key'}",
            "--leader-elect=false",
        )
        self._wait_ready("kube-scheduler", self._scheduler_port, "/readyz")

    def _start_etcd(self) -> None:
        client, peer = f"https://{LOOPBACK}:{self._etcd_port}", f"https://{LOOPBACK}:{self._peer_port}"
        certificate, key = self.folder / "etcd.crt", self.folder / "etcd.key"
        self._start(
            "etcd",
            f"--data-dir={self.folder / 'etcd'}",
            "--unsafe-no-fsync",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            f"--cert-file={certificate}",
            f"--key-file={key}",
            "--client-cert-auth",
            f"--trusted-ca-file={self.ca_file}",
            f"--peer-cert-file={certificate}",
            f"--peer-key-file={key}",
            "--peer-client-cert-auth",
            f"--peer-trusted-ca-file={self.ca_file}",
        )

    def _start(self, name: str, *flags: str) -> None:
        if name in self._running:
            raise ControlPlaneError(f"{name} is running already")
        self._running[name] = self._children.start(
            name, [tool_path(name), *flags], log=self.log(name), env=self._environment()
        )

    def _end(self, name: str, *, force: bool = False) -> None:
        child = self._running.pop(name, None)
        if child is not None:
            self._children.stop(child, force=force)

    def _wait_ready(self, name: str, port: int, path: str) -> None:
        trust = ssl.create_default_context(cafile=str(self.ca_file))
        if name == "kube-apiserver":
            trust.load_cert_chain(self.folder / "admin.crt", self.folder / "admin.key")
        last = "no answer"

        def ready() -> bool:
            nonlocal last
            for child in self._running.values():
                child.check()
            try:
                with urllib.request.urlopen(f"https://{LOOPBACK}:{port}{path}", timeout=5, context=trust) as answer:
                    return bool(answer.status == 200)
            except urllib.error.HTTPError as error:
                with error:
                    last = error.read().decode(errors="replace")
            except OSError as error:
                last = str(error)
            return False

        try:
            wait_until(ready, what=f"{name} ready", timeout=START_SECONDS)
        except ChildError as error:
            raise ControlPlaneError(str(error)) from error
        except DeadlineError as error:
            tail = self._running[name].log_tail()
            raise ControlPlaneError(f"{error}\n{path} said: {last}\nthe end of {self.log(name)}:\n{tail}") from error

    def _write_credentials(self) -> None:
        folder, authority = self.folder, self._authority
        self.ca_file.write_bytes(authority.certificate)
        own = {"dns_names": ["localhost"], "ip_addresses": [LOOPBACK]}
        authority.issue_server("etcd", **own).write(folder, "etcd")
        authority.issue_server("components", **own).write(folder, "components")
        authority.issue_server("kube-apiserver", dns_names=API_SERVER_NAMES, ip_addresses=API_SERVER_ADDRESSES).write(
            folder, "kube-apiserver"
        )
        authority.issue_client("kube-apiserver-etcd-client").write(folder, "etcd-client")
        authority.issue_client("admin", groups=["system:masters"]).write(folder, "admin")
        front_proxy = CertificateAuthority.create("numaplacement-test-front-proxy-ca")
        (folder / "front-proxy-ca.crt").write_bytes(front_proxy.certificate)
        front_proxy.issue_client("front-proxy-client").write(folder, "front-proxy-client")
        private, public = signing_key()
        write_private(folder / "service-account.key", private)
        (folder / "service-account.pub").write_bytes(public)

    # Identities

    @property
    def admin_kubeconfig(self) -> Path:
        """The cluster administrator's kubeconfig, for use on this machine."""
        return self.kubeconfig()

    def kubeconfig(self, user: str = "admin", *, groups: Sequence[str] = (), server_host: str = LOOPBACK) -> Path:
        """Return a kubeconfig with a client certificate for `user`; "admin" is in group system:masters.

        All credentials are inside the file, so it can be carried into a guest (`server_host=GUEST_VIEW_OF_LOOPBACK`).
        """
        if user == "admin":
            groups = ["system:masters"]
        path = self.folder / f"kubeconfig-{_file_name(user, *groups)}-{server_host}.yaml"
        if not path.exists():
            identity = self._authority.issue_client(user, groups=groups)
            write_private(path, with_client_certificate(self._server(server_host), user=user, identity=identity))
        return path

    def service_account_kubeconfig(
        self,
        namespace: str,
        name: str,
        *,
        bound_pod: str | None = None,
        server_host: str = LOOPBACK,
        duration: str = "1h",
    ) -> Path:
        """Return a kubeconfig with a fresh token of a service account (TokenRequest).

        `bound_pod` is the name of a Pod of that account in the namespace: the token is then bound to it and carries the
        name and UID of the node it runs on, as a token mounted into the Pod does (KEP-4193).
        """
        words = ["create", "token", name, "--namespace", namespace, "--duration", duration]
        if bound_pod is not None:
            uid = self.kubectl("get", "pod", bound_pod, "-n", namespace, "-o", "jsonpath={.metadata.uid}").stdout
            words += ["--bound-object-kind", "Pod", "--bound-object-name", bound_pod, "--bound-object-uid", uid]
        token = self.kubectl(*words).stdout.strip()
        path = self.folder / f"kubeconfig-sa-{_file_name(namespace, name, bound_pod or 'unbound')}-{server_host}.yaml"
        write_private(path, with_token(self._server(server_host), user=f"{namespace}/{name}", token=token))
        return path

    def _server(self, host: str) -> Server:
        return Server(url=f"https://{host}:{self.port}", ca=self._authority.certificate)

    # Using it

    def kubectl(
        self,
        *arguments: str | Path,
        input: str | None = None,  # noqa: A002  (the name subprocess.run gives it)
        kubeconfig: Path | None = None,
        check: bool = True,
        timeout: float = 120,
    ) -> subprocess.CompletedProcess[str]:
        """Run kubectl (as admin unless `kubeconfig` says otherwise) and return what it did, output as text.

        Raises `ControlPlaneError` with kubectl's own message if it fails, unless `check` is false.
        """
        words = [str(word) for word in arguments]
        done = subprocess.run(
            [str(self._kubectl), "--kubeconfig", str(kubeconfig or self.admin_kubeconfig), *words],
            input=input,
            stdin=subprocess.DEVNULL if input is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            env=self._environment(),
            check=False,
        )
        if check and done.returncode != 0:
            raise ControlPlaneError(f"kubectl {' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
        return done

    @contextmanager
    def kubectl_lines(self, *arguments: str) -> Iterator[Iterator[str]]:
        """Give the lines kubectl prints while it runs (`get --watch`); it is ended with the block."""
        command = [str(self._kubectl), "--kubeconfig", str(self.admin_kubeconfig), *arguments]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=self._environment())
        assert process.stdout is not None
        try:
            yield (line.rstrip("\n") for line in process.stdout)
        finally:
            process.terminate()
            process.wait()

    def get(self, *arguments: str) -> dict[str, Any]:
        """Return what `kubectl get … -o json` answers."""
        answer: dict[str, Any] = json.loads(self.kubectl("get", *arguments, "-o", "json").stdout)
        return answer

    def apply(
        self, source: Path | str | Mapping[str, Any] | Sequence[Mapping[str, Any]], *, kubeconfig: Path | None = None
    ) -> None:
        """Apply, server-side, objects or YAML text or a file or a folder (kustomize if it has a kustomization)."""
        words: list[str | Path] = ["apply", "--server-side"]
        if isinstance(source, Path):
            flag = "-k" if (source / "kustomization.yaml").exists() else "-f"
            self.kubectl(*words, flag, source, kubeconfig=kubeconfig)
        else:
            self.kubectl(*words, "-f", "-", input=_manifest(source), kubeconfig=kubeconfig)

    def create(self, wanted: Mapping[str, Any]) -> dict[str, Any]:
        """Create one object and return what the server made of it."""
        created = self.kubectl("create", "-f", "-", "-o", "json", input=json.dumps(wanted)).stdout
        answer: dict[str, Any] = json.loads(created)
        return answer

    def install_crds(self) -> None:
        """Install the repository's CRDs and KubeVirt's, and wait until the server serves them."""
        # Not apply: KubeVirt's schema does not fit into the annotation apply keeps.
        created = [
            self.kubectl("create", *source, "-o", "name").stdout.split()
            for source in (("-k", CRDS), ("-f", kubevirt_crds()))
        ]
        names = [name for group in created for name in group]
        self.kubectl("wait", "--for=condition=Established", "--timeout=60s", *names)
        crds = self.get("customresourcedefinitions")["items"]
        self._custom_kinds = [crd["metadata"]["name"] for crd in crds if crd["spec"]["scope"] == "Namespaced"]

    def create_namespace(self, name: str) -> None:
        """Create a namespace in which pods can be created at once.

        The ServiceAccount admission plug-in wants the service account "default", which the controller-manager makes;
        where none runs, it is made here.
        """
        self.kubectl("create", "namespace", name)
        if "kube-controller-manager" in self._running:
            self._wait_for_service_account(name)
        else:
            self.kubectl("create", "serviceaccount", "default", "--namespace", name)

    def delete_namespace(self, name: str) -> None:
        """Delete a namespace; its pods and custom objects are gone on return, the controller-manager removes the rest.

        Pods go at once: no kubelet is there to confirm their end. VMIs lose the finalizer that virt-controller, which
        is not there either, would take away.
        """
        if VMI in self._custom_kinds:
            for vmi in self.kubectl("get", VMI, "-n", name, "-o", "name").stdout.split():
                self.kubectl("patch", vmi, "-n", name, "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
        kinds = ",".join(["pods", *self._custom_kinds])
        self.kubectl("delete", kinds, "--all", "-n", name, "--force", "--grace-period=0")
        self.kubectl("delete", "namespace", name, "--wait=false")

    def _wait_for_service_account(self, namespace: str) -> None:
        wait_until(
            lambda: self.kubectl("get", "serviceaccount", "default", "-n", namespace, check=False).returncode == 0,
            what=f"service account {namespace}/default",
            timeout=START_SECONDS,
        )

    def _environment(self) -> dict[str, str]:
        # HOME here: kubectl's caches and settings are this session's, not the person's.
        return {"PATH": os.environ.get("PATH", os.defpath), "HOME": str(self.folder)}


def _manifest(source: str | Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> str:
    if isinstance(source, str):
        return source
    if isinstance(source, Mapping):
        return json.dumps(source)
    return json.dumps({"apiVersion": "v1", "kind": "List", "items": list(source)})


def _file_name(*words: str) -> str:
    return "-".join(word.replace(":", ".").replace("/", "_") for word in words)
