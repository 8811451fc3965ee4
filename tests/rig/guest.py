# SPDX-License-Identifier: Apache-2.0
"""A host with four NUMA nodes: Debian's own kernel in QEMU's software emulation, by virtme-ng over the machine's own
userland.

    with Guest(time_limit=300) as guest:
        print(guest.run(["numactl", "-H"]).stdout)

Inside, every file of the machine is there under its own path; what is written goes to memory and is lost, except below
`guest.shared`, a folder both see. The machine's loopback is 10.0.2.2 inside. The guest has a /dev/kvm of its own (SVM,
emulated), an IOMMU and QEMU's `edu` PCI device for VFIO.

As a command: `python -m tests.rig.guest [--time-limit S] -- COMMAND…` runs one command inside, with its output and
exit status.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.rig.guest_exec import FrameDecoder, Header, encode_frame

RIG = Path(__file__).resolve().parent
REPOSITORY = RIG.parent.parent
MACHINE_ADDRESS = "10.0.2.2"  # what QEMU's user network calls the machine's loopback
NUMA_NODES = 4
NUMA_NODE_SIZE = "2G"
TIME_LIMIT_STATUS = 124
LOST_STATUS = 255

OnOutput = Callable[[str, bytes], None]


class GuestError(Exception):
    """The guest cannot be started, or ended before it was asked to; the message says why and what to do."""


def newest_kernel(names: Sequence[str]) -> str:
    """The file name of the newest kernel in a listing of /boot.

    Versions compare by their numbers; kernels built for clouds are left out, as they lack the 9p file system.
    Raises GuestError when none is left.
    """

    def version(name: str) -> tuple[int, ...]:
        return tuple(int(number) for number in re.findall(r"\d+", name.removeprefix("vmlinuz-")))

    fit = [name for name in names if re.match(r"vmlinuz-\d", name) and "cloud" not in name]
    if not fit:
        raise GuestError(
            "no kernel in /boot that could run the emulated host; install one: apt-get install linux-image-amd64"
        )
    return max(fit, key=lambda name: (version(name), name))


def modules_folder(kernel: Path) -> Path | None:
    """Where the modules of a kernel are that lies in a folder of its own (tests/rig/kernels.py); None for the
    machine's.
    """
    folder = kernel.resolve().parent.parent / "lib" / "modules"
    return None if kernel.resolve().parent == Path("/boot") or not folder.is_dir() else folder


def qemu_command(
    *,
    kernel: Path,
    initramfs: Path,
    console: Path,
    shared: Path,
    python: Path,
    kernel_args: Sequence[str],
    qemu_opts: Sequence[str],
) -> list[str]:
    """QEMU's whole command line: four NUMA nodes of one CPU and 2 GiB each, an IOMMU, a user network."""
    modules = modules_folder(kernel)
    command = ["qemu-system-x86_64", "-name", "numa-host", "-display", "none"]
    command += ["-no-user-config", "-nodefaults", "-no-reboot"]
    # Split irqchip and an IOMMU with interrupt remapping are what a device needs to be passed through inside by VFIO.
    command += ["-machine", "q35,kernel-irqchip=split", "-accel", "tcg,thread=multi", "-cpu", "max"]
    command += ["-device", "intel-iommu,intremap=on,device-iotlb=on", "-device", "edu"]
    command += ["-smp", f"{NUMA_NODES},sockets={NUMA_NODES}", "-m", f"{NUMA_NODES * int(NUMA_NODE_SIZE[:-1])}G"]
    for node in range(NUMA_NODES):
        command += ["-object", f"memory-backend-ram,id=ram{node},size={NUMA_NODE_SIZE}"]
        command += ["-numa", f"node,nodeid={node},cpus={node},memdev=ram{node}"]
    # /dev/root is what virtme-ng's initramfs mounts; guest_init.sh goes on to rig.root, which it can mount with a
    # cache.
    for tag, folder, option in (
        ("/dev/root", Path("/"), ",readonly=on"),
        ("rig.root", Path("/"), ",readonly=on"),
        ("rig.shared", shared, ""),
    ):
        identity = "fs-" + tag.rpartition("/")[2].replace(".", "-")
        command += ["-fsdev", f"local,id={identity},path={folder},security_model=none,multidevs=remap{option}"]
        command += ["-device", f"virtio-9p-pci,fsdev={identity},mount_tag={tag}"]
    command += ["-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net"]
    command += ["-chardev", f"file,id=console,path={console},append=on", "-serial", "chardev:console"]
    words = ["console=ttyS0", "panic=-1", "quiet", "loglevel=4", "net.ifnames=0", "biosdevname=0"]
    # On a busy machine the kernel counts too few timer ticks while booting, and panics for it.
    words += ["no_timer_check"]
    words += ["intel_iommu=on", *kernel_args]
    words += [f"rig.shared={shared}", f"rig.python={python}", f"rig.agent={RIG / 'guest_exec.py'}"]
    words += [f"rig.modules={modules}"] if modules else []
    words += [f"init={RIG / 'guest_init.sh'}"]
    return [*command, "-kernel", str(kernel), "-initrd", str(initramfs), "-append", " ".join(words), *qemu_opts]


