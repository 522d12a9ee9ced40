"""What may be asked for as a dependency, and what becomes of hostile, broken or secret input before anything runs."""

from __future__ import annotations

import asyncio
import io
import json
import tarfile
from pathlib import Path

import pytest

from skillcell.core.errors import Fault, FaultKind
from skillcell.core.skills import Layer
from skillcell.registry.package_mux import (
    CHUNK_BYTES,
    CREDIT,
    DATA,
    END,
    HEADER,
    OPEN,
    RESET,
    WINDOW_BYTES,
    FrameParser,
    Link,
    MuxError,
    encode,
)  # fmt: skip
from skillcell.registry.packages import LAYER_LIMITS, build_limits
from skillcell.registry.packages_dial import DialError, Streams, dial
from skillcell.registry.packages_errors import cleaned
from skillcell.registry.packages_index import npm_registry, python_index
from skillcell.registry.packages_layers import LayerStore, layer_digest
from skillcell.registry.packages_npm import npm_lock, npm_project
from skillcell.registry.packages_pip import pinned, pip_lock, requirement_lines
from skillcell.registry.packages_tunnel import IndexTunnel

HASH = "a" * 64


class TestRequirements:
    @pytest.mark.parametrize(
        "line",
        [
            "six",
            "six==1.17.0",
            "requests[socks]>=2.31,<3",
            'tomli>=2; python_version < "3.11"',
            f"six==1.17.0 --hash=sha256:{HASH}",
            f"six==1.17.0 --hash=sha256:{HASH} --hash=sha512:{HASH * 2}",
        ],
    )
    def test_names_with_versions_markers_and_hashes_are_taken(self, line: str) -> None:
        (kept,) = requirement_lines([line])
        assert kept.startswith(line[:3])
        assert kept.count("--hash=") == line.count("--hash=")

    @pytest.mark.parametrize(
        "line",
        [
            "-r other.txt",
            "--index-url https://evil.example/simple",
            "-e .",
            "./local",
            "/etc",
            "six @ https://evil.example/six.whl",
            "six @ file:///etc/passwd",
            "git+https://evil.example/x.git",
            "six\n--index-url https://evil.example",
            "six --global-option=x",
            "six --hash=md5:00",
            f"six --hash=sha256:{HASH[:-1]}",
            "six --hash=sha256:" + HASH + " --index-url x",
            "six\\",
            "",
            "x" * 5000,
        ],
    )
    def test_options_addresses_paths_and_tricks_are_refused_by_line(self, line: str) -> None:
        with pytest.raises(Fault) as caught:
            requirement_lines(["six", line])
        assert caught.value.kind is FaultKind.INVALID_ARGUMENT
        assert caught.value.violations[0].field == "runtime.packages.pip[2]"
        assert "line 2" in caught.value.message

    def test_too_many_are_refused_with_the_limit(self) -> None:
        with pytest.raises(Fault, match="501 requirements; the limit is 500"):
            requirement_lines(["six"] * 501)

    def test_only_hashes_everywhere_pin(self) -> None:
        hashed = f"six==1 --hash=sha256:{HASH}"
        assert pinned(requirement_lines([hashed]))
        assert not pinned(requirement_lines([hashed, "six==1"]))

    def test_a_lock_is_canonical(self) -> None:
        one = {"name": "Foo.Bar", "version": "1", "sha256": "22"}
        two = {"name": "abc", "version": "2", "sha256": ""}
        assert pip_lock([one, two]) == pip_lock([two, one]) == ("abc==2", "foo-bar==1 --hash=sha256:22")


