"""Cases under methods: what is measured, what is kept, what an interruption leaves."""

import math
import os
import sqlite3
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tissue_files import save, tissue

from pathorestore.degradations.recipes import Setting
from pathorestore.evaluation.case_files import files_of_folder
from pathorestore.evaluation.cases import CaseKey, FilePairs, SimulatedDefocus
from pathorestore.evaluation.journal import JOURNAL, Journal
from pathorestore.evaluation.measures import Features, Tools, chosen_measures
from pathorestore.evaluation.methods import CLEAN, UNSHARP, WIENER, Degraded, Restored, RestoredFiles, tune, tuned_methods
from pathorestore.evaluation.pictures import PictureShelf, extremes, picture_sets, spread
from pathorestore.evaluation.plan import check_names
from pathorestore.evaluation.results import ScoreRow
from pathorestore.evaluation.run import Evaluation
from pathorestore.metrics.fidelity import psnr
from pathorestore.pipelines.batch import JobLocked, PlanError
from pathorestore.pipelines.image_file import read_image_file


class Made:
    """A method from a function of the case."""

    def __init__(self, name, make):
        self.name, self.make, self.identity, self.calls = name, make, name, []

    def __call__(self, case):
        self.calls.append(case.key.name)
        return self.make(case)


@pytest.fixture
def cases(tmp_path):
    for seed, name in enumerate("abc"):
        save(tmp_path / "clean" / f"{name}.png", tissue(seed, 96, 80))
        save(tmp_path / "degraded" / f"{name}.png", (tissue(seed, 96, 80) * 0.9).astype(np.uint8))
    return FilePairs(keys=tuple(files_of_folder(tmp_path / "clean", tmp_path / "degraded")))


def measures(*names):
    found, left_out = chosen_measures(names, Tools())
    assert not left_out
    return found


def evaluation(cases, *methods, names=("psnr",), **options):
    return Evaluation(cases=cases, methods=methods, measures=measures(*names), **options)


def rows_of(folder, run, shelf=None):
    with Journal(folder, {"same": 1}) as journal:
        run.run(journal, shelf or PictureShelf(folder, ()))
        return run.rows(journal)


def test_every_case_has_a_row_of_every_method_with_the_metric_itself(tmp_path, cases):
    rows = rows_of(tmp_path / "out", evaluation(cases, Degraded(), Made("perfect", lambda case: case.clean), names=("psnr", "ssim")))
    assert [(row.case, row.method) for row in rows] == [
        (name, method) for name in ("a.png", "b.png", "c.png") for method in ("degraded", "perfect")
    ]
    clean, degraded = (read_image_file(path).image for path in (cases.keys[0].clean, cases.keys[0].degraded))
    assert rows[0].scores["psnr_db"] == pytest.approx(psnr(degraded, clean).item())
    assert (rows[1].scores["psnr_db"], rows[1].scores["ssim"]) == (math.inf, 1.0)


def test_shuffled_pairs_are_worse_in_every_metric(tmp_path, cases):
    names = ("psnr", "ssim", "gmsd", "spectrum", "edges", "nuclei", "nuclei_objects", "embedding")
    tools = Tools(encoder=lambda image: image.flatten(2).std(dim=2), encoder_name="spread")
    found, _ = chosen_measures(names, tools)
    others = {"a.png": "b", "b.png": "c", "c.png": "a"}

    def other(case):
        return read_image_file(cases.keys[0].clean.with_name(f"{others[case.key.name]}.png")).image

    run = Evaluation(cases=cases, methods=[Degraded(), Made("shuffled", other)], measures=found)
    rows = rows_of(tmp_path / "out", run)
    for measure in found:
        for column in measure.columns[:2]:
            own, shuffled = (np.mean([row.scores[column.key] for row in rows if row.method == name]) for name in ("degraded", "shuffled"))
            assert (own > shuffled) == (column.better == "higher"), column.key


def test_a_bad_file_is_a_row_that_says_so_and_ends_nothing(tmp_path, cases):
    cases.keys[1].degraded.write_bytes(b"no image")
    told = []
    with Journal(tmp_path / "out", {}) as journal:
        run = evaluation(cases, Degraded())
        run.run(journal, PictureShelf(tmp_path, ()), on_failure=lambda *words: told.append(words))
        rows = run.rows(journal)
    assert [bool(row.error) for row in rows] == [False, True, False]
    assert told == [("b.png", "degraded", rows[1].error)]
    assert "b.png" in rows[1].error


