"""Whose usage and charges a caller may ask for: its own, and those of all others with the roles for it."""

from __future__ import annotations

from collections.abc import Collection

from skillcell.core.errors import Fault, FaultKind, invalid
from skillcell.core.types import Principal

SEES_ALL_USAGE = frozenset({"biller", "operator"})
RATES_ALL = frozenset({"biller"})


def role_required(*roles: str) -> Fault:
    """A refusal that names what is missing."""
    wanted = " or ".join(repr(role) for role in roles)
    return Fault(
        FaultKind.PERMISSION_DENIED,
        "ROLE_REQUIRED",
        f"this call needs the role {wanted}",
        metadata={"role": roles[0]},
    )


def tenant_in_question(principal: Principal, named: str, sees_all: Collection[str]) -> str:
    """The tenant that a caller names, or its own. PERMISSION_DENIED where it is another's without a role for it."""
    if named and named != principal.tenant and not principal.roles & frozenset(sees_all):
        raise role_required("biller")
    return named or principal.tenant


def publisher_in_question(principal: Principal, named: str, own: Collection[str]) -> str:
    """The same of publishers; INVALID_ARGUMENT where none is named and there isn't exactly one of the caller's."""
    if named:
        if named not in own and not principal.roles & RATES_ALL:
            raise role_required("biller")
        return named
    if len(own) != 1:
        have = f"you publish as {', '.join(sorted(own)[:10])}; name one" if own else "you publish nothing; name one"
        raise invalid("publisher", have)
    return next(iter(own))
