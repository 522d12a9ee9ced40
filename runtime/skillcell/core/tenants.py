"""Who calls and pays."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Tenant:
    """As it is kept. `etag` changes with every change; empty in what shall replace whatever there is."""

    id: str
    display_name: str = ""
    publishers: tuple[str, ...] = ()
    """Names that it publishes under; each belongs to one tenant. In the order of the alphabet."""
    rate_plan: str = ""
    """Name of the plan that rates its calls; empty: the gateway's default, if it has one."""
    suspended: bool = False
    created_at: datetime | None = None
    etag: str = ""