def show(stream: str, data: bytes) -> None:
    """Pass output of a process inside on to this one's: an `on_output`."""
    to = {"stdout": sys.stdout, "stderr": sys.stderr}[stream]
    to.buffer.write(data)
    to.flush()


class GuestProcess:
    """A process inside the guest. All it prints is kept; `lines` gives standard output while it runs."""

    def __init__(self, guest: Guest, number: int, argv: Sequence[str], on_output: OnOutput | None) -> None:
        self.argv = list(argv)
        self.pid: int | None = None
        self._guest = guest
        self._number = number
        self._on_output = on_output
        self._output = {"stdout": bytearray(), "stderr": bytearray()}
        self._status: int | None = None
        self._error: str | None = None
        self._lost: str | None = None
        self._changed = threading.Condition()

    @property
    def stdout(self) -> str:
        """What it wrote to standard output so far."""
        return self._output["stdout"].decode(errors="replace")

    @property
    def stderr(self) -> str:
        """What it wrote to standard error so far."""
        return self._output["stderr"].decode(errors="replace")

    def poll(self) -> int | None:
        """The exit status (negative: the signal), or None while it runs."""
        return self._status

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; the exit status. Raises subprocess.TimeoutExpired, or GuestError when the guest is lost
        first.
        """
        with self._changed:
            if not self._changed.wait_for(self._is_over, timeout):
                raise subprocess.TimeoutExpired(self.argv, timeout or 0.0, self.stdout, self.stderr)
            return self._result()

    def lines(self, timeout: float | None = None) -> Iterator[str]:
        """Lines of standard output as they come, without line ends, from the first on.

        Ends with the process. Raises subprocess.TimeoutExpired when all of it takes longer than `timeout` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        position = 0
        output = self._output["stdout"]
        while True:
            with self._changed:
                left = None if deadline is None else deadline - time.monotonic()
                if not self._changed.wait_for(partial(self._has_line, position), left):
                    raise subprocess.TimeoutExpired(self.argv, timeout or 0.0, self.stdout, self.stderr)
                end = output.find(b"\n", position)
                if end < 0:
                    self._result()
                    end = len(output)
                    if end == position:
                        return
                line = bytes(output[position:end]).decode(errors="replace")
                position = min(end + 1, len(output))
            yield line

    def write(self, data: bytes) -> None:
        """Give it standard input."""
        if data:
            self._guest._send({"op": "stdin", "id": self._number}, data)

    def close_stdin(self) -> None:
        """End its standard input."""
        self._guest._send({"op": "stdin", "id": self._number})

    def send_signal(self, number: int) -> None:
        """Send a signal to the process and all of its session's first process group; nothing when it has ended."""
        if self._status is None:
            self._guest._send({"op": "signal", "id": self._number, "signal": int(number)})

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _has_line(self, position: int) -> bool:
        return self._output["stdout"].find(b"\n", position) >= 0 or self._is_over()

    def _is_over(self) -> bool:
        return self._status is not None or self._error is not None or self._lost is not None

    def _result(self) -> int:
        if self._status is not None:
            return self._status
        if self._error is not None:
            raise FileNotFoundError(f"cannot start {self.argv[0]} in the guest: {self._error}")
        raise GuestError(self._lost)

    def _wait_started(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.pid is not None or self._is_over())
            if self.pid is None:
                self._result()

    def _receive(self, header: Header, payload: bytes) -> None:
        operation = str(header["op"])
        if operation in self._output and self._on_output:
            self._on_output(operation, payload)
        with self._changed:
            if operation in self._output:
                self._output[operation] += payload
            elif operation == "started":
                self.pid = int(str(header["pid"]))
            elif operation == "failed":
                self._error = str(header["error"])
            elif operation == "exit":
                self._status = int(str(header["status"]))
            self._changed.notify_all()

    def _lose(self, reason: str) -> None:
        with self._changed:
            self._lost = reason
            self._changed.notify_all()