def test_a_method_that_fails_or_gives_nonsense_costs_its_own_row_only(tmp_path, cases):
    def fail(case):
        raise RuntimeError("broken")

    methods = [Made("fails", fail), Made("nan", lambda case: case.clean * math.nan), Degraded()]
    rows = rows_of(tmp_path / "out", evaluation(cases, *methods))
    assert [row.error for row in rows[:3]] == ["unexpected RuntimeError: broken", "the method gave values that are not finite", ""]


def test_an_interrupted_evaluation_goes_on_where_it_was(tmp_path, cases):
    def stop(case):
        if case.key.name == "b.png" and len(interrupted.calls) == 2:
            raise KeyboardInterrupt
        return case.clean

    interrupted = Made("m", stop)
    run = evaluation(cases, Degraded(), interrupted, names=("psnr", "gmsd"))
    with pytest.raises(KeyboardInterrupt):
        rows_of(tmp_path / "out", run)
    resumed = Made("m", lambda case: case.clean)
    after = rows_of(tmp_path / "out", evaluation(cases, Degraded(), resumed, names=("psnr", "gmsd")))
    assert resumed.calls == ["b.png", "c.png"]
    assert after == rows_of(tmp_path / "whole", evaluation(cases, Degraded(), Made("m", lambda case: case.clean), names=("psnr", "gmsd")))


def test_a_method_that_failed_is_tried_again_though_no_file_changed(tmp_path, cases):
    def fail(case):
        raise MemoryError

    assert all(row.error for row in rows_of(tmp_path / "out", evaluation(cases, Made("m", fail))))
    rows = rows_of(tmp_path / "out", evaluation(cases, Made("m", lambda case: case.clean)))
    assert not any(row.error for row in rows)


def test_what_failed_is_tried_again(tmp_path, cases):
    good = cases.keys[1].degraded.read_bytes()
    cases.keys[1].degraded.write_bytes(b"")
    assert any(row.error for row in rows_of(tmp_path / "out", evaluation(cases, Degraded())))
    cases.keys[1].degraded.write_bytes(good)
    rows = rows_of(tmp_path / "out", evaluation(cases, Degraded()))
    assert sorted(row.case for row in rows if not row.error) == ["a.png", "b.png", "c.png"]


def test_patches_are_measured_one_by_one_and_averaged(tmp_path, cases):
    (row, *_) = rows_of(tmp_path / "out", evaluation(cases, Degraded(), patch_px=48))
    clean, degraded = (read_image_file(path).image for path in (cases.keys[0].clean, cases.keys[0].degraded))
    corners = [(top, left) for top in (0, 48) for left in (0, 32)]
    parts = [psnr(degraded[..., t : t + 48, x : x + 48], clean[..., t : t + 48, x : x + 48]).item() for t, x in corners]
    assert row.scores["psnr_db"] == pytest.approx(np.mean(parts), abs=1e-4)
    assert row.scores["psnr_db"] != pytest.approx(psnr(degraded, clean).item(), abs=1e-3)


def test_an_image_too_small_for_a_metric_has_none_and_says_why(tmp_path, cases):
    (row, *_) = rows_of(tmp_path / "out", evaluation(cases, Degraded(), names=("psnr", "ms_ssim")))
    assert math.isnan(row.scores["ms_ssim"])
    assert row.scores["psnr_db"] > 20
    assert "ms_ssim" in row.notes


def test_the_clean_image_is_measured_where_no_partner_is_needed(tmp_path, cases):
    features = Features(name="mean", label="mean", of=lambda image: image.mean(dim=(2, 3)))
    rows = rows_of(tmp_path / "out", evaluation(cases, Degraded(), features=features))
    with Journal(tmp_path / "out", {"same": 1}) as journal:
        found = journal.arrays("features", CLEAN)
    assert list(found) == ["a.png", "b.png", "c.png"]
    assert torch.equal(found["a.png"], read_image_file(cases.keys[0].clean).image.mean(dim=(2, 3))[0])
    clean = [row for row in rows if row.method == CLEAN]
    assert [row.case for row in clean] == ["a.png", "b.png", "c.png"]
    assert all(row.scores == {} for row in clean)


def test_two_methods_of_one_name_or_none_are_refused():
    check_names(["a", "b"], "b")
    for names, reference, told in (
        (["a", "a"], "", "named twice"),
        (["a", CLEAN], "", "name of the target"),
        ([], "", "nothing to evaluate"),
        (["a"], "b", "none of the methods a"),
    ):
        with pytest.raises(ValueError, match=told):
            check_names(names, reference)


