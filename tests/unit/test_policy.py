"""Granted limits: always within policy, always with room for the disk in memory, and honest about who lowered what."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillcell.admission.policy import Grant, Policy, grant
from skillcell.core.errors import Fault, FaultKind
from skillcell.core.types import MEBIBYTE, LimitRequest, Limits

POLICY = Policy()
NOTHING = LimitRequest()


def anything() -> st.SearchStrategy[LimitRequest]:
    return st.builds(
        LimitRequest,
        **{
            name: st.none() | st.integers(-1, 2 * getattr(POLICY.most, name)) | st.just(getattr(POLICY.most, name))
            for name in Limits.names()
        },
    )


def permitted() -> st.SearchStrategy[LimitRequest]:
    bounds = {name: (getattr(POLICY.least, name), getattr(POLICY.most, name)) for name in Limits.names()}
    return st.builds(LimitRequest, **{name: st.none() | st.integers(*bounds[name]) for name in Limits.names()})


def answer(manifest: LimitRequest, caller: LimitRequest) -> Grant | Fault:
    try:
        return grant(POLICY, manifest, caller)
    except Fault as fault:
        return fault


def bounded(limits: Limits) -> None:
    for name in Limits.names():
        assert getattr(POLICY.least, name) <= getattr(limits, name) <= getattr(POLICY.most, name), name
    assert limits.disk_bytes <= limits.memory_bytes // 2


@given(anything(), permitted())
def test_whatever_is_granted_lies_within_policy(manifest: LimitRequest, caller: LimitRequest) -> None:
    granted = answer(manifest, caller)
    if isinstance(granted, Fault):
        assert [v.field for v in granted.violations] == ["limits.disk_bytes"]
        assert caller.disk_bytes is not None
        return
    bounded(granted.limits)
    for name in Limits.names():
        if (asked := getattr(caller, name)) is not None:
            assert getattr(granted.limits, name) == asked


@given(anything())
def test_a_manifest_is_capped_and_never_refused(manifest: LimitRequest) -> None:
    granted = grant(POLICY, manifest, NOTHING)
    bounded(granted.limits)
    assert not granted.lowered


@given(anything(), anything())
def test_a_caller_is_granted_what_it_asks_or_told_every_limit_that_is_out_of_bounds(
    manifest: LimitRequest, caller: LimitRequest
) -> None:
    out = [
        f"limits.{name}"
        for name in Limits.names()
        if (asked := getattr(caller, name)) is not None
        and not getattr(POLICY.least, name) <= asked <= getattr(POLICY.most, name)
    ]
    said = answer(manifest, caller)
    if isinstance(said, Fault):
        assert said.kind is FaultKind.INVALID_ARGUMENT
        assert [v.field for v in said.violations] == (out or ["limits.disk_bytes"])
    else:
        assert not out


def test_a_refusal_names_field_value_and_limit() -> None:
    most = POLICY.most.pids
    with pytest.raises(Fault, match=rf"limits.pids is {most + 1}; it must lie within \d+ and {most} processes"):
        grant(POLICY, NOTHING, LimitRequest(pids=most + 1))


@given(permitted(), st.integers(1, 10))
def test_what_the_caller_lowered_is_named(manifest: LimitRequest, less: int) -> None:
    wished = grant(POLICY, manifest, NOTHING).limits
    asked = max(POLICY.least.wall_ns, wished.wall_ns - less)
    granted = grant(POLICY, manifest, LimitRequest(wall_ns=asked))
    assert granted.lowered == ({"wall_ns"} if asked < wished.wall_ns else set())


def test_a_caller_that_lowers_memory_lowers_the_disk_in_it() -> None:
    granted = grant(POLICY, NOTHING, LimitRequest(memory_bytes=64 * MEBIBYTE))
    assert granted.limits.disk_bytes == 32 * MEBIBYTE
    assert granted.lowered == {"memory_bytes", "disk_bytes"}


def test_a_manifest_that_asks_for_little_memory_gets_little() -> None:
    granted = grant(POLICY, LimitRequest(memory_bytes=64 * MEBIBYTE), NOTHING)
    assert (granted.limits.memory_bytes, granted.limits.disk_bytes) == (64 * MEBIBYTE, 32 * MEBIBYTE)


def test_a_manifest_that_asks_for_much_disk_gets_the_memory_it_lives_in() -> None:
    granted = grant(POLICY, LimitRequest(disk_bytes=512 * MEBIBYTE), NOTHING)
    assert (granted.limits.memory_bytes, granted.limits.disk_bytes) == (1024 * MEBIBYTE, 512 * MEBIBYTE)
    named = grant(POLICY, LimitRequest(disk_bytes=512 * MEBIBYTE), LimitRequest(memory_bytes=256 * MEBIBYTE))
    assert (named.limits.memory_bytes, named.limits.disk_bytes) == (256 * MEBIBYTE, 128 * MEBIBYTE)


def test_a_caller_that_asks_for_more_disk_than_half_its_memory_is_told_so() -> None:
    with pytest.raises(Fault) as fault:
        grant(POLICY, NOTHING, LimitRequest(disk_bytes=200 * MEBIBYTE))
    assert fault.value.violations[0].field == "limits.disk_bytes"
    assert str(128 * MEBIBYTE) in fault.value.message


def test_a_default_above_the_operators_maximum_does_not_pass_it() -> None:
    policy = replace(POLICY, most=replace(POLICY.most, pids=16, memory_bytes=64 * MEBIBYTE))
    limits = grant(policy, NOTHING, NOTHING).limits
    assert (limits.pids, limits.memory_bytes, limits.disk_bytes) == (16, 64 * MEBIBYTE, 32 * MEBIBYTE)


def test_every_limit_has_a_least_a_default_and_a_most() -> None:
    for name in Limits.names():
        least, default, most = (getattr(part, name) for part in (POLICY.least, POLICY.default, POLICY.most))
        assert 0 < least <= default <= most < 1 << 63, name
