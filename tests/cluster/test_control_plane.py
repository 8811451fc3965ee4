# SPDX-License-Identifier: Apache-2.0
"""The rig's control plane is what the other tests take it for: real, verified, restrictive and gone afterwards."""

import json
import os
import signal
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.rig.certificates import CertificateAuthority
from tests.rig.children import Children
from tests.rig.control_plane import GUEST_VIEW_OF_LOOPBACK, ControlPlane, ControlPlaneError
from tests.rig.kubevirt import start_vm
from tests.rig.waiting import wait_until

REPOSITORY = Path(__file__).parent.parent.parent
CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap"}


@pytest.fixture(scope="module")
def own_control_plane() -> Iterator[ControlPlane]:
    """A bare one of this module's own, which tests may stop and start."""
    with ControlPlane() as running:
        yield running


def ask(control_plane: ControlPlane, path: str, *, trust: ssl.SSLContext) -> int:
    url = f"https://127.0.0.1:{control_plane.port}{path}"
    try:
        with urllib.request.urlopen(url, timeout=10, context=trust) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def gone(pid: int) -> bool:
    """Tell whether no process has this PID or only a zombie does, which its new parent has yet to collect."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def test_versions_are_those_of_the_tool_module(control_plane: ControlPlane) -> None:
    versions = json.loads(control_plane.kubectl("version", "-o", "json").stdout)
    assert versions["serverVersion"]["gitVersion"] == versions["clientVersion"]["gitVersion"] == "v1.37.2"


def test_client_that_trusts_another_ca_refuses_the_server(control_plane: ControlPlane) -> None:
    stranger = CertificateAuthority.create("stranger").certificate.decode()
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        ask(control_plane, "/readyz", trust=ssl.create_default_context(cadata=stranger))
    assert ask(control_plane, "/readyz", trust=ssl.create_default_context(cafile=str(control_plane.ca_file))) == 200


def test_server_refuses_a_client_certificate_of_another_ca(control_plane: ControlPlane, tmp_path: Path) -> None:
    forged = CertificateAuthority.create("numaplacement-test-ca").issue_client("admin", groups=["system:masters"])
    trust = ssl.create_default_context(cafile=str(control_plane.ca_file))
    trust.load_cert_chain(*forged.write(tmp_path, "forged"))
    assert ask(control_plane, "/api/v1/namespaces", trust=trust) == 401

    genuine = ssl.create_default_context(cafile=str(control_plane.ca_file))
    genuine.load_cert_chain(control_plane.folder / "admin.crt", control_plane.folder / "admin.key")
    assert ask(control_plane, "/api/v1/namespaces", trust=genuine) == 200


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", GUEST_VIEW_OF_LOOPBACK, "kubernetes.default.svc"])
def test_server_certificate_is_good_for_every_name_clients_use(control_plane: ControlPlane, host: str) -> None:
    # --tls-server-name has kubectl verify against that name while it connects to loopback.
    assert control_plane.kubectl("get", "--raw", "/readyz", f"--tls-server-name={host}").stdout == "ok"


def test_server_certificate_is_not_good_for_other_names(control_plane: ControlPlane) -> None:
    answer = control_plane.kubectl("get", "--raw", "/readyz", "--tls-server-name=example.org", check=False)
    assert answer.returncode != 0
    assert "certificate is valid for" in answer.stderr


def test_service_account_may_do_only_what_rbac_grants(control_plane: ControlPlane, namespace: str) -> None:
    control_plane.kubectl("create", "serviceaccount", "nobody", "-n", namespace)
    kubeconfig = control_plane.service_account_kubeconfig(namespace, "nobody")
    whoami = json.loads(control_plane.kubectl("auth", "whoami", "-o", "json", kubeconfig=kubeconfig).stdout)
    assert whoami["status"]["userInfo"]["username"] == f"system:serviceaccount:{namespace}:nobody"

    refused = control_plane.kubectl("get", "pods", "-n", namespace, kubeconfig=kubeconfig, check=False)
    assert refused.returncode != 0
    assert "Forbidden" in refused.stderr

    control_plane.kubectl(
        "create", "rolebinding", "reads", "-n", namespace, "--clusterrole=view", f"--serviceaccount={namespace}:nobody"
    )
    control_plane.kubectl("get", "pods", "-n", namespace, kubeconfig=kubeconfig)


def test_named_user_with_a_certificate_is_not_an_administrator(control_plane: ControlPlane) -> None:
    identity = control_plane.kubeconfig("jane", groups=["developers"])
    info = json.loads(control_plane.kubectl("auth", "whoami", "-o", "json", kubeconfig=identity).stdout)
    assert info["status"]["userInfo"]["username"] == "jane"
    assert "developers" in info["status"]["userInfo"]["groups"]
    with pytest.raises(ControlPlaneError, match="Forbidden"):
        control_plane.kubectl("get", "nodes", kubeconfig=identity)


def test_garbage_collector_removes_what_a_deleted_object_owned(control_plane: ControlPlane, namespace: str) -> None:
    def config_map(name: str, owners: list[dict[str, str]]) -> dict[str, object]:
        return {**CONFIG_MAP, "metadata": {"name": name, "namespace": namespace, "ownerReferences": owners}}

    owner = control_plane.create(config_map("owner", []))
    reference = {"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner["metadata"]["uid"]}
    control_plane.apply([config_map("owned", [reference]), config_map("free", [])])
    control_plane.kubectl("delete", "configmap", "owner", "-n", namespace)
    control_plane.kubectl("wait", "--for=delete", "configmap/owned", "-n", namespace, "--timeout=60s")
    control_plane.kubectl("get", "configmap", "free", "-n", namespace)


def test_deleted_namespace_leaves_nothing_behind(control_plane: ControlPlane) -> None:
    name = "short-lived"
    control_plane.create_namespace(name)
    control_plane.apply({**CONFIG_MAP, "metadata": {"name": "left", "namespace": name}})
    vm = start_vm(control_plane, namespace=name, name="db", host="host-a")
    control_plane.delete_namespace(name)
    for kind, object_name in (("pod", vm.pod_name), ("vmi", vm.vm)):
        assert "NotFound" in control_plane.kubectl("get", kind, object_name, "-n", name, check=False).stderr
    control_plane.kubectl("wait", "--for=delete", f"namespace/{name}", "--timeout=60s")


def test_apply_takes_text_file_kustomization_and_objects(
    control_plane: ControlPlane, namespace: str, tmp_path: Path
) -> None:
    def object_named(name: str) -> dict[str, object]:
        return {**CONFIG_MAP, "metadata": {"name": name, "namespace": namespace}}

    control_plane.apply(yaml.safe_dump(object_named("text")))
    control_plane.apply([object_named("one"), object_named("two")])
    (tmp_path / "file.yaml").write_text(yaml.safe_dump(object_named("file")))
    control_plane.apply(tmp_path / "file.yaml")
    (tmp_path / "kustomization.yaml").write_text("resources: [file.yaml]\nnamePrefix: kustomized-\n")
    control_plane.apply(tmp_path)
    found = {item["metadata"]["name"] for item in control_plane.get("configmaps", "-n", namespace)["items"]}
    assert found >= {"text", "one", "two", "file", "kustomized-file"}


def test_restarted_apiserver_has_the_same_address_and_data(own_control_plane: ControlPlane) -> None:
    kubeconfig = own_control_plane.admin_kubeconfig
    own_control_plane.create_namespace("kept")
    own_control_plane.stop_apiserver()
    down = own_control_plane.kubectl("get", "namespaces", check=False)
    assert "refused" in down.stderr
    own_control_plane.start_apiserver()
    own_control_plane.kubectl("get", "namespace", "kept", kubeconfig=kubeconfig)
    own_control_plane.stop_apiserver(force=True)
    own_control_plane.start_apiserver()
    own_control_plane.kubectl("get", "namespace", "kept", kubeconfig=kubeconfig)


def test_pods_can_be_created_without_the_controller_manager(own_control_plane: ControlPlane) -> None:
    own_control_plane.create_namespace("bare")
    spec = {"containers": [{"name": "main", "image": "none"}]}
    own_control_plane.create(
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod", "namespace": "bare"}, "spec": spec}
    )


def test_scheduler_looks_for_a_host_when_asked_for(own_control_plane: ControlPlane) -> None:
    own_control_plane.start_scheduler()
    own_control_plane.create_namespace("scheduled")
    spec = {"containers": [{"name": "main", "image": "none"}]}
    metadata = {"name": "waits", "namespace": "scheduled"}
    own_control_plane.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    wait = ("wait", "--for=jsonpath={.status.conditions[0].reason}=Unschedulable", "pod/waits", "--timeout=60s")
    own_control_plane.kubectl(*wait, "-n", "scheduled")


def test_failed_start_says_what_the_program_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.rig.control_plane.SERVICE_RANGE", "not-a-range")
    broken = ControlPlane()
    with pytest.raises(ControlPlaneError, match=r"kube-apiserver ended with code 1(.|\n)*is not a valid cidr"):
        broken.start()
    assert broken.pids == {}
    assert not broken.folder.exists()


def test_programs_end_with_a_session_that_is_killed() -> None:
    session = """
