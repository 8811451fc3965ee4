# SPDX-License-Identifier: Apache-2.0
"""show, watch and completion: what is told, and to whom."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from numaplacement.cli.processes import Candidate, named, read_candidate
from numaplacement.cli.view_tables import memory_bars
from tests.unit.cli_world import PAGE, PID, UUID, Desk, Region, World

VM = str(PID)


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(root=tmp_path)


def candidate(guest: str, pid: int = 1, uuid: str = "", *, in_pod: bool = False) -> Candidate:
    command_line = ("qemu-kvm", "-name", f"guest={guest}", *(("-uuid", uuid) if uuid else ()))
    return Candidate(
        pid=pid, start_time=1, executable="/usr/bin/qemu-kvm", command_line=command_line, state="S",
        kernel_thread=False, leader=pid, in_pod=in_pod,
    )  # fmt: skip


THERE = (
    candidate("prod_db", 1, UUID, in_pod=True),
    candidate("test_db", 2, in_pod=True),
    candidate("web", 3),
    candidate("a_web", 4, in_pod=True),
    candidate("old_mail", 5),
    candidate("a_b_c", 6, in_pod=True),
    candidate("Prod_Mail", 7, in_pod=True),
    candidate("twin", 8),
    candidate("twin", 9),
)


@pytest.mark.parametrize(
    ("name", "pids"),
    [
        ("prod_db", [1]),
        ("prod/db", [1]),
        (UUID, [1]),
        (UUID.upper(), [1]),
        ("db", [1, 2]),
        ("web", [3]),
        ("a/web", [4]),
        ("old_mail", [5]),
        ("mail", []),
        ("old/mail", []),
        ("Mail", []),
        ("c", []),
        ("b_c", []),
        ("a/b_c", []),
        ("a_b_c", [6]),
        ("twin", [8, 9]),
        ("eb", []),
        ("prod", []),
        ("", []),
    ],
)
def test_vms_by_name(name: str, pids: list[int]) -> None:
    assert [each.pid for each in named(THERE, name)] == pids


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("db", 2, "prod_db (pid 1), test_db (pid 2); give NAMESPACE/NAME or the PID."),
        ("twin", 2, "twin (pid 8), twin (pid 9); give the PID."),
        ("mail", 1, "no VM named mail runs on this host; did you mean old_mail or Prod_Mail?"),
        ("old-mial", 1, "did you mean old_mail?"),
        ("xyz", 1, "it runs prod_db (pid 1), test_db (pid 2), web (pid 3)"),
        ("", 2, "The name after --vm is empty"),
    ],
)
def test_names_that_mean_no_single_vm(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, name: str, code: int, words: str
) -> None:
    monkeypatch.setattr("numaplacement.cli.selection.qemus", lambda _: THERE)
    result = desk.run("show", "--vm", name)
    assert result.exit_code == code
    assert words in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    ("cgroup", "expected"),
    [
        ("0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice/cri-containerd-1.scope\n", True),
        ("0::/kubepods/burstable/pod1/1\n", True),
        ("0::/../../kubepods/pod1\n", True),
        ("0::/kubelet.slice/kubelet-kubepods.slice/pod1\n", True),
        ("9:memory:/kubepods/burstable/pod1/1\n0::/\n", True),
        ("0::/machine.slice/machine-qemu\\x2d1\\x2dold_db.scope\n", False),
        ("0::/user.slice/mykubepodsthing\n", False),
        ("", False),
    ],
)
def test_which_process_is_in_a_pod(desk: Desk, cgroup: str, *, expected: bool) -> None:
    desk.files[f"proc/{PID}/cgroup"] = cgroup
    assert read_candidate(PID, desk.kernel).in_pod is expected
    assert (desk.run("show", "--vm", "db").exit_code == 0) is expected


def test_names_of_running_vms_are_completed_as_they_are_understood(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("numaplacement.cli.selection.qemus", lambda _: THERE)
    assert desk.completed("numaplace show --vm ", "") == {
        "prod/db", "prod_db", "test/db", "test_db", "web", "a/web", "a_web", "old_mail", "a_b_c", "Prod_Mail",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("executable", "command", "expected"),
    [
        ("/usr/bin/qemu-system-x86_64", "anything", True),
        ("/usr/bin/qemu-system-x86_64 (deleted)", "anything", True),
        ("/usr/sbin/nginx", "qemu-kvm", False),
        (None, "/usr/libexec/qemu-kvm", True),
        (None, "nginx", False),
        ("", "qemu-kvm", False),
    ],
)
def test_what_is_a_qemu(executable: str | None, command: str, expected: bool) -> None:
    each = dataclasses.replace(candidate("x"), executable=executable, command_line=(command,))
    assert each.is_qemu is expected


def test_all_vms_of_the_host(desk: Desk) -> None:
    assert desk.json("show") == {
        "vms": [
            {
                "pid": PID,
                "guest": "prod_db",
                "uuid": UUID,
                "bytes": [{"numaNode": 1, "bytes": 8 * PAGE}, {"numaNode": 2, "bytes": 8 * PAGE}],
            }
        ]
    }
    lines = desk.run("show").stdout.splitlines()
    assert lines[0].split("   ")[0] == " PID"
    assert lines[1].split() == [VM, "prod_db", "-", "32", "KiB", "32", "KiB", "-", "64", "KiB"]


def test_vms_one_may_not_look_at_are_listed_all_the_same(desk: Desk) -> None:
    desk.files[f"proc/{PID}/numa_maps"] = PermissionError(13, "Permission denied", f"/proc/{PID}/numa_maps")
    result = desk.run("show")
    assert result.exit_code == 1
    assert result.stdout.splitlines()[1].split() == [VM, "prod_db", *"?????"]
    assert "run it as root (sudo numaplace …)" in result.stderr
    assert "if you are root already, a security module denies it" in result.stderr
    assert desk.run("show", "-o", "json").exit_code == 1
    assert json.loads(desk.run("show", "-o", "json").stdout) == {
        "vms": [{"pid": PID, "guest": "prod_db", "uuid": UUID}]
    }


def test_a_host_without_vms(tmp_path: Path) -> None:
    desk = Desk(root=tmp_path, program="/usr/sbin/nginx")
    result = desk.run("show")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "No QEMU runs on this host" in result.stderr
    assert desk.json("show") == {"vms": []}


def test_one_vm_in_full(desk: Desk) -> None:
    document = desk.json("show", VM)
    assert document["memory"] == [
        {"numaNode": 1, "pageClass": "Anon", "bytes": 8 * PAGE},
        {"numaNode": 2, "pageClass": "Anon", "bytes": 8 * PAGE},
    ]
    assert (document["guest"], document["uuid"], document["memsAllowed"]) == ("prod_db", UUID, "0-3")
    assert document["threads"][1] == {
        "threadId": PID + 1, "name": "CPU 0/KVM", "vcpu": True, "cpus": "0-7", "numaNodes": "0-3", "realtime": "",
    }  # fmt: skip
    assert document["policies"] == [{"policy": "default", "bytes": 16 * PAGE}]
    assert document["risks"] == []
    assert document["autoNuma"] is False
    assert document["pins"] == {"devices": [], "locked": 0, "mlocked": 0, "pinned": 0}
    assert desk.world.calls == []


def test_what_a_move_would_be_refused_for(desk: Desk) -> None:
    desk.world.mems = "1-2"
    risks = desk.json("show", VM)["risks"]
    assert [(risk["reason"], risk["numaNodes"]) for risk in risks] == [("vm-cpuset", "0,3")]
    text = desk.run("show", VM).stdout
    assert "vm-cpuset" in text
    assert "may use memory of NUMA nodes 1-2 only" in text
    assert text.splitlines()[-1] == "What each reason means, and what to do: docs/reasons.md of this project."


def test_a_map_for_a_person(desk: Desk) -> None:
    lines = desk.run("show", "--vm", "prod_db").stdout.splitlines()
    assert lines[0] == f"VM prod_db, pid {PID}, UUID {UUID}"
    assert lines[2].split() == ["NUMA", "NODE", "ANON", "TOTAL", "SHARE"]
    assert lines[3].split() == ["1", "32", "KiB", "32", "KiB", "50%"]
    assert lines[5].split() == ["all", "64", "KiB", "64", "KiB"]
    assert any("vCPU" in line and "CPU 0/KVM" in line for line in lines)
    assert any("none accounted" in line for line in lines)


def test_names_in_brackets_are_no_markup(desk: Desk) -> None:
    desk.world.files = ("anon_inode:[kvm-vfio]",)
    desk.world.locked_kib = 64
    assert "anon_inode:[kvm-vfio]" in desk.run("show", VM).stdout


def test_another_process_is_no_vm(tmp_path: Path) -> None:
    desk = Desk(root=tmp_path, program="/usr/sbin/nginx")
    desk.world.command_line = "nginx\0"
    assert desk.run("show", "--pid", VM).stdout.splitlines()[0] == f"Process {PID}"
    assert desk.run("show", VM).exit_code == 2


def test_a_map_without_the_right_to_locate(desk: Desk) -> None:
    desk.world.blocked = True
    document = desk.json("show", VM)
    assert sum(row["bytes"] for row in document["memory"]) == 16 * PAGE
    assert {risk["reason"] for risk in document["risks"]} == {"syscall-blocked"}


@pytest.mark.parametrize("form", ["json", "yaml", "table"])
def test_watch_tells_until_the_process_ends(desk: Desk, form: str) -> None:
    result = desk.run("watch", VM, "--every", "1s", "-o", form)
    assert result.exit_code == 0
    assert "prod_db (pid 4242) has ended." in result.stderr
    if form == "table":
        assert [line.split()[0] for line in result.stdout.splitlines()] == ["2026-01-01T00:00:00Z"] * 3
        return
    if form == "json":
        looks = [json.loads(line) for line in result.stdout.splitlines()]
    else:
        looks = list(yaml.safe_load_all(result.stdout))
    assert len(looks) == 3
    assert looks[0]["bytes"] == [{"numaNode": 1, "bytes": 8 * PAGE}, {"numaNode": 2, "bytes": 8 * PAGE}]
    assert looks[0]["pid"] == PID


def test_watch_of_a_process_one_may_not_look_at(desk: Desk) -> None:
    desk.files[f"proc/{PID}/numa_maps"] = PermissionError(13, "Permission denied", "x")
    result = desk.run("watch", VM)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "run it as root (sudo numaplace …)" in result.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(desk: Desk, shell: str) -> None:
    result = desk.run("completion", shell)
    assert result.exit_code == 0
    assert "_NUMAPLACE_COMPLETE" in result.stdout
    assert f"{shell}_complete" in result.stdout


@pytest.mark.parametrize(
    ("words", "current", "expected"),
    [
        ("numaplace ", "", {"show", "plan", "move", "explain", "watch", "completion"}),
        ("numaplace show ", "", {VM}),
        ("numaplace show ", "42", {VM}),
        ("numaplace show ", "9", set()),
        ("numaplace show --vm ", "", {"prod_db"}),
        ("numaplace move --allow ", "R", {"Reclaim", "RebindCpuset", "Realtime"}),
    ],
)
def test_what_is_completed(desk: Desk, words: str, current: str, expected: set[str]) -> None:
    assert desk.completed(words, current) == expected


def test_help_names_every_exit_code(desk: Desk) -> None:
    text = desk.run("move", "--help").stdout
    assert [line.split()[0] for line in text.splitlines() if line.strip()[:1].isdigit()] == list("023451")
    assert "For experts" in " ".join(text.split())


ONE_NODE = {"sys/devices/system/node/online": "0\n", "sys/devices/system/node/has_memory": "0\n"}
NOWHERE = "this host has memory on one NUMA node only (0): there is nowhere to move it to"


def test_a_host_with_one_numa_node_has_nowhere_to_move_memory_to(tmp_path: Path) -> None:
    desk = Desk(root=tmp_path, world=World(regions=[Region(0x1000, [0] * 4)]))
    desk.files |= ONE_NODE
    text = desk.run("show", VM).stdout
    assert NOWHERE in text
    assert "Nothing was found" not in text
    (risk,) = desk.json("show", VM)["risks"]
    assert (risk["reason"], risk["numaNodes"], risk["evidence"]) == ("node-has-no-memory", "0", NOWHERE)
    assert risk["remedy"].startswith("Run this on a host that lscpu shows several NUMA nodes of")
    assert desk.run("show").exit_code == 0


NO_NUMA = "this kernel shows no NUMA nodes; run one that is built with CONFIG_NUMA, and with the host's /sys mounted"


@pytest.mark.parametrize("form", ["table", "json", "yaml"])
@pytest.mark.parametrize("command", [["show"], ["show", VM], ["watch", VM]])
def test_a_kernel_without_numa_has_nothing_to_show(desk: Desk, command: list[str], form: str) -> None:
    missing = FileNotFoundError(2, "No such file or directory")
    desk.files |= {"sys/devices/system/node/online": missing, f"proc/{PID}/numa_maps": missing}
    result = desk.run(*command, "-o", form)
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", f"numaplace: {NO_NUMA}\n")


@pytest.mark.parametrize("command", [["show"], ["show", VM], ["watch", VM]])
def test_a_file_that_is_missing_is_not_the_end_of_the_process(desk: Desk, command: list[str]) -> None:
    desk.files[f"proc/{PID}/numa_maps"] = FileNotFoundError(2, "No such file or directory", f"/proc/{PID}/numa_maps")
    result = desk.run(*command)
    assert result.exit_code == 1
    assert "process 4242 lives, but" in result.stderr


SWAPPED = [{"numaNode": -1, "bytes": 3 * PAGE}, {"numaNode": 1, "bytes": 8 * PAGE}]


def test_what_is_swapped_out_counts(tmp_path: Path) -> None:
    region = Region(0x10_0000, [1] * 8 + [-1] * 8, swapped={8, 9, 10})
    desk = Desk(root=tmp_path, world=World(regions=[region]))
    assert desk.json("show")["vms"][0]["bytes"] == SWAPPED
    header, row = desk.run("show").stdout.splitlines()
    assert header.split()[-3:] == ["3", "SWAP", "TOTAL"]
    assert row.split()[2:] == ["-", "32", "KiB", "-", "-", "12", "KiB", "44", "KiB"]


@pytest.mark.parametrize("form", ["table", "json"])
def test_watch_tells_from_when_on_memory_is_swapped_out(tmp_path: Path, form: str) -> None:
    region = Region(0x10_0000, [1] * 8 + [-1] * 8, swapped=set())
    desk = Desk(root=tmp_path, world=World(regions=[region]))
    looks = iter([set(), {8, 9, 10}, {8, 9, 10}])

    def numa_maps() -> str:
        region.swapped = next(looks, set())
        return region.numa_maps()

    desk.world.texts[f"proc/{PID}/numa_maps"] = numa_maps
    result = desk.run("watch", VM, "--every", "1s", "-o", form)
    if form == "json":
        lines = [json.loads(line)["bytes"] for line in result.stdout.splitlines()]
        assert lines == [SWAPPED[1:], SWAPPED, SWAPPED]
        return
    assert [line.split()[1:] for line in result.stdout.splitlines()] == [
        ["-", "32", "KiB", "-", "-", "32", "KiB"],
        ["-", "32", "KiB", "-", "-", "12", "KiB", "44", "KiB"],
        ["-", "32", "KiB", "-", "-", "12", "KiB", "44", "KiB"],
    ]
    assert [line for line in result.stderr.splitlines() if "in all" in line] == [
        "prod_db (pid 4242): bytes on NUMA nodes 0-3, and in all",
        "prod_db (pid 4242): bytes on NUMA nodes 0-3, in swap, and in all",
    ]


@pytest.mark.parametrize("width", [22, 30, 60, 120])
def test_a_map_that_is_watched_fits_the_terminal(width: int) -> None:
    screen = Console(file=io.StringIO(), width=width)
    made = memory_bars("prod_db (pid 4242)", {-1: 3 * PAGE, 1: 8 * PAGE, 2: 123 << 30}, (0, 1, 2), width=width)
    with screen.capture() as capture:
        screen.print(made)
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= max(width, 24)
    rows = [line.rstrip(" #").split() for line in lines[-5:]]
    assert rows[0] == ["NUMA", "NODE", "BYTES"]
    assert rows[1:] == [["0", "-"], ["1", "32", "KiB"], ["2", "123.0", "GiB"], ["swap", "12", "KiB"]]
    assert ("#" * 10 in capture.get()) is (width >= 60)


@pytest.mark.parametrize("every", ["0s", "0ms"])
def test_no_time_between_looks(desk: Desk, every: str) -> None:
    result = desk.run("watch", VM, "--every", every)
    assert result.exit_code == 2
    assert f"{every} is no time between two looks" in " ".join(result.stderr.split())


def test_help_says_what_3_means(desk: Desk) -> None:
    text = " ".join(desk.run("move", "--help").stdout.split())
    assert "3 residue: more than the tolerance is off target, or what was placed did not stay" in text
    explain = " ".join(desk.run("explain", "--help").stdout.split())
    assert "3 when more than the tolerance is not" in explain


def test_memory_on_many_numa_nodes_adds_up(tmp_path: Path) -> None:
    desk = Desk(root=tmp_path)
    desk.world.regions.append(Region(0x20_0000, [3] * 5 + [-1] * 3, file=True, path="/usr/bin/qemu-system-x86_64"))
    rows = desk.json("show", VM)["memory"]
    assert {(row["numaNode"], row["pageClass"]): row["bytes"] // PAGE for row in rows} == {
        (1, "Anon"): 8, (2, "Anon"): 8, (3, "File"): 5,
    }  # fmt: skip
