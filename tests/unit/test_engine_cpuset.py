# SPDX-License-Identifier: Apache-2.0
"""Finding a process's cgroup and binding it: decisions, and the writes on files that stand for a cgroup tree."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from numaplacement.engine.cgroups import Container, NoCgroup, find_container
from numaplacement.engine.cpuset import (
    CONTAINER_LIMIT,
    LEFT_LIMIT,
    CannotRead,
    Cpuset,
    RebindOutcome,
    others_in,
    plan_rebind,
    prepare_rebind,
)
from numaplacement.engine.errors import ProcessEnded
from numaplacement.engine.kernel import Kernel

PID = 4242
POD = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod0f9a3c1e_7d5b_4c7e_9d59_0a3a55d8a4f1.slice"
SCOPE = f"{POD}/cri-containerd-77aa.scope"


class Tree(Kernel):
    """A host of files: threads in cgroups, cpusets with what is in effect worked out as the kernel does."""

    def __init__(self, root: Path) -> None:
        super().__init__(proc=root / "proc", sys=root / "sys")
        self.root = root / "sys/fs/cgroup"
        self.failing: dict[str, int] = {}
        self.overruled: dict[str, str] = {}
        self.written: list[tuple[str, str]] = []
        self.make("", "0-3")
        (self.proc / str(PID) / "task").mkdir(parents=True)

    def make(self, path: str, mems: str = "", kind: str = "domain") -> Path:
        directory = self.root / path
        for each in (*reversed(directory.relative_to(self.root).parents), directory.relative_to(self.root)):
            (self.root / each).mkdir(parents=True, exist_ok=True)
            for name in ("cgroup.procs", "cgroup.threads", "cpuset.mems"):
                (self.root / each / name).touch()
        (directory / "cgroup.type").write_text(f"{kind}\n")
        (directory / "cpuset.mems").write_text(f"{mems}\n")
        return directory

    def thread(self, thread: int, path: str, *, seen_as: str | None = None) -> None:
        task = self.proc / str(PID) / "task" / str(thread)
        task.mkdir()
        (task / "cgroup").write_text(f"0::/{path if seen_as is None else seen_as}\n")
        with (self.root / path / "cgroup.threads").open("a") as file:
            file.write(f"{thread}\n")

    def read(self, path: Path) -> str:
        if path.name == "cgroup.procs" and (path.parent / "cgroup.type").read_text() == "threaded\n":
            raise OSError(errno.EOPNOTSUPP, "not supported")
        if path.name != "cpuset.mems.effective":
            return super().read(path)
        own = super().read(path.parent / "cpuset.mems").strip()
        return f"{own}\n" if own else self.read(path.parent.parent / path.name)

    def write(self, path: Path, text: str) -> None:
        name = str(path.relative_to(self.root))
        if name in self.failing:
            raise OSError(self.failing[name], "failed", str(path))
        self.written.append((name, text.strip()))
        super().write(path, self.overruled.get(name, text))

    def mems(self, path: str) -> str:
        return (self.root / path / "cpuset.mems").read_text().strip()


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)


def one_container(tree: Tree, mems: str = "2", prefix: str = "") -> Container:
    """QEMU as KubeVirt keeps it: vCPUs in the container's cgroup, the others in its threaded child housekeeping."""
    tree.make(SCOPE, mems, "domain threaded")
    tree.make(f"{SCOPE}/housekeeping", "", "threaded")
    tree.thread(PID, f"{SCOPE}/housekeeping", seen_as=f"{prefix}{SCOPE}/housekeeping")
    tree.thread(PID + 1, SCOPE, seen_as=f"{prefix}{SCOPE}")
    (tree.root / SCOPE / "cgroup.procs").write_text(f"{PID}\n17\n")
    return find_container(PID, tree)


def test_the_domain_of_threads_in_several_cgroups(tree: Tree) -> None:
    container = one_container(tree)
    assert container.directory == tree.root / SCOPE
    assert container.inner == (tree.root / SCOPE / "housekeeping",)
    assert container.processes == {PID, 17}
    assert container.dedicated
    assert others_in(container, PID) == 0


def test_a_path_that_climbs_out_of_the_namespace_is_found_by_its_end(tree: Tree) -> None:
    tree.make(f"other.slice/{SCOPE}")  # ends alike, but does not list the thread
    tree.make(SCOPE)
    tree.thread(PID, SCOPE, seen_as=f"../../{SCOPE.partition('/')[2]}")
    assert find_container(PID, tree).directory == tree.root / SCOPE


def test_a_path_that_means_another_cgroup_here_is_not_believed(tree: Tree) -> None:
    tree.make("app")
    tree.make("mine/app")
    tree.thread(PID, "mine/app", seen_as="app")
    with pytest.raises(NoCgroup, match="no directory below") as caught:
        find_container(PID, tree)
    assert "/sys/fs/cgroup" in caught.value.remedy


