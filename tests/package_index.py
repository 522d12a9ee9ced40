"""A package index on loopback with an authority of its own: serves whatever a hostile or broken one would."""

from __future__ import annotations

import asyncio
import hashlib
import io
import ssl
import subprocess
import zipfile
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path


def wheel(name: str, files: Mapping[str, bytes], version: str = "1.0") -> bytes:
    """A wheel with these files and the metadata that pip wants; its RECORD is empty, which pip allows."""
    info = f"{name}-{version}.dist-info"
    metadata = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in {**files, **metadata}.items():
            archive.writestr(path, content)
    return out.getvalue()


@dataclass
class Index:
    """What is served: project → links, path → body. An empty body under a path never comes."""

    certificate: Path
    """Of the authority."""
    address: str = ""
    """`https://localhost:port`."""
    projects: dict[str, list[str]] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    redirects: dict[str, str] = field(default_factory=dict)
    seen: list[str] = field(default_factory=list)
    """`path` of every request, in order."""
    authorizations: set[str] = field(default_factory=set)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    stalls: bool = False
    """Whether it takes requests and never answers."""
    failing: bool = False
    """Whether it answers everything with 503."""

    def add(self, project: str, file: str, content: bytes, digest: str = "", host: str = "") -> None:
        """A file of a project; `digest` other than its own is a lie, `host` another place to fetch it from."""
        digest = digest or hashlib.sha256(content).hexdigest()
        self.files[f"/files/{file}"] = content
        self.projects.setdefault(project, []).append(f'<a href="{host}/files/{file}#sha256={digest}">{file}</a>')

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                path = lines[0].split(" ")[1]
                self.seen.append(path)
                self.authorizations |= {line for line in lines if line.lower().startswith("authorization:")}
                self.asked.set()
                if self.stalls:
                    await reader.read()
                    return
                writer.write(self._answer(path))
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            pass
        finally:
            writer.close()

    def _answer(self, path: str) -> bytes:
        if self.failing:
            return _response("503 Service Unavailable", b"")
        if path in self.redirects:
            return _response("302 Found", b"", f"Location: {self.redirects[path]}\r\n")
        if path in self.files:
            return _response("200 OK", self.files[path], "Content-Type: application/octet-stream\r\n")
        links = self.projects.get(path.removeprefix("/simple/").strip("/"))
        if links is None:
            return _response("404 Not Found", b"")
        page = f"<!DOCTYPE html><html><body>{''.join(links)}</body></html>"
        return _response("200 OK", page.encode(), "Content-Type: text/html\r\n")


def _response(status: str, body: bytes, more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n".encode() + body


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Index]:
    """An index that answers until the block ends; its keys are made in `directory`, once."""
    if not (directory / "server.pem").exists():
        make_certificates(directory)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "server.pem", directory / "server.key")
    index = Index(directory / "authority.pem")
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(index.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
    try:
        index.address = f"https://localhost:{server.sockets[0].getsockname()[1]}"
        yield index
    finally:
        server.close()
        for task in tuple(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def make_certificates(directory: Path) -> None:
    """An authority, and a certificate of it for `localhost`."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    openssl(
        "req", "-x509", *curve, "-keyout", "authority.key", "-out", "authority.pem", "-days", "3650",
        "-subj", "/CN=index test authority", "-addext", "keyUsage=critical,keyCertSign",
    )  # fmt: skip
    openssl("req", *curve, "-keyout", "server.key", "-out", "server.csr", "-subj", "/CN=localhost")
    (directory / "extensions").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    openssl(
        "x509", "-req", "-in", "server.csr", "-CA", "authority.pem", "-CAkey", "authority.key", "-CAcreateserial",
        "-out", "server.pem", "-days", "3650", "-extfile", "extensions",
    )  # fmt: skip
