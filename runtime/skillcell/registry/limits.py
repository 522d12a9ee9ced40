"""How large a package may be. Every figure is a refusal, never a cut."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

MEBIBYTE = 1 << 20


class PackageLimits(BaseModel):
    """Bounds of one publication; the lower bounds are what any gateway must accept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    packed_bytes: int = Field(64 * MEBIBYTE, ge=10_000_000)
    """Bytes of an archive as it is sent."""
    unpacked_bytes: int = Field(256 * MEBIBYTE, ge=30_000_000)
    """Bytes of all files together."""
    entries: int = Field(10_000, ge=500, le=200_000)
    """Files, links and directories together."""
    depth: int = Field(32, ge=8, le=64)
    """Directories between the root and a file, plus one."""
    name_bytes: int = Field(1024, ge=255, le=4000)
    """UTF-8 bytes of one entry's whole path."""
    ratio: int = Field(200, ge=20)
    """Unpacked over packed bytes, looked at once more than `ratio_from_bytes` are unpacked."""
    ratio_from_bytes: int = Field(32 * MEBIBYTE, ge=0)
    """Text compresses well, so a small package may have any ratio."""
