"""Page tokens (AIP-158): where the next page begins, opaque to its reader and good for the same question only.

A token carries no right: the tenant's own filter is applied anew on every page, so a forged one shows nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json

from skillcell.core.errors import Fault, invalid

_VERSION = 1


def fingerprint(*question: object) -> str:
    """Of all that a page's question consists of, page size and token aside. Parts must have a stable `repr`."""
    return hashlib.sha256(repr(question).encode()).hexdigest()[:16]


def encode_token(question: str, *position: int | str) -> str:
    """A token that goes on after `position`, the sort key of the last row given."""
    text = json.dumps([_VERSION, question, *position], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def decode_token(token: str, question: str, *kinds: type[int] | type[str]) -> tuple[int | str, ...]:
    """The position in a token, one value of each kind. INVALID_ARGUMENT when it isn't ours or of this question."""
    try:
        padded = token.encode("ascii") + b"=" * (-len(token) % 4)
        document = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
    except (binascii.Error, UnicodeError, ValueError, RecursionError) as error:
        raise _refused("is not a token of this service") from error
    if not isinstance(document, list) or len(document) != 2 + len(kinds) or document[0] != _VERSION:
        raise _refused("is not a token of this service")
    if document[1] != question:
        raise _refused("belongs to another filter or order; begin again without a token")
    position = tuple(document[2:])
    if not all(_fits(value, kind) for value, kind in zip(position, kinds, strict=True)):
        raise _refused("is not a token of this service")
    return position


def _fits(value: object, kind: type[int] | type[str]) -> bool:
    if type(value) is int:
        return kind is int and abs(value) < 1 << 63
    return type(value) is str and kind is str


def _refused(description: str) -> Fault:
    return invalid("page_token", description, reason="PAGE_TOKEN_INVALID")