class TestNpmProject:
    def test_names_and_ranges_become_a_package(self, tmp_path: Path) -> None:
        project = npm_project(["is-number@^7.0.0", "@scope/x@1.x || 2", "left-pad"], "", tmp_path)
        wanted = {"is-number": "^7.0.0", "@scope/x": "1.x || 2", "left-pad": "*"}
        assert json.loads(project.package)["dependencies"] == wanted
        assert not project.pinned

    @pytest.mark.parametrize(
        "item",
        [
            "x@git+https://evil.example/x.git", "x@file:../..", "x@https://evil.example/x.tgz", "x@npm:y@1", "../x@1",
            "x@user/repo", "--registry=https://evil.example", "x@1\nregistry=evil", "",
        ],
    )  # fmt: skip
    def test_addresses_paths_and_aliases_are_refused_by_entry(self, item: str, tmp_path: Path) -> None:
        with pytest.raises(Fault) as caught:
            npm_project(["ok@1", item], "", tmp_path)
        assert caught.value.violations[0].field == "runtime.packages.npm[2]"

    def test_one_name_with_two_ranges_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(Fault, match="a second time"):
            npm_project(["x@1", "x@2"], "", tmp_path)

    def test_a_lock_of_the_registrys_packages_pins(self, tmp_path: Path) -> None:
        entry = {"version": "1.0.0", "resolved": "https://registry.npmjs.org/x/-/x-1.0.0.tgz", "integrity": "sha512-x"}
        assert _locked(tmp_path, {"node_modules/x": entry}).pinned
        assert not _locked(tmp_path, {"node_modules/x": {**entry, "integrity": None}}).pinned

    @pytest.mark.parametrize(
        "packages",
        [
            {"node_modules/x": {"resolved": "git+ssh://git@evil.example/x.git#1"}},
            {"node_modules/x": {"resolved": "file:../../etc"}},
            {"node_modules/x": {"resolved": 7}},
            {"node_modules/x": {"link": True, "resolved": "sub"}},
            {"sub": {"version": "1.0.0"}},
            {"../x": {"version": "1.0.0"}},
            {"node_modules/x": "1.0.0"},
        ],
    )
    def test_a_lock_that_leads_elsewhere_is_refused(self, packages: object, tmp_path: Path) -> None:
        with pytest.raises(Fault) as caught:
            _locked(tmp_path, packages)
        assert caught.value.reason == "DEPENDENCY_UNRESOLVED"
        assert "package-lock.json" in caught.value.message

    @pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"lockfileVersion": 1, "dependencies": {}}'])
    def test_a_broken_or_old_lock_is_refused(self, text: str, tmp_path: Path) -> None:
        (tmp_path / "package.json").write_text("{}")
        (tmp_path / "package-lock.json").write_text(text)
        with pytest.raises(Fault, match=r"package-lock\.json"):
            npm_project(["x@1"], "package-lock.json", tmp_path)

    def test_what_lies_below_another_package_is_told_in_the_lock(self) -> None:
        top = {"place": "node_modules/a", "name": "a", "version": "1", "integrity": "sha512-x"}
        below = {"place": "node_modules/a/node_modules/b", "name": "b", "version": "2", "integrity": ""}
        assert npm_lock([below, top]) == ("a@1 sha512-x", "b@2 at node_modules/a/node_modules/b")


def _locked(root: Path, packages: object):  # type: ignore[no-untyped-def]
    (root / "package.json").write_text(json.dumps({"dependencies": {"x": "1"}, "scripts": {"install": "evil"}}))
    (root / "package-lock.json").write_text(json.dumps({"lockfileVersion": 3, "packages": packages}))
    project = npm_project(["x@1"], "package-lock.json", root)
    assert b"evil" not in project.package
    return project