def test_cgroup_v1_and_a_process_that_ended(tree: Tree) -> None:
    with pytest.raises(ProcessEnded):
        find_container(1, tree)
    (tree.proc / str(PID) / "task/1").mkdir()
    (tree.proc / str(PID) / "task/1/cgroup").write_text("4:cpuset:/pod\n")
    with pytest.raises(NoCgroup, match="no cgroup v2"):
        find_container(PID, tree)


@pytest.mark.parametrize(
    ("path", "dedicated"),
    [
        (SCOPE, True),
        ("kubepods/besteffort/pod0f9a3c1e-7d5b-4c7e-9d59-0a3a55d8a4f1/77aa", True),
        ("machine.slice/machine-qemu\\x2d1\\x2ddb.scope/libvirt", True),
        ("user.slice/user-0.slice/session-1.scope", False),
        ("system.slice/podman.service", False),
    ],
)
def test_whose_cgroup_it_is(tree: Tree, path: str, dedicated: bool) -> None:
    tree.make(path)
    tree.thread(PID, path)
    (tree.root / path / "cgroup.procs").write_text(f"{PID}\n17\n")
    container = find_container(PID, tree)
    assert container.dedicated is dedicated
    assert others_in(container, PID) == (0 if dedicated else 1)


def cpuset(name: str, own: set[int], effective: set[int], above: set[int] | None = None) -> Cpuset:
    return Cpuset(
        directory=Path("/pod") / name,
        own=frozenset(own),
        effective=frozenset(effective),
        above=frozenset(range(4) if above is None else above),
    )


Writes = list[tuple[str, set[int]]]


@pytest.mark.parametrize(
    ("cpusets", "targets", "before", "after"),
    [
        pytest.param([cpuset("c", set(), {0, 1, 2, 3})], {0}, [], [("c", {0})], id="no limit yet"),
        pytest.param([cpuset("c", {0, 2}, {0, 2})], {0}, [], [("c", {0})], id="target inside"),
        pytest.param([cpuset("c", {2}, {2})], {0}, [("c", {0, 2})], [("c", {0})], id="target outside"),
        pytest.param([cpuset("c", {0}, {0})], {0}, [], [], id="nothing to do"),
        pytest.param([cpuset("c", {2}, {2})], {0, 3}, [("c", {0, 2, 3})], [("c", {0, 3})], id="two targets"),
        pytest.param([cpuset("c", {0}, {0})], {0, 3}, [("c", {0, 3})], [], id="widening is all"),
        pytest.param(
            [cpuset("c", {2}, {2}), cpuset("h", set(), {2})],
            {0},
            [("c", {0, 2})],
            [("c", {0})],
            id="a child that follows",
        ),
        pytest.param(
            [cpuset("c", {2, 3}, {2, 3}), cpuset("vcpu0", {2}, {2}, {2, 3}), cpuset("vcpu1", {0}, {2, 3}, {2, 3})],
            {0},
            [("c", {0, 2, 3}), ("vcpu0", {0, 2}), ("vcpu1", {0})],
            [("vcpu0", {0}), ("c", {0})],
            id="children with cpusets of their own",
        ),
    ],
)
def test_plan(cpusets: list[Cpuset], targets: set[int], before: Writes, after: Writes) -> None:
    plan = plan_rebind(cpusets, targets=frozenset(targets))
    assert [(step.directory.name, set(step.mems)) for step in plan.before] == before
    assert [(step.directory.name, set(step.mems)) for step in plan.after if step.mems != step.present] == after
    assert not plan.refused


def test_plan_stays_inside_what_is_above_and_leaves_others_alone() -> None:
    above = plan_rebind([cpuset("c", {2}, {2}, {1, 2})], targets=frozenset({0}))
    assert (above.before, above.after) == ((), ())
    assert above.refused == "the cgroup above c allows NUMA nodes 1-2 only"
    assert "0" in above.remedy
    shared = plan_rebind([cpuset("c", {2}, {2})], targets=frozenset({0}), others=3)
    assert (shared.before, shared.after) == ((), ())
    assert "3" in shared.refused


def test_widened_first_then_narrowed(tree: Tree) -> None:
    rebind = prepare_rebind(PID, one_container(tree), tree, targets=frozenset({0}))
    assert rebind.widen() == RebindOutcome(
        done=True, evidence="cpuset.mems of cri-containerd-77aa.scope is 0,2 in effect", written=True
    )
    assert tree.mems(SCOPE) == "0,2"
    assert rebind.narrow(left=0).done
    assert tree.written == [(f"{SCOPE}/cpuset.mems", "0,2"), (f"{SCOPE}/cpuset.mems", "0")]
    assert tree.mems(f"{SCOPE}/housekeeping") == ""


