"""The launcher: a small privileged child of the gateway that makes and ends the `oci` driver's sandboxes.

It is a process of its own for three reasons: its mounts live in a private mount namespace, so that no crash leaves
any; it is a subreaper, so that no orphan is lost; and forking it is cheap and safe, because it is small and has one
thread. It lives exactly as long as its gateway: at the end of the socket it kills every sandbox at once and goes,
leaving their cgroups, with the counters, to the next gateway's recovery.

A reader could get two things wrong. Nothing here may wait for a sandbox: creating, killing and destroying are steps
that the loop comes back to, when a child ended or a millisecond passed. And a runtime's exit code says that the
container was started, not that its agent works.
"""

from __future__ import annotations

import gc
import os
import selectors
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skillcell.core.errors import Fault, FaultKind, unavailable
from skillcell.core.types import Limits
from skillcell.sandbox import hardening, launcher_host, launcher_wire
from skillcell.sandbox.cgroups import Cgroup, CgroupTree
from skillcell.sandbox.images import MOUNT_POINTS
from skillcell.sandbox.uids import IdPair, IdRange

_CREATE_SECONDS = 30.0
_KILL_SECONDS = 20.0
_REAP_SECONDS = 5.0
_TICK_SECONDS = 0.001
_LOG_BYTES = 2048

Reply = Callable[[dict[str, Any]], None]


@dataclass(slots=True)
class _Kept:
    """One sandbox that this launcher made, or is making."""

    sandbox_id: str
    directory: Path
    cgroup: Cgroup
    pair: IdPair
    runtime_pid: int = 0
    mounted: bool = False


@dataclass(slots=True)
class _Waiting:
    """Something that goes on when `ready`, or fails at `deadline`."""

    ready: Callable[[], bool]
    then: Callable[[], None]
    late: Callable[[], None]
    deadline: float


@dataclass(slots=True)
class _Exits:
    """Exit statuses of the runtimes we wait for; other children (containers' first processes) are only reaped."""

    awaited: set[int] = field(default_factory=set)
    statuses: dict[int, int] = field(default_factory=dict)

    def reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.awaited:
                self.awaited.discard(pid)
                self.statuses[pid] = os.waitstatus_to_exitcode(status)

    def reap_all(self, until: float) -> None:
        """The dead that come to us, until there is none: nobody else may ever look after them."""
        while time.monotonic() < until:
            try:
                if os.waitpid(-1, os.WNOHANG)[0] == 0:
                    time.sleep(_TICK_SECONDS)
            except ChildProcessError:
                return


