"""What an entrypoint says of its input and output, as admission and the run ask it."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from skillcell.core.errors import FieldViolation
from skillcell.core.skills import Entrypoint, SkillVersion
from skillcell.registry.arguments import bind_arguments
from skillcell.registry.discovery import find_entrypoint
from skillcell.registry.schemas import parse_json, validate

_NULL = b"null"


class EntrypointRules:
    """Stateless; compiled schemas are cached where they are compiled."""

    def entrypoint(self, version: SkillVersion, name: str) -> Entrypoint:
        """By full or short name, the default for an empty one. Raises Fault."""
        return find_entrypoint(version.spec, name)

    def check_input(self, entrypoint: Entrypoint, input_json: bytes | None) -> Collection[FieldViolation]:
        """What of the declared schema the input breaks; an input that is not given is checked as null."""
        if entrypoint.input_schema is None:
            return ()
        if input_json is None:
            accepted = not validate(entrypoint.input_schema, _NULL)
            return () if accepted else (FieldViolation("input", "is required by the entrypoint's schema"),)
        return validate(entrypoint.input_schema, input_json)

    def bind(self, entrypoint: Entrypoint, input_json: bytes | None) -> tuple[tuple[str, ...], bytes | None]:
        """argv and stdin made of the input. Raises Fault INVALID_ARGUMENT."""
        if not entrypoint.bindings and not entrypoint.stdin:
            return (), None
        return bind_arguments(entrypoint, None if input_json is None else parse_json(input_json))

    def output_check(self, entrypoint: Entrypoint) -> Callable[[bytes], Collection[str]] | None:
        """Tells in words what of the declared schema an output breaks; None when nothing is declared."""
        if entrypoint.output_schema is None:
            return None
        return partial(_breaches, entrypoint)


def _breaches(entrypoint: Entrypoint, value: bytes) -> Collection[str]:
    assert entrypoint.output_schema is not None
    return [f"{v.field}: {v.description}" for v in validate(entrypoint.output_schema, value, "output")]
