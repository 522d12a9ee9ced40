"""Pairs of user ids of several gateways of one machine: shared without being given twice, nor taken from each other."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from skillcell.core.errors import Fault
from skillcell.sandbox.uids import IdRange


def test_a_gateway_neither_lists_nor_gives_back_what_another_holds(tmp_path: Path) -> None:
    ours, theirs = (IdRange(tmp_path, pairs=2, owner=name) for name in ("skillcell-a", "skillcell-b"))
    pair, other = ours.allocate("sbx_1"), theirs.allocate("sbx_2")
    assert pair != other
    assert (ours.owners(), theirs.owners()) == ({"sbx_1"}, {"sbx_2"})
    ours.release("sbx_2")
    ours.release("sbx_2", other)
    assert theirs.owners() == {"sbx_2"}
    with pytest.raises(Fault, match="all 2 pairs"):
        ours.allocate("sbx_3")
    theirs.release("sbx_2")
    assert ours.allocate("sbx_3") == other
    ours.release("sbx_3", other)
    ours.release("sbx_1")
    assert os.listdir(tmp_path) == []


def test_without_an_owner_only_links_that_name_none_are_ours(tmp_path: Path) -> None:
    plain, theirs = IdRange(tmp_path), IdRange(tmp_path, owner="skillcell-b")
    plain.allocate("sbx_1")
    theirs.allocate("sbx_2")
    assert plain.owners() == {"sbx_1"}
