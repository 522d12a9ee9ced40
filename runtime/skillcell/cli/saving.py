"""Artifacts as local files. Their names come from strangers: one that would leave the folder is refused, not bent."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from skillcell.client import DataLoss, SkillcellClient
from skillcell.core.events import Artifact
from skillcell.core.paths import path_problem


async def save_artifacts(
    client: SkillcellClient, execution_id: str, artifacts: Iterable[Artifact], folder: Path
) -> dict[str, Path]:
    """Name to path of each. Raises DataLoss for a name that is not safe, SkillcellError, OSError."""
    saved: dict[str, Path] = {}
    for artifact in artifacts:
        path = _place(folder, artifact.name)
        await client.save_artifact(execution_id, artifact, path)
        saved[artifact.name] = path
    return saved


def _place(folder: Path, name: str) -> Path:
    path, problem = folder / name, path_problem(name)
    if not problem and not path.resolve().is_relative_to(folder.resolve()):
        problem = "leads out of the folder through a link"
    if problem:
        raise DataLoss(f"artifact {name!r} is not saved: its name {problem}")
    return path
