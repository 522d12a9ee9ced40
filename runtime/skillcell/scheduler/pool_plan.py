"""How many warm sandboxes there should be, of what: a pure function of what was asked for, and when.

A kind of sandbox is worth keeping warm once it was asked for twice. From then on as many are wanted as were ever asked
for within the time that it takes to make one, that peak forgotten by halves; and none once nobody has asked for a
while. So a steady caller gets one ahead, a burst leaves the pool as deep as it was wide, and what is dead costs
nothing.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import BaseModel, ConfigDict, Field

_HALF_LIFE_SECONDS = 30.0
_LEAST_WINDOW_SECONDS = 0.25
_FIRST_GUESS_SECONDS = 0.5
_WEIGHT = 0.2
"""Of the newest refill in the running mean of their durations."""


class PoolSettings(BaseModel):
    """Bounds of the warm pool."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    idle_most: int = Field(default=8, ge=0, le=1024, description="Idle sandboxes, all kinds together; 0: no pool.")
    idle_most_of_kind: int = Field(default=4, ge=1, le=1024, description="Idle sandboxes of one kind.")
    keep_seconds: float = Field(default=120, gt=0, description="How long after its last call a kind is kept warm.")
    age_seconds: float = Field(default=600, gt=0, description="How long one may wait; an older one is replaced.")
    idle_bytes: int = Field(default=24 << 20, ge=1 << 20, description="Memory that is set aside for each idle one.")


@dataclass(slots=True)
class Demand:
    """What is known of one kind. Times are seconds on one monotonic clock."""

    arrivals: deque[float] = field(default_factory=lambda: deque(maxlen=512))
    """Newest last; those within the window are what counts."""
    asked: int = 0
    last: float = -math.inf
    peak: float = 0.0
    peak_at: float = -math.inf
    refill_seconds: float = _FIRST_GUESS_SECONDS

    def arrived(self, now: float) -> None:
        """A call wanted one."""
        self.asked += 1
        self.last = now
        self.arrivals.append(now)
        window = max(_LEAST_WINDOW_SECONDS, 2 * self.refill_seconds)
        while self.arrivals[0] < now - window:
            self.arrivals.popleft()
        self.peak, self.peak_at = max(float(len(self.arrivals)), self.peak_now(now)), now

    def refilled(self, seconds: float) -> None:
        """One was made, in so long."""
        self.refill_seconds += _WEIGHT * (seconds - self.refill_seconds)

    def peak_now(self, now: float) -> float:
        """The most that were asked for at once, faded by the time since."""
        return self.peak * 0.5 ** ((now - self.peak_at) / _HALF_LIFE_SECONDS) if self.peak else 0.0

    def wanted(self, now: float, settings: PoolSettings) -> int:
        """How many should wait, as far as this kind alone goes."""
        if self.asked < 2 or now - self.last > settings.keep_seconds:
            return 0
        return min(settings.idle_most_of_kind, max(1, math.ceil(self.peak_now(now) - 0.5)))


@dataclass(frozen=True, slots=True)
class Idle:
    """One that waits."""

    sandbox_id: str
    kind: Hashable
    made_at: float


@dataclass(frozen=True, slots=True)
class Moves:
    """What to do now."""

    make: tuple[Hashable, ...] = ()
    """Kinds, one entry for each sandbox, the most wanted first."""
    discard: tuple[str, ...] = ()
    """Ids."""


def targets(demands: Mapping[Hashable, Demand], now: float, settings: PoolSettings) -> dict[Hashable, int]:
    """How many of each kind, within the bound of all: everyone's first before anyone's second, the latest first."""
    wanted = {kind: demand.wanted(now, settings) for kind, demand in demands.items()}
    order = sorted((kind for kind, count in wanted.items() if count), key=lambda kind: -demands[kind].last)
    given = dict.fromkeys(order, 0)
    left = settings.idle_most
    while left and order:
        for kind in order:
            if left:
                given[kind] += 1
                left -= 1
        order = [kind for kind in order if given[kind] < wanted[kind]]
    return given


def plan(
    demands: Mapping[Hashable, Demand],
    idle: Sequence[Idle],
    making: Mapping[Hashable, int],
    now: float,
    settings: PoolSettings,
) -> Moves:
    """What brings the pool to its targets: the aged and the superfluous go, oldest first; what lacks is made."""
    goal = targets(demands, now, settings)
    discard: list[str] = []
    kept: dict[Hashable, int] = {}
    for one in sorted(idle, key=lambda one: -one.made_at):
        if now - one.made_at > settings.age_seconds or kept.get(one.kind, 0) >= goal.get(one.kind, 0):
            discard.append(one.sandbox_id)
        else:
            kept[one.kind] = kept.get(one.kind, 0) + 1
    make: list[Hashable] = []
    lacking = {kind: count - kept.get(kind, 0) - making.get(kind, 0) for kind, count in goal.items()}
    while any(count > 0 for count in lacking.values()):
        for kind, count in lacking.items():
            if count > 0:
                make.append(kind)
                lacking[kind] -= 1
    return Moves(tuple(make), tuple(reversed(discard)))
