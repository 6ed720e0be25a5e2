"""From runs to numbers, tables and the marked section of the page."""

import json
from xml.etree import ElementTree

import pytest
import report
import work
from measure import Clock, percentile, plain, summary


def run_of(arm, rate=0.0, *, side="peer", error="", started="1", peak=40.0, **more):
    about = {
        "work": "8b-18gib",
        "arm": arm,
        "title": arm.title(),
        "side": side,
        "started": started,
        "warmup": 1,
        "tiny": False,
    }
    if error:
        return about | {"error": error}
    numbers = {
        "tokens_per_second": rate,
        "trained_per_second": rate / 2,
        "of_rate": 0.5,
        "of_floor": 0.5,
        "peak_gib": peak,
        "losses": [3.0, 2.0, 1.0],
        "gradient_norms": [0.5, 0.4, 0.3],
        "first_step_seconds": 9.0,
        "seconds": [9.0, 1.0, 2.0, 3.0],
        "tokens": [100] * 4,
        "trained": [40] * 4,
        "versions": {"torch": "2.11.0"},
        "card": "a card",
        "real_rows": False,
    }
    return about | numbers | more


def test_percentiles_lie_between_neighbours():
    assert percentile([4.0, 1.0, 3.0, 2.0, 5.0], 0.5) == 3.0
    assert percentile([1.0, 2.0], 0.25) == 1.25
    assert percentile([7.0], 0.9) == 7.0


def test_rates_are_sums_over_sums_and_leave_out_the_warm_up():
    clock = Clock()
    clock.ends = [10.0, 11.0, 14.0]
    task = work.WORKS["8b-dense"].tiny()
    steps = [[work.Document([1] * size, 0)] for size in (999, 10, 50)]
    found = summary(task, steps, clock, warmup=1)
    assert found["tokens_per_second"] == 60 / 4
    assert found["trained_per_second"] == 58 / 4
    assert found["first_step_seconds"] == 10.0
    with pytest.raises(RuntimeError, match="none after"):
        summary(task, steps, clock, warmup=3)


def test_an_arm_is_the_median_of_its_runs_and_its_errors_count_only_alone():
    line = report.line_of([run_of("a", error="out of memory"), run_of("a", 10.0), run_of("a", 30.0), run_of("a", 11.0)])
    assert (line.tokens, line.least, line.most, line.runs, line.error) == (11.0, 10.0, 30.0, 3, "")
    assert line.step_ms[1] == 2000.0
    assert report.line_of([run_of("a", error="out of memory")]).error == "out of memory"


def test_the_best_peer_is_the_fastest_that_keeps_to_the_memory_allowed():
    lines = report.lines_of(
        [run_of("fat", 30.0, peak=30.0), run_of("lean", 10.0, peak=17.0), run_of("dead", error="x")]
    )
    assert [line.arm for line in lines] == ["fat", "lean", "dead"]
    assert report.best(lines, "peer").arm == "fat"
    assert report.best(lines, "peer", 18.0).arm == "lean"
    assert report.best(lines, "burnish") is None
    rendered = report.table(lines, 18.0)
    assert "Fat (above 18 GiB)" in rendered
    assert "**Lean**" in rendered
    assert "3.00" in rendered  # the fat one against the best that fits


def test_merging_adds_each_run_once_and_replaces_when_told(tmp_path):
    report.add_runs(tmp_path, [run_of("a", 1.0, started="1")])
    report.add_runs(tmp_path, [run_of("a", 2.0, started="2"), run_of("b", error="gone", started="3")])
    report.add_runs(tmp_path, report.read_runs(tmp_path))
    assert [run["started"] for run in report.read_runs(tmp_path)] == ["1", "2", "3"]
    report.add_runs(tmp_path, [run_of("a", 3.0, started="4")], replace=True)
    assert [run["started"] for run in report.read_runs(tmp_path)] == ["3", "4"]
    assert [path.name for path in tmp_path.iterdir()] == ["8b-18gib.json"]
    json.loads((tmp_path / "8b-18gib.json").read_text())


def test_rendering_names_failures_and_leaves_the_rest_of_the_page_alone(tmp_path):
    page = tmp_path / "docs/page.md"
    page.parent.mkdir()
    page.write_text(f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n")
    runs = [
        run_of("burnish", 20.0, side="burnish", peak=17.0),
        run_of("slow", 10.0, peak=16.0),
        run_of("dead", error="no such module"),
    ]
    report.add_runs(tmp_path / "results", runs)
    report.render(tmp_path / "results", page)
    text = page.read_text()
    assert text.startswith(f"above\n{report.BEGIN}\n")
    assert text.endswith(f"{report.END}\nbelow\n")
    assert "old" not in text
    assert "- Dead: no such module" in text
    assert "| 2.00 |" in text
    assert "../results/8b-18gib.svg" in text
    plot = ElementTree.parse(tmp_path / "results/8b-18gib.svg").getroot()
    assert "no numbers" in [element.text for element in plot.iter()]
    report.render(tmp_path / "results", page)
    assert page.read_text() == text


def test_a_page_without_both_comments_is_refused(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("no comments here\n")
    with pytest.raises(ValueError, match="must hold"):
        report.write_section(page, "text")
    assert page.read_text() == "no comments here\n"


def test_errors_lose_their_folders_and_colours():
    assert plain("\x1b[31mOSError\x1b[0m: /home/someone/lib/file.so\n is  missing") == "OSError: file.so is missing"
    assert plain("x" * 500).endswith("…")