class TestLayers:
    def test_a_digest_is_that_of_lock_image_and_architecture(self) -> None:
        of = layer_digest("pip", ["six==1"], "sha256:a", "amd64")
        assert of == layer_digest("pip", ("six==1",), "sha256:a", "amd64")
        others = {
            layer_digest("npm", ["six==1"], "sha256:a", "amd64"),
            layer_digest("pip", ["six==2"], "sha256:a", "amd64"),
            layer_digest("pip", ["six==1"], "sha256:b", "amd64"),
            layer_digest("pip", ["six==1"], "sha256:a", "arm64"),
        }
        assert of not in others
        assert len(others) == 4

    async def test_a_tree_comes_in_whole_and_read_only_or_not_at_all(self, tmp_path: Path) -> None:
        store, layer = LayerStore(tmp_path / "layers", tmp_path / "staging", LAYER_LIMITS), Layer("pip", "a" * 64, ())
        hostile: list[dict[str, tuple[bytes, bytes | str]]] = [
            {"../x.py": (tarfile.REGTYPE, b"")},
            {"/x.py": (tarfile.REGTYPE, b"")},
            {"out": (tarfile.SYMTYPE, "../../etc")},
            {"out": (tarfile.SYMTYPE, "/etc/passwd")},
            {"device": (tarfile.CHRTYPE, b"")},
            {"hard": (tarfile.LNKTYPE, "x.py")},
        ]
        for entries in hostile:
            scratch = store.scratch()
            with pytest.raises(Fault) as caught:
                await store.add(layer, _tar(scratch, {"x.py": (tarfile.REGTYPE, b"x"), **entries}), scratch)
            assert caught.value.reason == "DEPENDENCY_UNRESOLVED"
            await store.discard(scratch)
            assert await store.find(layer.digest) is None
        scratch = store.scratch()
        await store.add(layer, _tar(scratch, {"pkg/x.py": (tarfile.REGTYPE, b"x")}), scratch)
        await store.discard(scratch)
        assert await store.find(layer.digest) == layer
        assert (tmp_path / "layers" / layer.digest / "pkg/x.py").stat().st_mode & 0o777 == 0o444
        assert list((tmp_path / "staging").iterdir()) == []

    async def test_only_layers_that_no_version_names_are_collected(self, tmp_path: Path) -> None:
        store = LayerStore(tmp_path / "layers", tmp_path / "staging", LAYER_LIMITS)
        kept, left = (Layer("pip", letter * 64, ("six==1",)) for letter in "ab")
        for layer in (kept, left):
            scratch = store.scratch()
            await store.add(layer, _tar(scratch, {"x.py": (tarfile.REGTYPE, b"x")}), scratch)
            await store.discard(scratch)
            await store.remember(layer.digest, layer, None)
        assert await store.collect({kept.digest}) == 0, "both are too young"
        assert await store.collect({kept.digest}, older_than_seconds=0) == 1
        assert await store.recall(kept.digest) == kept
        assert await store.recall(left.digest) is None
        names = {path.name for path in (tmp_path / "layers").rglob("*")}
        assert not any(name.startswith("b" * 64) for name in names)

    @pytest.mark.parametrize(("gibibytes", "cores"), [(1, 1), (4, 2), (512, 64)])
    def test_a_build_fits_any_machine(self, gibibytes: int, cores: int) -> None:
        limits = build_limits(gibibytes << 30, cores * 1000)
        assert limits.memory_bytes <= (gibibytes << 30) // 2
        assert limits.disk_bytes <= limits.memory_bytes // 2
        assert limits.milli_cpus <= cores * 1000


def _tar(scratch: Path, entries: dict[str, tuple[bytes, bytes | str]]) -> Path:
    path = scratch / "tree.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, (kind, content) in entries.items():
            entry = tarfile.TarInfo(name)
            entry.type = kind
            if isinstance(content, str):
                entry.linkname = content
                tar.addfile(entry)
            else:
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))
    return path


