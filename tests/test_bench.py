"""The benchmark itself: each part runs, and what it says of its samples is right."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

import figures
from bench import document, doorbells, filters, guest, network, plots, protocol, scale, storage
from bench.__main__ import main
from bench.processes import PYTHON, C, cpus
from bench.samples import Ratio, Results, Series, percentile
from bench.storage import BARE, NVME, VIRTIO, Load
from bench.tables import figure, part_table, target_table
from bench.targets import Target, judge


def results(**rounds: list[list[float]]) -> Results:
    """One part, one thing, by these subjects."""
    made = Results()
    for subject, samples in rounds.items():
        for each in samples:
            made.add("part", "thing", subject, "µs", each)
    return made


def test_percentiles_are_samples() -> None:
    assert [percentile([4.0, 1.0, 3.0, 2.0], percent) for percent in (0, 25, 50, 99, 100)] == [1, 1, 2, 4, 4]


def test_one_bad_round_does_not_move_the_median() -> None:
    assert Series("µs", [[1.0, 1.0], [1.0], [1.0], [900.0] * 50]).p50 == 1.0


def test_a_ratio_is_taken_round_by_round() -> None:
    ratio = results(fast=[[1.0], [10.0], [2.0]], slow=[[2.0], [30.0], [2.0]]).ratio("part", "thing", "slow", "fast")
    assert ratio == Ratio(2.0, 1.0, 3.0)


def test_there_is_no_ratio_to_next_to_nothing() -> None:
    found = results(nothing=[[0.001], [-0.002]], little=[[0.1], [0.1]])
    assert found.ratio("part", "thing", "little", "nothing") is None
    assert found.ratio("part", "thing", "nothing", "little") is None


def test_there_is_no_ratio_to_what_was_not_measured() -> None:
    assert results(fast=[[1.0]]).ratio("part", "thing", "fast", "slow") is None


def test_results_are_json() -> None:
    (series,) = json.loads(json.dumps(results(one=[[3.0, 1.0], [2.0]]).to_json()))
    assert (series["part"], series["what"], series["subject"], series["unit"]) == ("part", "thing", "one", "µs")
    assert (series["samples"], series["p50"], series["quantiles"][0], series["quantiles"][-1]) == (3, 2.0, 1.0, 3.0)


@pytest.mark.parametrize(
    ("bound", "at_least", "within_spread", "met"),
    [
        (2.5, False, False, True),
        (1.9, False, False, False),
        (2.5, True, False, False),
        (1.9, True, False, True),
        (1.5, False, True, True),
        (0.9, False, True, False),
    ],
)
def test_a_target_is_a_bound_on_a_ratio(bound: float, at_least: bool, within_spread: bool, met: bool) -> None:
    target = Target("t", bound, lambda _: Ratio(2.0, 1.0, 3.0), at_least, within_spread)
    verdict = target.judge(Results())
    assert verdict is not None
    assert verdict.met is met
    assert target_table([verdict]).row_count == 1


def test_targets_that_were_not_measured_are_not_judged() -> None:
    assert judge(Results()) == []


def test_each_load_in_the_patched_qemu_is_judged_beside_its_own_device() -> None:
    made = Results()
    for what, rate in (("nvme: reads", 3.0), ("nvme: writes", 1.0)):
        for subject, value in ((guest.BY_DESCRIPTOR, rate), (guest.OWN, 2.0)):
            made.add(guest.PATCHED, what, subject, "/s", [value])
    found = [(verdict.target.name.rpartition(": ")[2], verdict.ratio.value, verdict.met) for verdict in judge(made)]
    assert found == [("reads", 1.5, True), ("writes", 0.5, False)]


def test_what_two_builds_of_qemu_make_of_a_figure_goes_out_of_a_ratio() -> None:
    made, what = Results(), "reads"
    for subject, value in ((guest.OURS, 80.0), (guest.IN_PATCHED, 40.0), (guest.QEMU, 100.0)):
        made.add(guest.VHOST, what, subject, "/s", [value])
    assert judge(made) == []
    made.add(guest.VHOST, what, guest.IN_STOCK, "/s", [50.0])
    (verdict,) = judge(made)
    assert (verdict.ratio, verdict.met) == (Ratio(1.0, 1.0, 1.0), True)


def test_figures_go_into_their_places_and_the_others_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "performance.md"
    marks = [document.BEGIN.format(name) for name in ("targets", "machine", storage.PART, scale.PART)]
    page.write_text("".join(f"before\n{mark}old\n{document.END}\n" for mark in marks))
    monkeypatch.setattr(document, "PAGE", page)
    made, load = Results(), Load(storage.SMALL, 32, write=False, direct=False, memory=True)
    for subject, rate in ((NVME, 3000.0), (BARE, 4000.0)):
        made.add(storage.PART, load.name, subject, "/s", [rate])
    document.write(made, judge(made), {"python": "3.99"})
    targets, machine, disks, many = page.read_text().split("before\n")[1:]
    name = "nvme by the bare loop: 4 KiB random read, depth 32, memory"
    assert f"| {name} | at least 0.7 | 0.75 (0.75-0.75) | met |" in targets
    assert "| python | 3.99 |" in machine
    assert "| 4 KiB random read, depth 32, memory | 3,000 /s (3,000-3,000) | 4,000 /s (4,000-4,000) | 0.75" in disks
    assert [("old" in part) for part in (targets, machine, disks, many)] == [False, False, False, True]


def test_only_a_whole_run_is_documented(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["bench", "network", "--document"])
    with pytest.raises(SystemExit):
        main()
    assert "--document is for a whole run" in capsys.readouterr().err


def test_the_page_has_a_place_for_each_part() -> None:
    page = document.PAGE.read_text()
    for name in ("targets", "machine", *document.PARTS):
        assert page.count(document.BEGIN.format(name)) == 1, name


def test_a_table_has_a_line_for_each_who_did_it() -> None:
    assert part_table(results(one=[[1.0]], two=[[2.0]]), "part").row_count == 2


@pytest.mark.parametrize(("value", "text"), [(0.123, "0.12"), (12.34, "12.3"), (123.4, "123"), (12345.6, "12,346")])
def test_figures_have_three_digits(value: float, text: str) -> None:
    assert figure(value) == text


def test_the_plots_are_drawn(tmp_path: Path) -> None:
    made = Results()
    for subject in (PYTHON, C):
        made.add(protocol.PART, "REGION_READ, one CPU", subject, "µs", [1.0, 2.0, 300.0])
    (path,) = plots.draw(made, tmp_path)
    assert path.read_text().lstrip().startswith("<?xml")


def test_what_the_guest_prints_is_told_in_units_of_ours() -> None:
    printed = "figure@TCP@QEMU@8000@kbit/s\n\nfigure@nvme: read@bellwire@1000@KiB/s\nfigure@UDP@QEMU@10/2010@datagrams"
    assert list(figures.parse(printed)) == [
        ("TCP", guest.QEMU, 1.0, "MB/s"),
        ("nvme: read", "bellwire", 1.024, "MB/s"),
        ("UDP", guest.QEMU, 2000 / figures.SECONDS, "/s"),
    ]


@pytest.mark.kvm
def test_doorbells_are_measured_under_both_vmms() -> None:
    made = Results()
    doorbells.measure(made, rounds=1, count=64, trips=4)
    for part in (doorbells.COST, doorbells.HOOK, doorbells.TRIP):
        assert {PYTHON, C, doorbells.C_VMM} <= set(made.subjects(part))
        assert len(made.whats(part)) == (9 if len(cpus()) > 1 else 8)


@pytest.mark.slow
def test_every_message_is_measured_with_both_devices() -> None:
    made = Results()
    protocol.measure(made, rounds=1, count=16)
    for what in made.whats(protocol.PART):
        ratio = made.ratio(protocol.PART, what, PYTHON, C)
        assert ratio is not None
        assert math.isfinite(ratio.value)
    assert "REGION_READ, one CPU" in made.whats(protocol.PART)


@pytest.mark.slow
def test_every_filter_is_measured_with_every_message() -> None:
    made = Results()
    filters.measure(made, rounds=1, count=64)
    assert made.subjects(filters.PART) == list(filters.SUBJECTS)
    for what in filters.OPERATIONS:
        assert made.ratio(filters.PART, what, "count", filters.NONE) is not None


def test_what_is_measured_in_the_page_cache_is_there(disk_folder: Path) -> None:
    image = disk_folder / "disk.img"
    image.write_bytes(bytes(size := 4 << 20))
    with image.open("rb", buffering=0) as file:
        os.fsync(file)
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        storage.settle(image, Load(storage.LARGE, 8, write=False, direct=False))
        assert os.preadv(file.fileno(), [bytearray(size)], 0, os.RWF_NOWAIT) == size


@pytest.mark.slow
def test_disks_are_measured_beside_a_bare_loop() -> None:
    made = Results()
    loads = [
        Load(storage.SMALL, 8, write=True, direct=False),
        Load(storage.LARGE, 2, write=False, direct=True),
        Load(storage.SMALL, 8, write=False, direct=False, memory=True),
    ]
    storage.measure(made, rounds=1, count=64, loads=loads)
    assert made.subjects(storage.PART) == [NVME, VIRTIO, BARE]
    assert made.whats(storage.PART) == [load.name for load in loads]


@pytest.mark.slow
def test_frames_are_sent_into_a_tap_where_one_may_be_made() -> None:
    made = Results()
    network.measure(made, rounds=1, count=2 * network.WAITING)
    assert made.subjects(network.PART) == ([network.BARE, PYTHON] if network.usable() else [])


@pytest.mark.slow
def test_scale_is_measured_by_number_of_devices() -> None:
    made = Results()
    scale.measure(made, rounds=1, count=16, counts=(1, 3))
    assert "3 devices, 2 others rung without end: REGION_READ" in made.whats(scale.PART)
