"""Sinks between the wire and their exporters; `AdminService` serves them."""

from __future__ import annotations

from dataclasses import dataclass

from skillcell.metering.export.sinks import Sinks
from skillcell.storage.pages import decode_token, encode_token, fingerprint
from skillcell.v1 import admin_pb2 as pb
from skillcell.wire.enums import RESUME_CHOICE
from skillcell.wire.sinks import dead_letter_to_proto, sink_to_proto


@dataclass(frozen=True, slots=True)
class SinkDesk:
    """What operators ask of the sinks and decide about them."""

    sinks: Sinks

    async def list(self) -> pb.ListSinksResponse:
        statuses = await self.sinks.statuses()
        return pb.ListSinksResponse(sinks=[sink_to_proto(status) for status in statuses], source=self.sinks.source)

    async def resume(self, request: pb.ResumeSinkRequest) -> pb.ResumeSinkResponse:
        status, (first, last) = await self.sinks.resume(request.name, RESUME_CHOICE.optional(request.choice))
        return pb.ResumeSinkResponse(sink=sink_to_proto(status), from_sequence=first, to_sequence=last)

    async def dead_letters(self, request: pb.ListDeadLettersRequest) -> pb.ListDeadLettersResponse:
        size, question = request.page_size or 50, fingerprint("dead_letters", request.name)
        after = int(decode_token(request.page_token, question, int)[0]) if request.page_token else 0
        found = await self.sinks.dead_letters(request.name, after, size + 1)
        page = found[:size]
        return pb.ListDeadLettersResponse(
            dead_letters=[dead_letter_to_proto(letter) for letter in page],
            next_page_token=encode_token(question, page[-1].sequence) if len(found) > size else "",
        )

    async def redrive(self, request: pb.RedriveDeadLettersRequest) -> pb.RedriveDeadLettersResponse:
        return pb.RedriveDeadLettersResponse(waiting=await self.sinks.redrive(request.name, list(request.sequences)))

    async def discard(self, request: pb.DiscardDeadLettersRequest) -> None:
        await self.sinks.discard(request.name, list(request.sequences))