@pytest.mark.parametrize("mems", ["2", ""])
def test_put_back(tree: Tree, mems: str) -> None:
    container = one_container(tree, mems)
    rebind = prepare_rebind(PID, container, tree, targets=frozenset({0}))
    widened = rebind.widen()
    assert widened.done
    back = rebind.put_back()
    assert back.done
    assert back.written is widened.written is bool(mems)
    assert tree.mems(SCOPE) == mems


@pytest.mark.parametrize(
    ("left", "numa_stat", "narrowed"),
    [
        (LEFT_LIMIT, "", True),
        (LEFT_LIMIT + 1, "", False),
        (0, f"anon N0={1 << 40} N2={CONTAINER_LIMIT // 2}\nfile_mapped N2={CONTAINER_LIMIT // 2}\n", True),
        (0, f"anon N2={CONTAINER_LIMIT // 2}\nfile_mapped N2={CONTAINER_LIMIT // 2 + 1}\nfile N3=9\n", False),
    ],
)
def test_never_narrowed_while_the_kernel_would_move_much(tree: Tree, left: int, numa_stat: str, narrowed: bool) -> None:
    container = one_container(tree)
    (container.directory / "memory.numa_stat").write_text(numa_stat)
    rebind = prepare_rebind(PID, container, tree, targets=frozenset({0}))
    assert rebind.widen().done
    outcome = rebind.narrow(left=left)
    assert outcome.done is narrowed
    assert tree.mems(SCOPE) == ("0" if narrowed else "0,2")
    if not narrowed:
        assert "cannot be stopped" in outcome.evidence
        assert "0,2 in effect" in outcome.evidence
        assert outcome.remedy


def test_pages_of_pools_are_left_to_the_pools(tree: Tree) -> None:
    """The kernel would take pages of the target's pool that others reserved, or move pages from one pool to another."""
    rebind = prepare_rebind(PID, one_container(tree), tree, targets=frozenset({0}))
    assert rebind.widen().done
    outcome = rebind.narrow(left=2 << 20, pooled=2 << 20)
    assert (outcome.done, outcome.written) == (False, False)
    assert outcome.evidence.startswith("2.0 MiB in pages of huge-page pools are still off NUMA nodes 0")
    assert outcome.remedy
    assert tree.mems(SCOPE) == "0,2"


def test_where_nothing_is_to_be_written_nothing_is_in_the_way(tree: Tree) -> None:
    rebind = prepare_rebind(PID, one_container(tree, "0"), tree, targets=frozenset({0}))
    outcome = rebind.narrow(left=LEFT_LIMIT + 1, pooled=1)
    assert (outcome.done, outcome.written) == (True, False)
    assert tree.written == []


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EINVAL, errno.EBUSY, errno.ENOSPC])
def test_any_errno_is_evidence_and_what_was_written_is_put_back(tree: Tree, number: int) -> None:
    one_container(tree)
    tree.make(f"{SCOPE}/vcpu0", "2", "threaded")
    tree.thread(PID + 2, f"{SCOPE}/vcpu0")
    tree.failing[f"{SCOPE}/vcpu0/cpuset.mems"] = number
    rebind = prepare_rebind(PID, find_container(PID, tree), tree, targets=frozenset({0}))
    outcome = rebind.widen()
    assert not outcome.done
    assert outcome.written
    assert errno.errorcode[number] in outcome.evidence
    assert outcome.remedy
    assert tree.mems(SCOPE) == "2"


def test_what_somebody_else_writes_over_it_is_told(tree: Tree) -> None:
    container = one_container(tree)
    tree.overruled[f"{SCOPE}/cpuset.mems"] = "1\n"
    outcome = prepare_rebind(PID, container, tree, targets=frozenset({0})).widen()
    assert not outcome.done
    assert "says 1 right after 0,2" in outcome.evidence


def test_a_cgroup_without_a_cpuset(tree: Tree) -> None:
    container = one_container(tree)
    (tree.root / SCOPE / "cpuset.mems").unlink()
    with pytest.raises(CannotRead, match="no cpuset of its own"):
        prepare_rebind(PID, container, tree, targets=frozenset({0}))


def test_walking_goes_below_the_mount_only(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    walked: list[str] = []
    real = os.walk
    monkeypatch.setattr("os.walk", lambda root: (walked.append(str(root)), real(root))[1])
    tree.make("a/b")
    tree.thread(PID, "a/b", seen_as="../a/b")
    assert find_container(PID, tree).directory.name == "b"
    assert walked == [str(tree.root)]
