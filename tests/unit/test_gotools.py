# SPDX-License-Identifier: Apache-2.0
"""Which Go, which program from where, and that a build happens once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rig import gotools
from tests.rig.gotoolchain import (
    REQUIREMENTS,
    ToolError,
    cache_folder,
    find_go,
    good_enough,
    pinned_wheel,
    version_tuple,
    wanted_go,
)
from tests.rig.gotools import (  # fmt: skip
    ETCD,
    HELM,
    KUBERNETES,
    MODULE,
    TOOLS,
    Source,
    choose,
    fingerprint,
    linker_flags,
    required_version,
    same_minor,
    tool_path,
)

REPOSITORY = Path(__file__).parent.parent.parent
GO_MOD = """\
module example

go 1.26.0

tool example.org/tool

require k8s.io/kubernetes v1.37.2

require (
	go.etcd.io/etcd/server/v3 v3.7.3 // indirect
	k8s.io/kubernetes-like v9.9.9 // indirect
	k8sXio/alike v1.0.0 // indirect
)

replace (
	k8s.io/api => k8s.io/api v0.37.2
)
"""


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("go version go1.26.8 linux/amd64", (1, 26, 8)),
        ("go version go1.27rc1 linux/amd64", (1, 27)),
        ("Kubernetes v1.37.2", (1, 37, 2)),
        ("etcd Version: 3.7.3\nGit SHA: abc\nGo Version: go1.26.8", (3, 7, 3)),
        ("1.26.0", (1, 26, 0)),
        ("no number", ()),
        ("", ()),
    ],
)
def test_version_tuple(text: str, version: tuple[int, ...]) -> None:
    assert version_tuple(text) == version


@pytest.mark.parametrize(
    ("version", "wanted", "answer"),
    [
        ("go version go1.26.0 linux/amd64", "1.26.0", True),
        ("go version go1.26.8 linux/amd64", "1.26.0", True),
        ("go version go1.27rc1 linux/amd64", "1.26.0", True),
        ("go version go2.0 linux/amd64", "1.26.0", True),
        ("go version go1.100.0 linux/amd64", "1.26.0", True),
        ("go version go1.25.9 linux/amd64", "1.26.0", False),
        ("go version go1.9 linux/amd64", "1.26.0", False),
        ("go version devel", "1.26.0", False),
        ("go version go1.26.8 linux/amd64", "", False),
    ],
)
def test_which_go_may_build(version: str, wanted: str, *, answer: bool) -> None:
    assert good_enough(version, wanted=wanted) is answer


@pytest.mark.parametrize(
    ("said", "wanted", "answer"),
    [
        ("Kubernetes v1.37.2", "v1.37.2", True),
        ("Kubernetes v1.37.0", "v1.37.2", True),
        ("Kubernetes v1.36.9", "v1.37.2", False),
        ("Kubernetes v1.3.7", "v1.37.2", False),
        ("Kubernetes v2.37.2", "v1.37.2", False),
        ("etcd Version: 3.7.0", "v3.7.3", True),
        ("etcd Version: 3.6.14", "v3.7.3", False),
        ("", "v3.7.3", False),
        ("", "", False),
    ],
)
def test_which_versions_are_the_same_minor(said: str, wanted: str, *, answer: bool) -> None:
    assert same_minor(said, wanted=wanted) is answer


@pytest.mark.parametrize(
    ("assets_answer", "cached", "source"),
    [
        ("Kubernetes v1.37.9", False, Source.ASSETS),
        ("Kubernetes v1.37.9", True, Source.ASSETS),
        ("Kubernetes v1.36.0", True, Source.CACHE),
        ("Kubernetes v1.36.0", False, Source.BUILD),
        (None, True, Source.CACHE),
        (None, False, Source.BUILD),
    ],
)
def test_order_is_assets_then_cache_then_build(assets_answer: str | None, *, cached: bool, source: Source) -> None:
    assert choose(assets_answer=assets_answer, wanted="v1.37.2", cached=cached) is source


@pytest.mark.parametrize(("module", "version"), [("k8s.io/kubernetes", "v1.37.2"), (ETCD, "v3.7.3")])
def test_version_comes_from_the_go_mod(module: str, version: str) -> None:
    assert required_version(GO_MOD, module) == version


@pytest.mark.parametrize("module", ["k8s.io/api", "k8s.io/kubernete", "example.org/tool", "k8s.io/alike"])
def test_module_that_is_not_required_is_an_error(module: str) -> None:
    with pytest.raises(ToolError, match="does not require"):
        required_version(GO_MOD, module)


def test_linker_flags_carry_the_version_of_what_the_module_builds() -> None:
    variable = "k8s.io/component-base/version"
    assert linker_flags(GO_MOD) == (
        f"-s -w -X {variable}.gitVersion=v1.37.2 -X {variable}.gitMajor=1 -X {variable}.gitMinor=37"
    )
    assert linker_flags(f"require {HELM} v4.3.0") == f"-s -w -X {HELM}/internal/version.version=v4.3.0"
    assert linker_flags("") == "-s -w"


def test_go_line_is_needed() -> None:
    assert wanted_go(GO_MOD) == "1.26.0"
    with pytest.raises(ToolError, match="no `go` line"):
        wanted_go("module example")


def test_pinned_go_can_build_every_module() -> None:
    wheel = pinned_wheel(REQUIREMENTS.read_text())
    modules = [path for path in MODULE.rglob("go.mod") if "standin" not in path.parts]
    assert len(modules) == 3
    for path in modules:
        assert good_enough(wheel, wanted=wanted_go(path.read_text())), path


def test_every_tool_has_its_version_in_its_own_go_mod() -> None:
    for tool in TOOLS.values():
        go_mod = (tool.folder / "go.mod").read_text()
        assert required_version(go_mod, tool.module)
        assert tool.package.startswith(tool.module)
        # Without the tool line `go mod tidy` would drop everything the program needs.
        assert tool.package in go_mod.split("tool", 1)[1]


def test_fingerprint_tells_where_one_input_ends_and_the_next_begins() -> None:
    assert fingerprint(b"a", b"b") == fingerprint(b"a", b"b")
    assert len({fingerprint(b"ab"), fingerprint(b"a", b"b"), fingerprint(b"", b"ab"), fingerprint(b"b", b"a")}) == 4


@pytest.mark.parametrize(
    ("environment", "folder"),
    [
        ({"NUMAPLACEMENT_CACHE": "/one", "XDG_CACHE_HOME": "/two", "HOME": "/home"}, "/one"),
        ({"XDG_CACHE_HOME": "/two", "HOME": "/home"}, "/two/numaplacement"),
        ({"HOME": "/home"}, "/home/.cache/numaplacement"),
        ({"NUMAPLACEMENT_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/home"}, "/home/.cache/numaplacement"),
    ],
)
def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], folder: str) -> None:
    for name in ("NUMAPLACEMENT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cache_folder() == Path(folder)


FAKE_GO = """\
#!/bin/sh
set -eu
case $1 in
version) echo "go version go@VERSION@ linux/amd64" ;;
build)
	echo "$@" >>"@FOLDER@/builds"
	while [ "$1" != -o ]; do shift; done
	sleep 0.3  # a build takes its time, so that two of them would meet
	[ ! -e "@FOLDER@/broken" ] || { echo "example.go:1: broken"; exit 1; }
	printf '#!/bin/sh\\necho built\\n' >"$2"
	chmod +x "$2"
	;;
