# SPDX-License-Identifier: Apache-2.0
"""A VM's cgroup, named as kubelet and containerd name it."""

from __future__ import annotations

import secrets
from pathlib import Path

from tests.rig.vm_spec import VmSpec

CGROUPS = Path("/sys/fs/cgroup")
_CONTROLLERS = ("cpuset", "cpu", "io", "memory", "hugetlb", "pids")


def cgroup_path(*, pod_uid: str, container_id: str, qos: str, driver: str) -> str:
    """The container's cgroup below /sys/fs/cgroup as kubelet and containerd name it (kernel.md:
    pod_container_manager_linux.go).
    """
    level = "" if qos == "Guaranteed" else qos.lower()
    if driver == "systemd":
        slice_name = "-".join(part for part in ("kubepods", level) if part)
        pod = f"{slice_name}-pod{pod_uid.replace('-', '_')}.slice"
        parents = ["kubepods.slice", f"{slice_name}.slice"] if level else ["kubepods.slice"]
        return "/".join([*parents, pod, f"cri-containerd-{container_id}.scope"])
    return "/".join(part for part in ("kubepods", level, f"pod{pod_uid}", container_id) if part)


def make_cgroup(spec: VmSpec) -> Path:
    """Create the VM's container cgroup, with every controller on down to it."""
    container_id = secrets.token_hex(32)
    path = cgroup_path(pod_uid=spec.pod_uid, container_id=container_id, qos=spec.qos, driver=spec.cgroup_driver)
    group = CGROUPS
    for part in Path(path).parts:
        (group / "cgroup.subtree_control").write_text(" ".join(f"+{controller}" for controller in _CONTROLLERS))
        group /= part
        group.mkdir(exist_ok=True)
    return group
