"""After the end: the result and the files that go to the caller, each opened safely, the rest refused by name and
reason.

Which files: every regular file below /output but result.json, and files in the working directory that match a glob of
the job and are new or changed since it began. A glob is matched as a shell would: `*` stays within a directory and
leaves out names that begin with a dot unless the pattern says the dot, `**` crosses directories, and a trailing `/`
means everything below.
"""

from __future__ import annotations

import errno
import fnmatch
import os
import re
import stat

from skillcell.agent import frames, tree
from skillcell.agent.channel import Channel
from skillcell.agent.job import Job, JobError

RESULT_NAME = "result.json"
_REFUSALS_NAMED = 200
_NOTHING = re.compile(r"(?!)")
_KINDS = (
    (stat.S_ISLNK, "a symbolic link"),
    (stat.S_ISDIR, "a directory"),
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISCHR, "a device"),
)

Stamp = tuple[int, int, int, int]
"""mtime_ns, size, inode, ctime_ns: one of them changes when a file does."""


class Globs:
    """The patterns of a job. Raises JobError for one that is absolute or leads out."""

    def __init__(self, patterns: list[str]) -> None:
        self._patterns = [self._parse(pattern) for pattern in patterns]

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def match(self, path: str) -> bool:
        """Whether any pattern takes this relative path."""
        names = path.split("/")
        return any(_matches(pattern, names) for pattern in self._patterns)

    @staticmethod
    def _parse(pattern: str) -> list[re.Pattern[str] | None]:
        parts = [part for part in (pattern + "**" if pattern.endswith("/") else pattern).split("/") if part != "."]
        if not pattern or any(part in ("", "..") for part in parts):
            raise JobError(f"collect: {pattern!r} is not a relative pattern")
        parsed: list[re.Pattern[str] | None] = []
        for part in parts:
            if part == "**":
                if not parsed or parsed[-1] is not None:
                    parsed.append(None)
                continue
            visible = "" if part.startswith((".", "[")) else r"(?!\.)"
            parsed.append(re.compile(visible + fnmatch.translate(part)))
        return parsed


def _matches(pattern: list[re.Pattern[str] | None], names: list[str]) -> bool:
    """Backtracks to the last `**` alone, so the time is bounded by the product of the two lengths."""
    at = position = 0
    star = star_position = -1
    while position < len(names):
        part = pattern[at] if at < len(pattern) else _NOTHING
        if part is None:
            star, star_position = at, position
            at += 1
            if at == len(pattern):
                return not any(name.startswith(".") for name in names[position:])
        elif part.match(names[position]):
            at += 1
            position += 1
        elif star >= 0 and not names[star_position].startswith("."):
            star_position += 1
            at, position = star + 1, star_position
        else:
            return False
    return at == len(pattern)


def snapshot(directory: str, globs: Globs) -> dict[str, Stamp]:
    """What the globs match now, before the Skill runs."""
    if not globs:
        return {}
    root_fd = tree.open_root(directory)
    try:
        return {
            entry.path: _stamp(entry.status)
            for entry in tree.walk(root_fd)
            if entry.status is not None and globs.match(entry.path)
        }
    finally:
        os.close(root_fd)


def _stamp(status: os.stat_result) -> Stamp:
    return status.st_mtime_ns, status.st_size, status.st_ino, status.st_ctime_ns