class Launcher:
    """The loop and its three operations. `directory` is a tmpfs of this mount namespace alone."""

    def __init__(self, gateway: socket.socket, directory: Path, tree: CgroupTree, ids: IdRange) -> None:
        self._gateway = gateway
        self._directory = directory
        self._overlays = directory / "overlays"
        for name in ("empty", *(f"root/{point}" for point in (*MOUNT_POINTS, "dev/shm"))):
            (self._overlays / name).mkdir(parents=True, exist_ok=True)
        self._tree = tree
        self._ids = ids
        self._kept: dict[str, _Kept] = {}
        self._waiting: list[_Waiting] = []
        self._exits = _Exits()
        self._shown: set[Path] = set()

    def run(self) -> None:
        """Serve until the gateway is gone, then end everything."""
        wakeup, notifier = socket.socketpair()
        for sock in (wakeup, notifier):
            sock.setblocking(False)
        signal.set_wakeup_fd(notifier.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        with selectors.DefaultSelector() as selector:
            selector.register(self._gateway, selectors.EVENT_READ)
            selector.register(wakeup, selectors.EVENT_READ)
            while True:
                ready = selector.select(_TICK_SECONDS if self._waiting else None)
                for key, _ in ready:
                    if key.fileobj is wakeup:
                        with suppress(BlockingIOError):
                            wakeup.recv(4096)
                    elif not self._serve_one():
                        self._end()
                        return
                self._exits.reap()
                self._advance()

    def _serve_one(self) -> bool:
        try:
            record, descriptors = launcher_wire.receive(self._gateway)
        except ConnectionError:
            return False
        if not record:
            return False
        request, body = launcher_wire.unpack(record)

        def reply(answer: dict[str, Any]) -> None:
            with suppress(OSError):  # a gateway that is gone is noticed where the next record is read
                launcher_wire.send(self._gateway, launcher_wire.pack({"id": request["id"], **answer}))

        try:
            match request["op"]:
                case "create":
                    self._create(request, body, descriptors, reply)
                case "kill":
                    self._kill(request["sandbox"], lambda: reply({}), reply)
                case "destroy":
                    self._destroy(request["sandbox"], reply)
        except Fault as fault:
            reply(_as_fault(fault))
        except OSError as error:
            reply(_as_fault(unavailable("LAUNCHER_IO", f"{request['op']} failed: {error.strerror}")))
        except Exception:  # noqa: BLE001 - one request that we can't serve must not end every other call's sandbox
            traceback.print_exc()
            message = f"the launcher could not serve {request['op']}"
            reply(_as_fault(Fault(FaultKind.INTERNAL, "LAUNCHER_FAILED", message)))
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _create(self, request: dict[str, Any], config: bytes, descriptors: list[int], reply: Reply) -> None:
        sandbox_id: str = request["sandbox"]
        limits = Limits(**request["limits"])
        pair = IdPair(*request["ids"])
        cgroup = self._tree.create(sandbox_id, limits, devices=request["join"])
        kept = _Kept(sandbox_id, self._directory / sandbox_id, cgroup, pair)
        self._kept[sandbox_id] = kept
        try:
            self._lay_out(kept, limits, request["layers"], config)
            self._show_tree(request["root"], "root", locked=request["locked"])
            for package in request["packages"]:
                self._show_tree(package, "empty", locked=request["locked"])
            kept.runtime_pid = self._spawn(kept, request["argv"], descriptors, join=request["join"])
        except BaseException:
            self._remove(kept)
            raise
        pid = kept.runtime_pid
        self._exits.awaited.add(pid)
        self._wait(
            lambda: pid in self._exits.statuses,
            lambda: self._created(kept, self._exits.statuses.pop(pid), reply),
            lambda: self._undo(kept, "the OCI runtime did not start the container in time", reply),
            _CREATE_SECONDS,
        )

    def _created(self, kept: _Kept, status: int, reply: Reply) -> None:
        kept.runtime_pid = 0
        if status == 0:
            reply({})
            return
        log = (kept.directory / "log").read_bytes()[-_LOG_BYTES:] if (kept.directory / "log").exists() else b""
        reason = log.decode("utf-8", "replace").strip() or "it wrote no reason"
        self._undo(kept, f"the OCI runtime exited with {status}: {reason}", reply)

    def _undo(self, kept: _Kept, message: str, reply: Reply) -> None:
        fault = _as_fault(Fault(FaultKind.INTERNAL, "SANDBOX_NOT_STARTED", message))

        def destroyed() -> None:
            self._remove(kept)
            reply(fault)

        self._kill(kept.sandbox_id, destroyed, lambda _: reply(fault))

    def _lay_out(self, kept: _Kept, limits: Limits, layers: list[str], config: bytes) -> None:
        """The sandbox's directory: its one tmpfs with the writable directories, and the bundle."""
        os.mkdir(kept.directory, 0o711)
        disk = kept.directory / "disk"
        os.mkdir(disk, 0o711)
        flags = launcher_host.MS_NOSUID | launcher_host.MS_NODEV
        launcher_host.mount("skillcell", disk, "tmpfs", flags, hardening.tmpfs_options(limits))
        kept.mounted = True
        for name in hardening.WRITABLE:
            os.mkdir(disk / name, 0o700)
            os.chown(disk / name, kept.pair.skill, kept.pair.skill)
        for name in layers:
            os.makedirs(kept.directory / "layers" / name, 0o755)
        (kept.directory / "config.json").write_bytes(config)

    def _show_tree(self, source: str, below: str, *, locked: bool) -> None:
        """A read-only view of the image or a package, made once and used by every sandbox. `root` adds mount points."""
        target = self._directory / hardening.trees_directory(locked=locked) / launcher_wire.tree_name(Path(source))
        if target in self._shown:
            return
        target.mkdir(parents=True, exist_ok=True)
        try:
            launcher_host.show_read_only(Path(source), target, self._overlays, below, locked=locked)
        except FileNotFoundError as error:
            raise Fault(FaultKind.DATA_LOSS, "TREE_MISSING", "a directory of the image or a package is gone") from error
        self._shown.add(target)

    def _spawn(self, kept: _Kept, argv: list[str], descriptors: list[int], *, join: bool) -> int:
        procs = kept.cgroup.procs_files if join else ()
        pid = os.fork()
        if pid:
            return pid
        try:  # the child: nothing but system calls until the runtime replaces it
            for path in procs:
                descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
                os.write(descriptor, b"0")
                os.close(descriptor)
            for number, given in enumerate(descriptors):
                os.dup2(given, number)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGPIPE):
                signal.signal(number, signal.SIG_DFL)
            environment = {"PATH": hardening.DEFAULT_PATH, "XDG_RUNTIME_DIR": str(kept.directory)}
            os.execve(argv[0], argv, environment)  # noqa: S606 - the runtime, as found by the driver
        except OSError as error:
            with suppress(OSError):
                (kept.directory / "log").write_text(f"{argv[0]}: {error.strerror}")
        finally:
            os._exit(127)

    def _kill(self, sandbox_id: str, then: Callable[[], None], failed: Reply) -> None:
        kept = self._kept.get(sandbox_id)
        cgroup = kept.cgroup if kept else self._tree.open(sandbox_id)
        if cgroup is None:
            then()
            return

        def dead() -> bool:
            if kept and kept.runtime_pid:  # a runtime that is not in the cgroup itself
                with suppress(ProcessLookupError):
                    os.kill(kept.runtime_pid, signal.SIGKILL)
            return cgroup.kill_round()

        message = f"processes of {sandbox_id} survived SIGKILL for {_KILL_SECONDS:.0f} s"
        late = _as_fault(Fault(FaultKind.INTERNAL, "SANDBOX_WILL_NOT_DIE", message))
        self._wait(dead, then, lambda: failed(late), _KILL_SECONDS)

    def _destroy(self, sandbox_id: str, reply: Reply) -> None:
        def dead() -> None:
            kept = self._kept.get(sandbox_id)
            if kept is not None:
                self._remove(kept)
            else:
                cgroup = self._tree.open(sandbox_id)
                if cgroup is not None:
                    cgroup.remove()
                self._ids.release(sandbox_id)
            reply({})

        self._kill(sandbox_id, dead, reply)

    def _remove(self, kept: _Kept) -> None:
        """Everything but processes, which are dead. The bundle holds nothing that a sandbox could have written."""
        if kept.mounted:
            launcher_host.unmount(kept.directory / "disk")
            kept.mounted = False
        shutil.rmtree(kept.directory, ignore_errors=True)
        kept.cgroup.remove()
        self._ids.release(kept.sandbox_id, kept.pair)
        self._kept.pop(kept.sandbox_id, None)

    def _wait(
        self, ready: Callable[[], bool], then: Callable[[], None], late: Callable[[], None], seconds: float
    ) -> None:
        self._waiting.append(_Waiting(ready, then, late, time.monotonic() + seconds))

    def _advance(self) -> None:
        waiting, self._waiting = self._waiting, []
        now = time.monotonic()
        for item in waiting:
            if item.ready():
                self._run_step(item.then)
            elif now > item.deadline:
                self._run_step(item.late)
            else:
                self._waiting.append(item)

    @staticmethod
    def _run_step(step: Callable[[], None]) -> None:
        try:
            step()
        except (Fault, OSError) as error:  # what is left of it is listed and destroyed again
            print(f"skillcell launcher: {error}", file=sys.stderr, flush=True)

    def _end(self) -> None:
        """The gateway is gone: kill all, keep the cgroups for recovery, give the user ids back."""
        deadline = time.monotonic() + _KILL_SECONDS
        left = list(self._kept.values())
        while left and time.monotonic() < deadline:
            for kept in left:
                if kept.runtime_pid:
                    with suppress(ProcessLookupError):
                        os.kill(kept.runtime_pid, signal.SIGKILL)
            left = [kept for kept in left if not kept.cgroup.kill_round()]
            self._exits.reap()
            time.sleep(_TICK_SECONDS)
        for kept in self._kept.values():
            if kept not in left:
                self._ids.release(kept.sandbox_id, kept.pair)
        self._exits.reap_all(time.monotonic() + _REAP_SECONDS)


