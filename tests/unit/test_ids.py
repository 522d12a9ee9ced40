"""Ids can name files, cgroups and containers, sort by time, and never meet; paths lead nowhere else."""

from __future__ import annotations

import os
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skillcell.core import ids
from skillcell.core.paths import MAX_PATH_BYTES, path_problem


@pytest.mark.parametrize(
    ("make", "prefix"), [(ids.execution_id, "exe"), (ids.sandbox_id, "sbx"), (ids.event_id, "evt")]
)
def test_an_id_is_a_safe_name_with_its_kind_in_front(make, prefix: str) -> None:
    assert re.fullmatch(prefix + r"_[0-9a-hjkmnp-tv-z]{26}", make())


def test_ids_are_told_apart() -> None:
    assert len({ids.event_id() for _ in range(10_000)}) == 10_000


def test_later_ids_sort_later(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_700_000_000_000_000_000
    made = []
    for step in (0, 1_000_000, 10**9, 10**12, 10**18):
        monkeypatch.setattr(time, "time_ns", lambda step=step: now + step)
        made.append(ids.event_id())
    assert made == sorted(made)


def test_time_and_chance_are_where_the_ulid_layout_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: ((1 << 48) - 1) * 1_000_000)
    monkeypatch.setattr(os, "urandom", bytes)
    assert ids.new_id("x") == "x_" + "7" + "z" * 9 + "0" * 16


@given(st.text(st.characters() | st.sampled_from("/.\\\0\n"), max_size=40))
def test_a_path_that_passes_stays_below_where_it_is_put(name: str) -> None:
    if not path_problem(name):
        joined = os.path.normpath(os.path.join("/root/dir", name))
        assert joined == "/root/dir/" + name
        assert name.encode()


@pytest.mark.parametrize(
    "name", ["a", "a/b.c", ".hidden", "...", "a b", "ünïcödé/文.txt", "-rf", "x" * 255, "d/" * 511 + "f"]
)
def test_ordinary_names_pass(name: str) -> None:
    assert path_problem(name) == ""


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "empty"),
        ("/a", "relative"),
        ("a/", "relative"),
        ("a//b", "relative"),
        (".", "relative"),
        ("a/..", "relative"),
        ("a\\b", "backslash"),
        ("a\tb", "control"),
        ("a\x7f", "control"),
        ("\udc80", "UTF-8"),
        ("x" * 256, "255"),
        ("é" * 128, "255"),
        ("a/" * (MAX_PATH_BYTES // 2) + "b", str(MAX_PATH_BYTES)),
    ],
)
def test_names_that_are_clever_are_refused_with_the_reason(name: str, says: str) -> None:
    assert says in path_problem(name)
