"""Images for the `docker` driver: our own go from the store into the engine, foreign ones are pulled by digest.

Our trees are sent as their canonical tar, so the layer digest the engine computes is the image's digest, and the tag
(`skillcell/python-3.11:<first 12 hex>`) changes whenever the bytes do. A reader could think that an engine without our
store is no use: where this machine can't bootstrap, the engine builds the Dockerfile itself.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import IO

import docker
import requests.exceptions
from docker.errors import APIError, BuildError, DockerException, ImageNotFound
from docker.models.images import Image as EngineImage

from skillcell.core.errors import Fault, FaultKind, precondition, unavailable
from skillcell.sandbox.images import Image, ImageStore, machine_architecture, parse_foreign, require_python
from skillcell.sandbox.images_archive import DEFAULT_PATH
from skillcell.sandbox.images_bootstrap import Progress, missing_requirements, prepare
from skillcell.sandbox.images_recipes import ALIASES
from skillcell.sandbox.images_tree import pack

RECIPE_LABEL = "skillcell.recipe"
DIGEST_LABEL = "skillcell.digest"
STAGE_LABEL = "skillcell.stage=build"
_PROBE = "import sys; print('%d.%d %s' % (sys.version_info[0], sys.version_info[1], sys.executable))"
_PROBE_SECONDS = 60
_ABSENT = ("manifest unknown", "name unknown", "repository does not exist")


class DockerImages:
    """What an engine holds. Blocking: call it from a thread."""

    def __init__(self, client: docker.DockerClient, store: ImageStore) -> None:
        self._client = client
        self._store = store
        self._foreign: dict[str, Image] = {}

    def prepare(self, aliases: Iterable[str], progress: Progress) -> tuple[Image, ...]:
        """Bring our images into the engine: from the store, bootstrapped if need be, or built from the Dockerfile where
        this machine can't bootstrap. The second time only compares labels.
        """
        return tuple(self._prepare(alias, progress) for alias in aliases)

    def ensure(self, reference: str) -> Image:
        """The image with its `engine_reference`; a foreign one is pulled. FAILED_PRECONDITION says what to do about an
        alias nobody prepared or an image without Python; UNAVAILABLE when the engine or the registry is gone.
        """
        if reference in ALIASES:
            found = self._held(reference) or self._import_from_store(reference)
            if found is not None:
                return found
            return self._store.resolve(reference)
        parse_foreign(reference)
        if reference not in self._foreign:
            self._foreign[reference] = self._pull(reference)
        return self._foreign[reference]

    def _prepare(self, alias: str, progress: Progress) -> Image:
        fingerprint = self._store.recipe(alias).fingerprint
        held = self._held(alias)
        if held is not None and held.recipe == fingerprint:
            return held
        stored = self._store.find(alias)
        if (stored is None or stored.recipe != fingerprint) and missing_requirements():
            return self._build(alias, progress)
        prepare([alias], store=self._store, progress=progress)
        progress(f"sending {alias} to the engine")
        return self._import_from_store(alias) or self._store.resolve(alias)

    def _held(self, alias: str) -> Image | None:
        """What the engine holds of an alias: the store's current tree, else what was built by today's recipe."""
        recipe = self._store.recipe(alias)
        stored = self._store.find(alias)
        wanted = {DIGEST_LABEL: stored.digest} if stored is not None else {RECIPE_LABEL: recipe.fingerprint}
        filters = {"label": [f"{name}={value}" for name, value in wanted.items()]}
        with _engine():
            for candidate in self._client.images.list(name=f"skillcell/{alias}", filters=filters):
                labels = candidate.labels
                return Image(
                    reference=alias,
                    digest=labels.get(DIGEST_LABEL) or str(candidate.id),
                    rootfs=stored.rootfs if stored is not None else None,
                    architecture=str(candidate.attrs["Architecture"]),
                    env=recipe.env,
                    engine_reference=str(candidate.id),
                    # Another recipe may have made the same bytes: then the store's word counts, not the label.
                    recipe=stored.recipe if stored is not None else labels.get(RECIPE_LABEL, ""),
                    locked=stored.locked if stored is not None else True,
                )
        return None

    def _import_from_store(self, alias: str) -> Image | None:
        stored = self._store.find(alias)
        if stored is None or stored.rootfs is None:
            return None
        recipe = self._store.recipe(alias)
        changes = [
            *(f'ENV {name}="{value}"' for name, value in stored.env.items()),
            f"USER {recipe.user}",
            f"WORKDIR {recipe.working_dir}",
            f"LABEL {DIGEST_LABEL}={stored.digest}",
            f"LABEL {RECIPE_LABEL}={stored.recipe}",
        ]
        tag = stored.digest.removeprefix("sha256:")[:12]
        with _engine(), _packed(stored.rootfs) as stream:
            self._client.api.import_image_from_stream(stream, repository=f"skillcell/{alias}", tag=tag, changes=changes)
            made = self._client.images.get(f"skillcell/{alias}:{tag}")
            if made.attrs["RootFS"]["Layers"] != [stored.digest]:
                self._client.images.remove(str(made.id), force=True)
                raise Fault(
                    FaultKind.DATA_LOSS,
                    "IMAGE_INTEGRITY",
                    f"the tree of image {alias!r} is no longer what its digest says: prepare it anew",
                    metadata={"image": alias, "limit": stored.digest},
                )
        return replace(stored, engine_reference=str(made.id))

    def _build(self, alias: str, progress: Progress) -> Image:
        recipe = self._store.recipe(alias)
        progress(f"building {alias} from its Dockerfile ({missing_requirements()} to do without a registry)")
        tag = f"skillcell/{alias}:{recipe.fingerprint[:12]}"
        architecture = machine_architecture()
        try:
            with _engine():
                made, _ = self._client.images.build(
                    path=str(self._store.recipes),
                    dockerfile=f"{recipe.folder}/Dockerfile",
                    tag=tag,
                    rm=True,
                    labels={RECIPE_LABEL: recipe.fingerprint},
                    buildargs={"NODE_PACKAGE": f"node-linux-{'x64' if architecture == 'amd64' else architecture}"},
                )
                # The classic builder leaves the first stage behind, several times the size of the result.
                self._client.images.prune(filters={"dangling": True, "label": STAGE_LABEL})
        except BuildError as error:
            raise unavailable("IMAGE_BUILD_FAILED", f"the engine could not build {alias!r}: {error.msg}") from error
        return Image(
            alias,
            str(made.id),
            None,
            architecture,
            recipe.env,
            engine_reference=str(made.id),
            recipe=recipe.fingerprint,
        )

    def _pull(self, reference: str) -> Image:
        repository, digest = parse_foreign(reference)
        with _engine():
            try:
                held = self._client.images.get(reference)
            except ImageNotFound:
                held = self._pull_new(reference, repository, digest)
            settings = held.attrs.get("Config") or {}
            env = dict(str(pair).partition("=")[::2] for pair in settings.get("Env") or [])
            env.setdefault("PATH", DEFAULT_PATH)
            python = require_python(reference, self._probe(held))
        return Image(
            reference=reference,
            digest=digest,
            rootfs=None,
            architecture=str(held.attrs["Architecture"]),
            env=env,
            python=python,
            engine_reference=str(held.id),
        )

    def _pull_new(self, reference: str, repository: str, digest: str) -> EngineImage:
        try:
            return self._client.images.pull(repository, tag=digest)
        except APIError as error:
            # Engines up to 24 answer 500 for what the registry does not have, and say so only in words.
            if error.status_code == 404 or any(words in str(error.explanation) for words in _ABSENT):
                raise precondition(
                    "IMAGE_NOT_PULLED", f"the engine's registry has no image {reference!r}", image=reference
                ) from error
            raise unavailable(
                "IMAGE_PULL_FAILED",
                f"the engine can't pull {reference!r}; is its registry reachable and is it logged in?",
                timedelta(seconds=30),
            ) from error

    def _probe(self, image: EngineImage) -> tuple[str, tuple[int, int]] | None:
        """Ask the image's own Python, in a container that can do nothing else."""
        for name in ("python3", "python"):
            container = self._client.containers.create(
                str(image.id),
                entrypoint=[name, "-I", "-c", _PROBE],
                command=[],
                user="65532:65532",
                network_disabled=True,
                read_only=True,
                cap_drop=["ALL"],
                security_opt=["no-new-privileges"],
                mem_limit="128m",
                pids_limit=32,
                labels={"skillcell.probe": "1"},
            )
            try:
                container.start()
                code = container.wait(timeout=_PROBE_SECONDS)["StatusCode"]
                said = container.logs(stdout=True, stderr=False, tail=1)[:4096].decode(errors="replace")
            except APIError:
                # The runtime found no such program on the image's PATH.
                continue
            finally:
                container.remove(force=True)
            match = re.fullmatch(r"(\d+)\.(\d+) (/\S+)\s*", said)
            if code == 0 and match is not None:
                return match[3], (int(match[1]), int(match[2]))
        return None


@contextmanager
def _engine() -> Iterator[None]:
    """The SDK's and its transport's exceptions, as faults."""
    try:
        yield
    except BuildError:
        raise
    except (APIError, DockerException, requests.exceptions.RequestException) as error:
        raise unavailable(
            "ENGINE_UNAVAILABLE", "the Docker engine does not answer or refused", timedelta(seconds=5)
        ) from error


@contextmanager
def _packed(tree: Path) -> Iterator[IO[bytes]]:
    """A tree's canonical tar as a readable stream. A failure to read the tree ends it early: check the digest."""
    reader, writer = os.pipe()

    def feed() -> None:
        # BrokenPipeError: the engine stopped reading, and says why in its answer.
        with suppress(OSError), open(writer, "wb") as sink:
            pack(tree, sink.write)

    packer = threading.Thread(target=feed, name="pack-image")
    with open(reader, "rb") as source:
        packer.start()
        try:
            yield source
        finally:
            source.close()
            packer.join()