def _as_fault(fault: Fault) -> dict[str, Any]:
    return {"fault": {"kind": fault.kind.value, "reason": fault.reason, "message": fault.message}}


def prepare(run_directory: Path, cgroup_root: str) -> tuple[Path, CgroupTree]:
    """A private mount namespace with a tmpfs of our own, and the cgroup tree seen from there.

    On a hybrid host the v2 tree moves into that tmpfs, because crun refuses hosts where it finds one beside v1.
    """
    launcher_host.unshare_mounts()
    directory = run_directory / "oci"
    directory.mkdir(parents=True, exist_ok=True)
    flags = launcher_host.MS_NOSUID | launcher_host.MS_NODEV
    launcher_host.mount("skillcell", directory, "tmpfs", flags, "mode=0711")
    unified = Path("/sys/fs/cgroup/unified")
    if unified.is_mount():
        moved = directory / "unified"
        moved.mkdir(0o700)
        launcher_host.mount(str(unified), moved, "", launcher_host.MS_MOVE)
    return directory, CgroupTree.detect(cgroup_root)


def main(arguments: list[str]) -> None:
    """`descriptor run_directory cgroup_root uid_base uid_pairs`; the first record out says whether we are ready."""
    descriptor, run_directory, cgroup_root, base, pairs = arguments
    gateway = socket.socket(fileno=int(descriptor))
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # we end with our gateway, which may still be draining
    os.umask(0o022)
    try:
        launcher_host.become_subreaper()
        directory, tree = prepare(Path(run_directory), cgroup_root)
        ids = IdRange(Path(run_directory) / "uids", int(base), int(pairs), cgroup_root)
        launcher = Launcher(gateway, directory, tree, ids)
    except Fault as fault:
        launcher_wire.send(gateway, launcher_wire.pack({"id": 0, **_as_fault(fault)}))
        return
    except OSError as error:
        message = f"the launcher could not prepare its mounts: {error.strerror}"
        answer = _as_fault(unavailable("LAUNCHER_NOT_STARTED", message))
        launcher_wire.send(gateway, launcher_wire.pack({"id": 0, **answer}))
        return
    launcher_wire.send(gateway, launcher_wire.pack({"id": 0}))
    gc.freeze()  # a collection after a fork would copy the pages that the child is about to drop
    launcher.run()


if __name__ == "__main__":
    main(sys.argv[1:])
