"""Who calls: credentials in the call's metadata, to a Principal.

Today there are API keys alone, given as `authorization: Bearer KEY`; they are compared by hash, in constant time.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from typing import Protocol

from skillcell.core.errors import Fault, FaultKind
from skillcell.core.types import Principal

ALL_ROLES = frozenset({"caller", "publisher", "operator", "biller"})


class Authenticator(Protocol):
    """Raises Fault UNAUTHENTICATED; must not tell a wrong key from an unknown one."""

    async def authenticate(self, metadata: Mapping[str, str]) -> Principal: ...


class ApiKeys:
    """A fixed set of keys by their sha256."""

    def __init__(self, keys: Mapping[bytes, Principal]) -> None:
        self._keys = dict(keys)

    async def authenticate(self, metadata: Mapping[str, str]) -> Principal:
        header = metadata.get("authorization", "")
        scheme, _, key = header.partition(" ")
        if not header:
            raise Fault(
                FaultKind.UNAUTHENTICATED,
                "CREDENTIALS_MISSING",
                "no credentials: send metadata `authorization: Bearer <API key>`",
            )
        given = hash_key(key.strip())
        found = None
        for known, principal in self._keys.items():
            if hmac.compare_digest(known, given):
                found = principal
        if scheme.lower() != "bearer" or found is None:
            raise Fault(FaultKind.UNAUTHENTICATED, "CREDENTIALS_INVALID", "the API key is not valid")
        return found


def hash_key(key: str) -> bytes:
    """What is kept of a key. Keys are long and random, so a plain hash needs no salt."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()