esac
"""


@pytest.fixture
def fake_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a `go` first on PATH that writes down what it builds, and give it an empty cache; return its folder."""
    program = tmp_path / "go"
    program.write_text(FAKE_GO.replace("@VERSION@", "1.26.0").replace("@FOLDER@", str(tmp_path)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("NUMAPLACEMENT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return tmp_path


def builds(folder: Path) -> list[str]:
    file = folder / "builds"
    return file.read_text().splitlines() if file.exists() else []


def test_tool_is_built_once_and_then_taken_from_the_cache(fake_go: Path) -> None:
    first = tool_path("etcd")
    assert first.is_relative_to(fake_go / "cache")
    assert os.access(first, os.X_OK)
    assert tool_path("etcd") == first
    assert len(builds(fake_go)) == 1
    assert builds(fake_go)[0].endswith(ETCD)
    assert tool_path("kubectl").parent == first.parent
    assert tool_path("helm").parent != first.parent
    assert len(builds(fake_go)) == 3


def test_two_builds_at_once_do_the_work_once(fake_go: Path) -> None:
    command = [sys.executable, "-m", "tests.rig.gotools", "etcd", "kubectl"]
    both = [subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    answers = {process.communicate(timeout=60)[0] for process in both}
    assert [process.returncode for process in both] == [0, 0]
    assert len(answers) == 1
    assert len(builds(fake_go)) == 2


def test_failed_build_leaves_nothing_and_says_what_the_compiler_said(
    fake_go: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (fake_go / "broken").touch()
    assert gotools.main(["etcd"]) == 1
    assert "example.go:1: broken" in capsys.readouterr().err
    assert [path.name for path in (fake_go / "cache").rglob("*") if path.is_file()] == ["lock"]
    (fake_go / "broken").unlink()
    assert gotools.main(["etcd"]) == 0


def test_assets_of_the_right_version_are_used_and_others_are_not(
    fake_go: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = fake_go / "assets"
    assets.mkdir()
    for name, answer in (("etcd", "etcd Version: 3.7.0"), ("kube-apiserver", "Kubernetes v1.36.0")):
        (assets / name).write_text(f"#!/bin/sh\necho {answer}\n")
        (assets / name).chmod(0o755)
    (assets / "kubectl").write_text("not a program")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    assert tool_path("etcd") == assets / "etcd"
    assert tool_path("kube-apiserver").is_relative_to(fake_go / "cache")
    assert tool_path("kubectl").is_relative_to(fake_go / "cache")
    assert tool_path("kube-scheduler").is_relative_to(fake_go / "cache")


def test_old_go_on_the_path_means_the_wheel(fake_go: Path) -> None:
    assert find_go(wanted="1.26.0").program == fake_go / "go"
    go = find_go(wanted="1.26.1")
    assert go.version == pinned_wheel(REQUIREMENTS.read_text())
    assert go.program.is_relative_to(fake_go / "cache")


def test_unknown_tool_is_an_error_that_names_the_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert gotools.main(["kubelett"]) == 1
    message = capsys.readouterr().err
    assert "kubelett" in message
    assert all(name in message for name in (*TOOLS, gotools.KUBEVIRT_CRDS))


def test_control_plane_is_kubernetes_1_37_on_etcd_3_7() -> None:
    go_mod = (MODULE / "go.mod").read_text()
    assert version_tuple(required_version(go_mod, KUBERNETES))[:2] == (1, 37)
    assert version_tuple(required_version(go_mod, ETCD))[:2] == (3, 7)