import json, signal
from tests.rig.control_plane import ControlPlane
with ControlPlane() as running:
    print(json.dumps({"pids": running.pids, "folder": str(running.folder)}), flush=True)
    signal.pause()
"""
    with subprocess.Popen([sys.executable, "-c", session], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        started = json.loads(child.stdout.readline())
        assert set(started["pids"]) == {"etcd", "kube-apiserver"}
        assert not any(gone(pid) for pid in started["pids"].values())
        os.kill(child.pid, signal.SIGKILL)
    wait_until(lambda: all(gone(pid) for pid in started["pids"].values()), what="programs gone", timeout=10)
    # The killed session could not remove its folder; the next one does.
    assert Path(started["folder"]).exists()
    next_one = ControlPlane()
    next_one.stop()
    assert not Path(started["folder"]).exists()


def test_program_outlives_the_thread_that_asked_for_it(tmp_path: Path) -> None:
    with Children() as children:

        def ask() -> None:
            sleeper = children.start("sleep", ["sleep", "60"], log=tmp_path / "log")
            # Only once setpriv has become the program is the kernel told when to kill it.
            comm = Path(f"/proc/{sleeper.pid}/comm")
            wait_until(lambda: comm.read_text() == "sleep\n", what="sleep started", timeout=10)

        asking = threading.Thread(target=ask)
        asking.start()
        asking.join()
        (sleeping,) = children._running
        with pytest.raises(subprocess.TimeoutExpired):
            sleeping.process.wait(0.5)
    assert sleeping.process.returncode == -signal.SIGTERM