class TestIndexes:
    async def test_pips_own_configuration_is_used_and_a_setting_wins(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("PIP_INDEX_URL", "https://mirror.example:8443/simple")
        assert (await python_index("")).hosts == {("mirror.example", 8443)}
        assert (await python_index("https://other.example/simple")).hosts == {("other.example", 443)}

    async def test_pypis_files_lie_on_a_host_of_their_own(self) -> None:
        hosts = (await python_index("https://pypi.org/simple")).hosts
        assert hosts == {("pypi.org", 443), ("files.pythonhosted.org", 443)}

    async def test_credentials_are_secret_and_no_part_of_the_public_address(self) -> None:
        index = await python_index("https://me:p%40ss@mirror.example/simple")
        assert index.public == "https://mirror.example/simple"
        assert set(index.secrets) == {"p%40ss", "p@ss"}

    async def test_npm_gets_credentials_for_its_registry_alone(self, tmp_path: Path) -> None:
        npmrc = tmp_path / ".npmrc"
        npmrc.write_text(
            "registry=https://npm.example/\n//npm.example/:_authToken=${TOKEN}\n//other.example/:_authToken=nope\n"
        )
        index = await npm_registry("", {"NPM_CONFIG_USERCONFIG": str(npmrc), "TOKEN": "s3cret"})
        assert index.npmrc == ("//npm.example/:_authToken=s3cret",)
        assert "s3cret" in index.secrets

    @pytest.mark.parametrize(
        "address", ["http://pypi.org/simple", "file:///opt", "https://", "https://h:x/", "ftp://x"]
    )
    async def test_an_index_without_tls_is_refused(self, address: str) -> None:
        with pytest.raises(Fault) as caught:
            await python_index(address)
        assert caught.value.reason == "PACKAGE_INDEX_INVALID"

    def test_nothing_secret_is_quoted(self) -> None:
        text = "GET https://me:p%40ss@mirror.example/simple failed, token s3cret"
        assert cleaned(text, ["s3cret"]) == "GET https://mirror.example/simple failed, token ****"


class TestFrames:
    def test_frames_are_whole_however_they_arrive(self) -> None:
        data = encode(OPEN, 1) + encode(DATA, 1, b"abc") + encode(END, 1)
        parser = FrameParser()
        found = [frame for byte in data for frame in parser.feed(bytes([byte]))]
        assert found == [(OPEN, 1, b""), (DATA, 1, b"abc"), (END, 1, b"")]

    @pytest.mark.parametrize(("kind", "size"), [(0, 0), (99, 0), (DATA, CHUNK_BYTES + 1), (OPEN, 1 << 31)])
    def test_unknown_and_oversized_frames_are_refused_by_their_header(self, kind: int, size: int) -> None:
        with pytest.raises(MuxError):
            list(FrameParser().feed(HEADER.pack(kind, 1, size)))

    async def test_more_than_a_window_is_refused_and_a_writer_waits_for_credit(self) -> None:
        sent: list[tuple[int, int, bytes]] = []

        async def send(kind: int, stream: int, payload: bytes) -> None:
            sent.append((kind, stream, payload))

        link = Link(1, send)
        for _ in range(WINDOW_BYTES // CHUNK_BYTES):
            link.take(DATA, bytes(CHUNK_BYTES))
        with pytest.raises(MuxError):
            link.take(DATA, b"x")
        with pytest.raises(MuxError):
            link.take(CREDIT, (1).to_bytes(4, "big"))
        writing = asyncio.ensure_future(link.write(bytes(WINDOW_BYTES + 1)))
        await asyncio.sleep(0)
        assert sum(len(payload) for kind, _, payload in sent if kind == DATA) == WINDOW_BYTES
        assert not writing.done()
        link.take(CREDIT, (1).to_bytes(4, "big"))
        await writing

    async def test_a_reset_ends_whoever_waits(self) -> None:
        async def send(kind: int, stream: int, payload: bytes) -> None:
            pass

        link = Link(1, send)
        reading = asyncio.ensure_future(link.read())
        await asyncio.sleep(0)
        link.take(RESET, b"")
        with pytest.raises(ConnectionResetError):
            await reading


class TestTunnel:
    """A builder that is hostile: whatever it asks for, only the index's own host and port are dialed."""

    @pytest.mark.parametrize(
        "head",
        [
            "CONNECT evil.example:443 HTTP/1.1\r\n\r\n",
            "CONNECT index.example:22 HTTP/1.1\r\n\r\n",
            "CONNECT index.example.evil.example:443 HTTP/1.1\r\n\r\n",
            "CONNECT 127.0.0.1:443 HTTP/1.1\r\n\r\n",
            "CONNECT [::1]:443 HTTP/1.1\r\n\r\n",
            "CONNECT user@index.example:443 HTTP/1.1\r\n\r\n",
            "GET http://index.example/ HTTP/1.1\r\nHost: index.example\r\n\r\n",
            "CONNECT index.example:443\r\n\r\n",
        ],
    )
    async def test_another_host_is_refused(self, head: str) -> None:
        dialed: list[tuple[str, int]] = []

        async def nowhere(host: str, port: int) -> Streams:
            dialed.append((host, port))
            raise DialError("must not be dialed")

        async with IndexTunnel(frozenset({("index.example", 443)}), nowhere, 1 << 20) as tunnel:
            assert await _asked(tunnel, head.encode()) == b"HTTP/1.1 403 Forbidden"
            assert len(tunnel.refused) == 1
        assert dialed == []

    async def test_the_index_is_dialed_and_bytes_go_both_ways(self) -> None:
        async def shout(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write((await reader.read()).upper())
            writer.close()

        async with await asyncio.start_server(shout, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with IndexTunnel(frozenset({("127.0.0.1", port)}), dial, 1 << 20) as tunnel:
                head = f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\nhello ".encode()
                tunnel.take(OPEN, 1, b"")
                tunnel.take(DATA, 1, head)
                tunnel.take(DATA, 1, b"world")
                tunnel.take(END, 1, b"")
                answer = await _answer(tunnel)
                assert answer.endswith(b"\r\n\r\nHELLO WORLD")
                assert tunnel.bytes_moved >= len(head) + len(answer)

    async def test_an_index_that_is_gone_is_a_bad_gateway_and_remembered(self) -> None:
        async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
        async with IndexTunnel(frozenset({("127.0.0.1", port)}), dial, 1 << 20) as tunnel:
            head = f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode()
            assert await _asked(tunnel, head) == b"HTTP/1.1 502 Bad Gateway"
            assert list(tunnel.unreachable) == [f"127.0.0.1:{port}"]

    async def test_past_the_limit_of_bytes_nothing_goes_on(self) -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(bytes(200_000))
            await reader.read()
            writer.close()

        async with await asyncio.start_server(talk, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with IndexTunnel(frozenset({("127.0.0.1", port)}), dial, 100_000) as tunnel:
                tunnel.take(OPEN, 1, b"")
                tunnel.take(DATA, 1, f"CONNECT 127.0.0.1:{port} HTTP/1.1\r\n\r\n".encode())
                parser = FrameParser()
                async for data in tunnel.outgoing():
                    if any(kind == RESET for kind, _, _ in parser.feed(data)):
                        break
                assert tunnel.exhausted

    async def test_too_many_connections_break_the_protocol(self) -> None:
        async with IndexTunnel(frozenset(), dial, 1 << 20) as tunnel:
            for stream in range(64):
                tunnel.take(OPEN, stream, b"")
            with pytest.raises(MuxError):
                tunnel.take(OPEN, 64, b"")


async def _asked(tunnel: IndexTunnel, head: bytes) -> bytes:
    tunnel.take(OPEN, 1, b"")
    tunnel.take(DATA, 1, head)
    return (await _answer(tunnel)).partition(b"\r\n")[0]


async def _answer(tunnel: IndexTunnel) -> bytes:
    parser, answer = FrameParser(), b""
    async for data in tunnel.outgoing():
        for kind, _, payload in parser.feed(data):
            if kind == DATA:
                answer += payload
            elif kind in (END, RESET):
                return answer
    raise AssertionError("no end")
