"""Sinks of usage events: how far each is, and what an operator decides about them."""

from __future__ import annotations

from collections.abc import Sequence

import grpc.aio

from skillcell.client.channel import ask, known_values
from skillcell.client.types import Page, Resumed
from skillcell.core.sinks import DeadLetter, ResumeChoice, SinkStatus
from skillcell.v1 import admin_pb2 as pb
from skillcell.v1 import admin_pb2_grpc
from skillcell.v1.sink_pb2 import SINK_RESUME_CHOICE_UNSPECIFIED
from skillcell.wire.enums import RESUME_CHOICE
from skillcell.wire.sinks import dead_letter_from_proto, sink_from_proto


class SinkCalls:
    """The part of AdminService that is about sinks. All raise SkillcellError."""

    def __init__(self, channel: grpc.aio.Channel, metadata: Sequence[tuple[str, str]]) -> None:
        self._stub = admin_pb2_grpc.AdminServiceStub(channel)
        self._metadata = tuple(metadata)

    async def list(self) -> tuple[SinkStatus, ...]:
        """Every sink, by name."""
        answer = await ask(self._stub.ListSinks(pb.ListSinksRequest(), metadata=self._metadata))
        with known_values():
            return tuple(sink_from_proto(sink) for sink in answer.sinks)

    async def source(self) -> str:
        """`source` of the events of this gateway's ledger, where the settings of a sink name no other."""
        answer = await ask(self._stub.ListSinks(pb.ListSinksRequest(), metadata=self._metadata))
        return str(answer.source)

    async def resume(self, name: str, choice: ResumeChoice | None = None) -> Resumed:
        """Ends a hold. One over the de-duplication window needs a choice."""
        wire = RESUME_CHOICE.to_wire(choice) if choice is not None else SINK_RESUME_CHOICE_UNSPECIFIED
        request = pb.ResumeSinkRequest(name=name, choice=wire)
        answer = await ask(self._stub.ResumeSink(request, metadata=self._metadata))
        with known_values():
            return Resumed(sink_from_proto(answer.sink), answer.from_sequence, answer.to_sequence)

    async def dead_letters(self, name: str, *, page_size: int = 0, page_token: str = "") -> Page[DeadLetter]:
        """Events that a sink refused, in the order of the ledger."""
        request = pb.ListDeadLettersRequest(name=name, page_size=page_size, page_token=page_token)
        answer = await ask(self._stub.ListDeadLetters(request, metadata=self._metadata))
        letters = tuple(dead_letter_from_proto(letter, name) for letter in answer.dead_letters)
        return Page(letters, answer.next_page_token)

    async def redrive(self, name: str, sequences: Sequence[int] = ()) -> int:
        """Has dead letters sent again, all where none are named; how many wait for that now."""
        request = pb.RedriveDeadLettersRequest(name=name, sequences=sequences)
        answer = await ask(self._stub.RedriveDeadLetters(request, metadata=self._metadata))
        return int(answer.waiting)

    async def discard(self, name: str, sequences: Sequence[int]) -> None:
        """Forgets dead letters for good: the sink never gets them."""
        request = pb.DiscardDeadLettersRequest(name=name, sequences=sequences)
        await ask(self._stub.DiscardDeadLetters(request, metadata=self._metadata))