def test_a_file_that_changed_is_measured_anew_and_no_other(tmp_path, cases):
    before = rows_of(tmp_path / "out", evaluation(cases, Degraded()))
    save(cases.keys[1].degraded, (tissue(1, 96, 80) * 0.5).astype(np.uint8))
    counted = Made("degraded", lambda case: case.degraded)
    counted.identity = Degraded().identity
    after = rows_of(tmp_path / "out", evaluation(cases, counted))
    assert counted.calls == ["b.png"]
    assert [row.case for row in after] == ["a.png", "b.png", "c.png"]
    assert after[1].scores["psnr_db"] < before[1].scores["psnr_db"] - 5
    assert (after[0], after[2]) == (before[0], before[2])


def test_another_method_of_one_name_is_measured_anew(tmp_path, cases):
    def method(identity, share):
        made = Made("mine", lambda case: case.clean * share)
        made.identity = identity
        return made

    first = rows_of(tmp_path / "out", evaluation(cases, method("v1", 0.9)))
    second = rows_of(tmp_path / "out", evaluation(cases, method("v2", 0.5)))
    assert second[0].scores["psnr_db"] < first[0].scores["psnr_db"] - 5


def test_a_case_that_is_gone_leaves_the_table(tmp_path, cases):
    rows_of(tmp_path / "out", evaluation(cases, Degraded()))
    fewer = replace(cases, keys=cases.keys[:2])
    assert [row.case for row in rows_of(tmp_path / "out", evaluation(fewer, Degraded()))] == ["a.png", "b.png"]


def test_equal_patches_leave_the_others_their_mean(tmp_path, cases):
    def half(case):
        image = case.degraded.clone()
        image[..., :48, :] = case.clean[..., :48, :]
        return image

    (row, *_) = rows_of(tmp_path / "out", evaluation(cases, Made("half", half), patch_px=48))
    (whole, *_) = rows_of(tmp_path / "whole", evaluation(cases, Made("clean below", lambda case: case.clean), patch_px=48))
    assert 20 < row.scores["psnr_db"] < 60
    assert whole.scores["psnr_db"] == math.inf


def test_a_cropped_evaluation_restores_the_whole_image_and_judges_the_crop(tmp_path, cases):
    seen = []

    class Watched:
        tile_px = 64

        def restore(self, image, *, seed=0):
            seen.append(tuple(image.shape[-2:]))
            return image

    cropped = replace(cases, crop_px=40)
    method = Restored("watched", Watched(), identity="w", window=cropped.window)
    case = cropped.load(cropped.keys[0])
    assert torch.equal(method(case), case.degraded)
    assert seen == [(96, 80)]
    assert case.degraded.shape[-2:] == (40, 40)


def test_restored_files_are_cropped_like_the_clean_ones(tmp_path, cases):
    cropped = replace(cases, crop_px=40)
    method = RestoredFiles("same", tmp_path / "clean", cropped)
    case = cropped.load(cropped.keys[2])
    assert torch.equal(method(case), case.clean)
    assert case.clean.shape[-2:] == (40, 40)
    with pytest.raises(PlanError, match="name restored files alike"):
        RestoredFiles("none", save(tmp_path / "other" / "x.png", tissue(1)).parent, cases)


def test_tuning_finds_masks_and_filters_that_beat_doing_nothing(tmp_path, cases):
    simulated = SimulatedDefocus(cases.keys, z_um=(0.8, 3.2), setting=Setting.ideal())
    mask, wiener = tuned_methods(tune(simulated, wiener=True))
    assert (mask.name, wiener.name) == (UNSHARP, WIENER)
    for key in simulated.keys[:2]:
        case = simulated.load(key)
        degraded, masked, filtered = (psnr(image, case.clean).item() for image in (case.degraded, mask(case), wiener(case)))
        assert degraded < masked
        assert masked + 0.5 < filtered
    assert len(wiener.filters) == 2


# --- journal --------------------------------------------------------------------------------------------------------------------------


def test_a_row_survives_the_disk_to_the_last_bit(tmp_path):
    row = ScoreRow(
        case="a\udcff'\"\n<script>",
        method="m",
        z_um=-1.5,
        scores={"x": 0.1 + 0.2, "inf": math.inf},
    )
    with Journal(tmp_path, {"a": 1}) as journal:
        journal.add(row, {"risk": torch.tensor([[1.0, 2.0], [0.1, 4.0]])})
        assert journal.has(row.case, "m")
        assert not journal.has(row.case, "m", stamp="new")
        assert not journal.has(row.case, "other")
    with Journal(tmp_path, {"a": 1}) as journal:
        assert list(journal.rows()) == [row]
        (points,) = journal.arrays("risk", "m").values()
        assert torch.equal(points, torch.tensor([1.0, 2.0, 0.1, 4.0]))
        assert journal.arrays("features", "m") == {}