class Collector:
    """Sends RESULT and artifacts of one ended job."""

    def __init__(self, channel: Channel, job: Job) -> None:
        self._channel = channel
        self._bytes_limit = self._bytes_left = job.artifact_bytes
        self._count_limit = self._count_left = job.artifact_count
        self._sent: set[str] = set()
        self._refused = 0

    def result(self, output_directory: str) -> None:
        """RESULT, when there is a result.json to send."""
        try:
            root_fd = tree.open_root(output_directory)
        except OSError:
            return
        try:
            opened = self._open(root_fd, RESULT_NAME, RESULT_NAME)
            if opened is None:
                return
            fd, size = opened
            try:
                if size > frames.VALUE_BYTES:
                    self._refuse(RESULT_NAME, f"{size} bytes are over the limit of {frames.VALUE_BYTES} for a result")
                    return
                data = b""
                while len(data) < size and (more := os.read(fd, size - len(data))):
                    data += more
                self._channel.send(frames.RESULT, data)
            finally:
                os.close(fd)
        finally:
            os.close(root_fd)

    def outputs(self, output_directory: str) -> None:
        """Every file below /output."""
        try:
            root_fd = tree.open_root(output_directory)
        except OSError:
            return
        try:
            for entry in tree.walk(root_fd):
                if entry.path != RESULT_NAME:
                    self._entry(entry)
        finally:
            os.close(root_fd)

    def changed(self, directory: str, globs: Globs, before: dict[str, Stamp]) -> None:
        """New or changed files of the working directory that the globs match."""
        if not globs:
            return
        try:
            root_fd = tree.open_root(directory)
        except OSError:
            return
        try:
            for entry in tree.walk(root_fd):
                if globs.match(entry.path) and (entry.status is None or before.get(entry.path) != _stamp(entry.status)):
                    self._entry(entry)
        finally:
            os.close(root_fd)

    def finish(self) -> None:
        """One refusal for all that were not named one by one."""
        if self._refused > _REFUSALS_NAMED:
            self._tell("(more)", f"{self._refused - _REFUSALS_NAMED} more files were refused")

    def _entry(self, entry: tree.Entry) -> None:
        name = entry.path
        reason = entry.problem or tree.odd_name(name)
        if reason:
            self._refuse(name, reason)
        elif name in self._sent:
            self._refuse(name, "another artifact has this name")
        elif not self._count_left:
            self._refuse(name, f"over the limit of {self._count_limit} artifacts")
        else:
            opened = self._open(entry.directory_fd, entry.name, name)
            if opened is not None:
                try:
                    self._send(name, *opened)
                finally:
                    os.close(opened[0])

    def _open(self, directory_fd: int, name: str, path: str) -> tuple[int, int] | None:
        """A descriptor and size of a regular file with one link, else a refusal."""
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        try:
            fd = os.open(name, flags, dir_fd=directory_fd)
        except OSError as error:
            if error.errno != errno.ENOENT:
                self._refuse(path, self._kind(directory_fd, name) or f"can't be read: {error.strerror}")
            return None
        status = os.fstat(fd)
        reason = ""
        if not stat.S_ISREG(status.st_mode):
            reason = _describe(status.st_mode)
        elif status.st_nlink != 1:
            reason = f"a file with {status.st_nlink} hard links"
        if reason:
            os.close(fd)
            self._refuse(path, reason)
            return None
        return fd, status.st_size

    def _kind(self, directory_fd: int, name: str) -> str:
        try:
            mode = os.stat(name, dir_fd=directory_fd, follow_symlinks=False).st_mode
        except OSError:
            return ""
        return "" if stat.S_ISREG(mode) else _describe(mode)

    def _send(self, name: str, fd: int, size: int) -> None:
        if size > self._bytes_left:
            self._refuse(name, f"{size} bytes are over the limit of {self._bytes_limit} bytes for all artifacts")
            return
        self._sent.add(name)
        self._bytes_left -= size
        self._count_left -= 1
        self._channel.send_json(frames.ARTIFACT, {"name": name, "size": size})
        while size and (data := os.read(fd, min(size, frames.CHUNK_BYTES))):
            self._channel.send(frames.DATA, data)
            size -= len(data)
        self._channel.send(frames.ARTIFACT_END)

    def _refuse(self, name: str, reason: str) -> None:
        self._refused += 1
        if self._refused <= _REFUSALS_NAMED:
            self._tell(name, reason)

    def _tell(self, name: str, reason: str) -> None:
        shown = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")[:1024]
        self._channel.send_json(frames.ARTIFACT_REFUSED, {"name": shown, "reason": reason})


def _describe(mode: int) -> str:
    return next((words for test, words in _KINDS if test(mode)), "not a regular file")