class Guest:
    """The emulated host as a context manager: it is up inside the `with` block and gone after it, whatever happens.

    `time_limit` (seconds) ends the whole guest, whatever hangs; `boot_limit` is what booting may take of it. QEMU also
    ends with this process, even when that is killed: `leash.py` holds it, and the guest powers itself off when its
    connection closes. Files go to a folder of their own below `build/`: `console.log` and `shared/`.
    """

    def __init__(
        self,
        *,
        time_limit: float = 600.0,
        boot_limit: float = 180.0,
        kernel: Path | None = None,
        kernel_args: Sequence[str] = (),
        qemu_opts: Sequence[str] = (),
        build: Path = REPOSITORY / "build",
    ) -> None:
        self._time_limit = time_limit
        self._boot_limit = boot_limit
        self._kernel = kernel
        self._kernel_args = kernel_args
        self._qemu_opts = qemu_opts
        build.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="guest-", dir=build.resolve()))
        self.shared = self.folder / "shared"
        self.console_log = self.folder / "console.log"
        self.qemu_pid: int | None = None
        self.boot_seconds = 0.0
        self._leash: subprocess.Popen[str] | None = None
        self._connection: socket.socket | None = None
        self._sending = threading.Lock()
        self._processes: dict[int, GuestProcess] = {}
        self._lost: str | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        try:
            self._boot()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(
        self,
        argv: Sequence[str | Path],
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path = REPOSITORY,
        stdin: bool = False,
        on_output: OnOutput | None = None,
    ) -> GuestProcess:
        """Start a process inside. `env` adds to the guest's own; `stdin=True` leaves its input open for `write`.

        `on_output` is called with "stdout" or "stderr" and each piece of output, from the thread that receives it.
        Raises FileNotFoundError when it cannot be started and GuestError when the guest is gone.
        """
        process = GuestProcess(self, len(self._processes), [str(word) for word in argv], on_output)
        self._processes[process._number] = process
        self._send(
            {"op": "start", "id": process._number, "argv": process.argv, "env": dict(env or {}), "cwd": str(cwd)}
        )
        process._wait_started()
        if not stdin:
            process.close_stdin()
        return process

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        timeout: float,
        check: bool = True,
        env: Mapping[str, str] | None = None,
        cwd: Path = REPOSITORY,
        stdin: bytes = b"",
        on_output: OnOutput | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a process to its end, as subprocess.run does with captured text output.

        Raises subprocess.TimeoutExpired (the process is killed) and, with `check`, subprocess.CalledProcessError.
        """
        process = self.start(argv, env=env, cwd=cwd, stdin=bool(stdin), on_output=on_output)
        if stdin:
            process.write(stdin)
            process.close_stdin()
        try:
            status = process.wait(timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        result = subprocess.CompletedProcess(process.argv, status, process.stdout, process.stderr)
        if check and status:
            error = subprocess.CalledProcessError(status, process.argv, process.stdout, process.stderr)
            error.add_note(f"standard error:\n{process.stderr}")
            raise error
        return result

    def close(self) -> None:
        """End the guest. Nothing inside is worth an orderly end: its files are in memory, `shared` is written
        through.
        """
        if self._leash:
            assert self._leash.stdin
            self._leash.stdin.close()
            self._leash.wait(30)
        if self._connection:
            self._connection.close()
        if self._reader:
            self._reader.join(30)
        (self.folder / "initramfs").unlink(missing_ok=True)

    def _boot(self) -> None:
        begin = time.monotonic()
        kernel = self._kernel or Path("/boot") / newest_kernel([path.name for path in Path("/boot").iterdir()])
        missing = [
            program for program in ("qemu-system-x86_64", "busybox", "modprobe", "ip", "numactl") if not _find(program)
        ]
        if missing:
            raise GuestError(f"not installed: {', '.join(missing)}; `make setup` installs what the emulated host needs")
        self.shared.mkdir()
        initramfs = self.folder / "initramfs"
        _make_initramfs(kernel, initramfs)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            settings = {"host": MACHINE_ADDRESS, "port": listener.getsockname()[1], "token": secrets.token_hex(16)}
            secret = self.shared / ".agent.json"
            secret.touch(mode=0o600)
            secret.write_text(json.dumps(settings))
            command = qemu_command(
                kernel=kernel,
                initramfs=initramfs,
                console=self.console_log,
                shared=self.shared,
                python=Path(sys.executable).resolve(),
                kernel_args=self._kernel_args,
                qemu_opts=self._qemu_opts,
            )
            self._start_qemu(command)
            self._connection = self._accept(listener, settings["token"], begin + self._boot_limit)
            secret.unlink()
        self._reader = threading.Thread(target=self._read, args=(self._connection,), name="guest reader", daemon=True)
        self._reader.start()
        self.boot_seconds = time.monotonic() - begin

    def _start_qemu(self, command: list[str]) -> None:
        with (self.folder / "qemu.log").open("w") as log:
            self._leash = subprocess.Popen(
                [sys.executable, "-I", str(RIG / "leash.py"), str(self._time_limit), *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # Ctrl-C reaches the session, which ends the guest in its own order
            )
        assert self._leash.stdout
        with self._leash.stdout as stdout:
            first = stdout.readline()
        if not first:
            raise GuestError(f"QEMU did not start:\n{self.tail()}")
        self.qemu_pid = int(first)

    def _accept(self, listener: socket.socket, token: str, deadline: float) -> socket.socket:
        """The agent's connection, proven by its token. Raises GuestError when QEMU ends first or the deadline
        passes.
        """
        assert self._leash
        listener.setblocking(False)
        ended = os.pidfd_open(self._leash.pid)
        try:
            with selectors.DefaultSelector() as selector:
                selector.register(listener, selectors.EVENT_READ)
                selector.register(ended, selectors.EVENT_READ)
                while (left := deadline - time.monotonic()) > 0:
                    ready = [key.fileobj for key, _ in selector.select(left)]
                    if ended in ready:
                        raise GuestError(f"while booting: {self._why_lost()}")
                    if ready:
                        connection, _ = listener.accept()
                        connection.settimeout(max(1.0, deadline - time.monotonic()))
                        if self._greeted(connection, token):
                            connection.settimeout(None)
                            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                            return connection
                        connection.close()
        finally:
            os.close(ended)
        raise GuestError(f"the emulated host did not come up in {self._boot_limit:g} s:\n{self.tail()}")

    @staticmethod
    def _greeted(connection: socket.socket, token: str) -> bool:
        decoder = FrameDecoder()
        while data := connection.recv(4096):
            for header, _ in decoder.feed(data):
                return header.get("op") == "hello" and secrets.compare_digest(str(header.get("token")), token)
        return False

    def _read(self, connection: socket.socket) -> None:
        decoder = FrameDecoder()
        try:
            while data := connection.recv(1 << 16):
                for header, payload in decoder.feed(data):
                    self._processes[int(str(header["id"]))]._receive(header, payload)
        except OSError:
            pass  # closed: the same as its end
        self._lost = self._why_lost()
        for process in list(self._processes.values()):
            process._lose(self._lost)

    def _why_lost(self) -> str:
        assert self._leash
        try:
            status = self._leash.wait(10)
        except subprocess.TimeoutExpired:
            return f"the connection to the guest broke:\n{self.tail()}"
        if status == TIME_LIMIT_STATUS:
            return f"the guest's time limit of {self._time_limit:g} s has passed:\n{self.tail()}"
        return f"the guest has ended (QEMU status {status}):\n{self.tail()}"

    def _send(self, header: Header, payload: bytes = b"") -> None:
        if self._connection is None or self._lost:
            raise GuestError(self._lost or "the guest is not running")
        try:
            with self._sending:
                self._connection.sendall(encode_frame(header, payload))
        except OSError as error:
            raise GuestError(self._why_lost()) from error

    @property
    def out_of_time(self) -> bool:
        """Whether its time limit has ended it."""
        return self._leash is not None and self._leash.poll() == TIME_LIMIT_STATUS

    def tail(self, lines: int = 25) -> str:
        """The last lines of QEMU's and the guest kernel's output, and where all of it is."""
        texts = [
            path.read_text(errors="replace") for path in (self.folder / "qemu.log", self.console_log) if path.exists()
        ]
        tail = "\n".join("".join(texts).splitlines()[-lines:])
        return f"{tail}\n(all of it: {self.console_log})"


def _find(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


def _make_initramfs(kernel: Path, initramfs: Path) -> None:
    """virtme-ng's initramfs for `kernel`: busybox and the modules that mount the machine's root over 9p."""
    program = Path(sys.executable).parent / "virtme-run"
    if not program.exists():
        raise GuestError(
            f"{program} is not there: run `make setup`, which installs virtme-ng with the other test requirements"
        )
    command = [str(program), "--kimg", str(kernel), "--mods=auto", "--disable-kvm", "--disable-microvm", "--force-9p"]
    result = subprocess.run(
        [*command, "--script-sh", "true", "--save-initramfs", str(initramfs), "--dry-run"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode or not initramfs.exists():
        raise GuestError(f"virtme-ng could not make an initramfs for {kernel}:\n{result.stdout}{result.stderr}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command inside a fresh guest."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.rig.guest", description="Run one command on an emulated host of four NUMA nodes."
    )
    parser.add_argument(
        "--time-limit", type=float, default=600.0, metavar="S", help="end the whole guest after S seconds (600)"
    )
    parser.add_argument("--kernel", type=Path, metavar="FILE", help="boot this kernel (default: the newest in /boot)")
    parser.add_argument("--kernel-arg", action="append", default=[], metavar="ARG", help="one more kernel argument")
    parser.add_argument("command", nargs="+", help="the command, after --")
    options = parser.parse_args(arguments)
    try:
        with Guest(time_limit=options.time_limit, kernel=options.kernel, kernel_args=options.kernel_arg) as guest:
            print(f"emulated host up after {guest.boot_seconds:.0f} s", file=sys.stderr, flush=True)
            env = {name: os.environ[name] for name in ("TERM", "COLUMNS", "PATH") if name in os.environ}
            return guest.start(options.command, env=env, cwd=Path.cwd(), on_output=show).wait()
    except (GuestError, FileNotFoundError) as error:
        print(error, file=sys.stderr)
        return LOST_STATUS
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