def test_a_journal_of_other_settings_is_not_gone_on_with(tmp_path):
    with Journal(tmp_path, {"crop_px": 256, "seed": 0}) as journal:
        journal.add(ScoreRow(case="a", method="m"))
    with pytest.raises(PlanError, match=r"other settings \(crop_px was 256, is 512\); --overwrite begins anew"):
        Journal(tmp_path, {"crop_px": 512, "seed": 0})
    with Journal(tmp_path, {"crop_px": 512, "seed": 0}, fresh=True) as journal:
        assert list(journal.rows()) == []


def test_a_first_try_that_kept_nothing_binds_nobody(tmp_path):
    with Journal(tmp_path, {"crop_px": 256}):
        pass
    with Journal(tmp_path, {"crop_px": 512}) as journal:
        journal.add(ScoreRow(case="a", method="m"))


def test_names_of_patients_are_for_their_owner_alone(tmp_path):
    with Journal(tmp_path, {}) as journal:
        assert journal.path.stat().st_mode & 0o077 == 0


def test_somebody_who_reads_does_not_end_the_evaluation(tmp_path):
    with Journal(tmp_path, {}) as journal:
        reader = sqlite3.connect(journal.path, isolation_level=None, check_same_thread=False)
        reader.execute("begin")
        reader.execute("select * from rows").fetchall()
        closer = threading.Timer(0.5, reader.close)
        closer.start()
        journal.add(ScoreRow(case="a", method="m"))
        closer.join()
        assert journal.has("a", "m")


def test_two_processes_do_not_write_one_evaluation(tmp_path):
    with Journal(tmp_path, {}), pytest.raises(JobLocked, match=f"is being written by process {os.getpid()}"):
        Journal(tmp_path, {})


def test_a_file_that_is_no_journal_is_told(tmp_path):
    (tmp_path / JOURNAL).write_bytes(b"something else" * 100)
    with pytest.raises(PlanError, match="is no journal that can be read"):
        Journal(tmp_path, {})


def test_a_disk_that_refuses_is_an_error_of_the_system(tmp_path, monkeypatch):
    with Journal(tmp_path, {}) as journal:
        real = journal._connection
        monkeypatch.setattr(journal, "_connection", Full(real))
        with pytest.raises(OSError, match="what is finished is kept"):
            journal.add(ScoreRow(case="a", method="m"))


class Full:
    """A database on a full disk."""

    def __init__(self, real):
        self.real = real

    def execute(self, *words):
        raise sqlite3.OperationalError("database or disk is full")

    def close(self):
        self.real.close()


# --- pictures -------------------------------------------------------------------------------------------------------------------------


def test_chosen_cases_are_kept_as_pictures_of_all_methods(tmp_path, cases):
    folder = tmp_path / "out"
    shelf = PictureShelf(folder, ["b.png"], side_px=64)
    rows = rows_of(folder, evaluation(cases, Degraded(), Made("perfect", lambda case: case.clean)), shelf)
    (kept,) = picture_sets(shelf, cases.keys, {"b.png": "chosen"}, ["degraded", "perfect", CLEAN], rows, ["psnr_db"])
    assert list(kept.pictures) == ["degraded", "perfect", "clean"]
    assert kept.scores["perfect"] == {"psnr_db": math.inf}
    pictures = {label: read_image_file(path).image for label, path in kept.pictures.items()}
    assert pictures["clean"].shape == (1, 3, 64, 64)
    assert torch.equal(pictures["clean"], pictures["perfect"])
    assert not torch.equal(pictures["clean"], pictures["degraded"])


def test_pictures_are_spread_over_all_cases_and_the_extremes_are_found():
    rows = [
        ScoreRow(case=str(number), method=method, scores={"x": number * share})
        for number in range(9)
        for method, share in (("a", 1), ("b", -1))
    ]
    assert set(extremes(rows, column="x", method="a", over="b")) == {"0", "8"}
    assert extremes(rows, column="unknown", method="a", over="b") == {}

    class Key:
        def __init__(self, name):
            self.name = name

    keys = [Key(str(number)) for number in range(10)]
    assert spread(keys, 2) == ["2", "7"]
    assert spread(keys, 99) == [key.name for key in keys]
    assert spread([], 3) == []


def test_names_of_cases_cannot_leave_the_folder_of_pictures(tmp_path):
    shelf = PictureShelf(tmp_path, ())
    image = torch.zeros(1, 3, 16, 16)
    key = CaseKey(name="../../x", image="x", clean=Path("x"))
    shelf.keep(key, "../y", image, image)
    (path,) = shelf.on_it(key, ["../y"]).values()
    assert path.parent == tmp_path / "pictures"
    assert not (Path(tmp_path).parent / "x").exists()
    assert PictureShelf(tmp_path, (), stamp=lambda *_: "later").on_it(key, ["../y"]) == {}
