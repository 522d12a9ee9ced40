"""The sample Skills, as a stranger uses them: published from their folders and called by the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from one_machine import Machine, one_machine
from sandbox_fixtures import image

SAMPLES = Path(__file__).parents[1] / "skills"
NAMES = ("csv-report", "markdown-html", "monte-carlo")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    image("node-20")
    with one_machine(tmp_path_factory.mktemp("home")) as served:
        for name in NAMES:
            served.run("publish", str(SAMPLES / name), "--as", f"samples/{name}")
        yield served


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_valid_without_a_warning(machine: Machine, name: str) -> None:
    done = machine.run("validate", str(SAMPLES / name))
    assert (done.stdout, done.stderr[:6]) == (b"", b"valid;")


def test_csv_files_become_a_report_and_charts(machine: Machine) -> None:
    planets = str(SAMPLES / "csv-report" / "assets" / "planets.csv")
    machine.run("call", "samples/csv-report", "--file", planets, "--out", "report")
    report = (machine.home / "report" / "report.md").read_text()
    assert "| moons | 8 | 0 | 0 | 36 | 9 | 146 |" in report
    assert "terrestrial (4), gas giant (2), ice giant (2)" in report
    for chart in ("radius_km", "mass_1e24_kg", "moons", "day_hours"):
        assert f"![{chart}](planets-{chart}.svg)" in report
        assert (machine.home / "report" / f"planets-{chart}.svg").read_text().startswith("<svg ")


def test_csv_from_the_wild_is_read_as_a_person_would(machine: Machine) -> None:
    (machine.home / "wild.csv").write_text('\ufeffcity;note;n\nParis;"two\nlines; one | cell";1\nOslo;;\n')
    machine.run("call", "samples/csv-report", "--file", "wild.csv", "--out", "wild", "--", "wild.csv")
    report = (machine.home / "wild" / "report.md").read_text()
    assert "2 rows, 3 columns" in report
    assert "| n | 1 | 1 | 1 | 1 | 1 | 1 | 0 |" in report
    assert "two lines; one \\| cell (1)" in report


def test_a_csv_that_is_not_there_is_named_with_exit_code_2(machine: Machine) -> None:
    done = machine.run("call", "samples/csv-report", "-q", "--", "none.csv", code=2)
    assert done.stderr.startswith(b"none.csv: ")


def test_a_price_comes_with_progress_and_close_to_the_formula(machine: Machine) -> None:
    option = '{"spot": 100, "strike": 105, "kind": "put", "seed": 3}'
    found = machine.json("call", "samples/monte-carlo", "--input", option, "--json")
    output = found["output"]
    assert abs(output["price"] - output["exact"]) < 5 * output["standard_error"]
    assert found["events"]["progress"] == found["events"]["log"] == 10
    assert found["outputs"] == [output]
    assert machine.json("call", "samples/monte-carlo", "--input", option, "--json")["output"] == output


def test_a_price_that_runs_out_of_time_is_the_estimate_so_far(machine: Machine) -> None:
    option = '{"spot": 100, "strike": 105, "samples": 20000000}'
    found = machine.json("call", "samples/monte-carlo", "--input", option, "--timeout", "2", "--json")
    assert found["outcome"] == "SUCCEEDED"
    assert found["output"]["samples"] < 20_000_000
    assert found["logs"][-1]["level"] == "warning"


def test_an_option_without_a_strike_is_refused_before_anything_runs(machine: Machine) -> None:
    done = machine.run("call", "samples/monte-carlo", "--input", '{"spot": 100}', code=125)
    assert b"strike" in done.stderr


def test_markdown_flows_through_the_filter_and_no_markup_of_its_own_survives(machine: Machine) -> None:
    text = (
        b'# One & two\n\n[x](javascript:alert(1)) <script>alert("1")</script>\n\n- a\n  - b\n\n| h |\n|---|\n| `c|` |\n'
    )
    done = machine.run("call", "samples/markdown-html", "--stdin", "-", "-q", stdin=text)
    page = done.stdout.decode()
    assert page.startswith("<!doctype html>")
    assert '<h1 id="one-two">One &amp; two</h1>' in page
    assert "<script>" not in page
    assert "javascript:" not in page
    assert "<li>a\n<ul>\n<li>b</li>" in page


def test_json_properties_become_the_filters_arguments_and_its_standard_input(machine: Machine) -> None:
    asked = '{"markdown": "# Hello", "toc": true, "fragment": true}'
    done = machine.run("call", "samples/markdown-html", "-e", "convert", "--input", asked, "-q")
    assert done.stdout.decode().splitlines() == [
        "<nav>",
        "<ul>",
        '<li class="level-1"><a href="#hello">Hello</a></li>',
        "</ul>",
        "</nav>",
        '<h1 id="hello">Hello</h1>',
    ]
