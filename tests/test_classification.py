"""How well a classifier tells images apart: figures against hand-worked tables and reference libraries, and the laws of their intervals."""

import csv
import io
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import mannwhitneyu

from pathorestore.evaluation.classification import (
    Case,
    Rules,
    check_output,
    compare,
    find_image,
    probabilities_csv,
    score_versions,
    write_comparison,
)
from pathorestore.metrics import classification
from pathorestore.metrics.classification import (
    METRICS,
    FigureRules,
    classification_differences,
    classification_intervals,
    classification_scores,
    predicted,
)
from pathorestore.metrics.statistics import bootstrap_interval
from pathorestore.pipelines.image_file import ImageFileError

# isort: split
# after pathorestore has made torchvision importable where its operators are missing
import torchmetrics.functional.classification as reference


def drawn(images, classes=2, *, seed=0, levels=None):
    """Probabilities n k that know something about the classes n; `levels` makes ties."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(classes, (images,), generator=generator)
    target[:classes] = torch.arange(classes)
    logits = torch.randn(images, classes, generator=generator) + 1.2 * torch.eye(classes)[target]
    probabilities = logits.double().softmax(dim=1)
    if levels:
        positive = (probabilities[:, 1] * levels).round() / levels
        probabilities = torch.stack([1 - positive, positive], dim=1)
    return probabilities, target


def sure(said):
    """Probabilities of a classifier that says these classes of two and is sure of it."""
    positive = torch.tensor(said, dtype=torch.float64)
    return torch.stack([1 - positive, positive], dim=1)


def test_figures_of_two_classes_are_those_of_a_confusion_matrix_worked_by_hand():
    # 6 true positives, 3 false negatives, 2 false positives, 9 true negatives
    target = torch.tensor([1] * 9 + [0] * 11)
    scores = classification_scores(sure([1] * 6 + [0] * 3 + [1] * 2 + [0] * 9), target)
    expected = {"accuracy": 15 / 20, "precision": 6 / 8, "specificity": 9 / 11, "sensitivity": 6 / 9, "f1": 12 / 17}
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-12)
    # one threshold: the area is the mean of sensitivity and specificity
    assert scores["auc"] == pytest.approx((6 / 9 + 9 / 11) / 2, abs=1e-6)


def test_figures_of_three_classes_are_means_of_those_worked_by_hand():
    # rows true, columns predicted: [[4, 1, 0], [2, 3, 1], [0, 1, 5]]
    target = torch.tensor([0] * 5 + [1] * 6 + [2] * 6)
    said = torch.tensor([0, 0, 0, 0, 1, 0, 0, 1, 1, 1, 2, 1, 2, 2, 2, 2, 2])
    scores = classification_scores(torch.eye(3)[said], target)
    expected = {
        "accuracy": 12 / 17,
        "precision": (4 / 6 + 3 / 5 + 5 / 6) / 3,
        "specificity": (10 / 12 + 9 / 11 + 10 / 11) / 3,
        "sensitivity": (4 / 5 + 3 / 6 + 5 / 6) / 3,
        "f1": (8 / 11 + 6 / 11 + 10 / 12) / 3,
    }
    assert {name: scores[name] for name in expected} == pytest.approx(expected, abs=1e-12)


# MoP (arXiv 2503.12399), table 3: accuracy, precision and specificity in percent of 86 positive and 409 negative images; the counts of
# true positives and true negatives beside them are the only ones that fit all three to two digits
TABLE_3 = {
    "low-quality image": ((82.82, 50.35, 83.12), (70, 340)),
    "Restormer": ((85.25, 54.24, 82.88), (83, 339)),
    "Restormer + ResShift": ((90.90, 71.57, 93.39), (68, 382)),
    "P-former": ((86.06, 55.70, 83.86), (83, 343)),
    "P-diffusion": ((91.11, 76.24, 95.35), (61, 390)),
    "P-former + P-diffusion": ((91.91, 77.38, 95.35), (65, 390)),
    "high-quality image": ((95.15, 80.39, 95.11), (82, 389)),
}


@pytest.mark.parametrize("method", TABLE_3)
def test_definitions_are_those_of_the_paper_for_only_one_confusion_matrix_gives_its_figures(method):
    printed, counts = TABLE_3[method]
    named = ("accuracy", "precision", "specificity")

    def fits(tp, tn):
        figures = (100 * (tp + tn) / 495, 100 * tp / max(tp + 409 - tn, 1), 100 * tn / 409)
        return all(abs(figure - one) < 0.011 for figure, one in zip(figures, printed, strict=True))

    assert [(tp, tn) for tp in range(87) for tn in range(410) if fits(tp, tn)] == [counts]
    tp, tn = counts
    scores = classification_scores(sure([1] * tp + [0] * (86 - tp) + [1] * (409 - tn) + [0] * tn), torch.tensor([1] * 86 + [0] * 409))
    assert [100 * scores[name] for name in named] == pytest.approx(list(printed), abs=0.011)
    assert scores["sensitivity"] == pytest.approx(tp / 86)


@given(images=st.integers(4, 60), seed=st.integers(0, 999), levels=st.sampled_from([None, 4, 9]))
def test_the_area_is_mann_whitneys_share_of_pairs_in_order_with_ties_half(images, seed, levels):
    probabilities, target = drawn(images, seed=seed, levels=levels)
    positive, negative = (probabilities[target == side, 1].numpy() for side in (1, 0))
    expected = mannwhitneyu(positive, negative).statistic / (len(positive) * len(negative))
    assert classification_scores(probabilities, target)["auc"] == pytest.approx(expected, abs=1e-6)


@given(classes=st.integers(2, 4), images=st.integers(12, 60), seed=st.integers(0, 999))
def test_counting_by_weights_of_one_gives_what_torchmetrics_gives(classes, images, seed):
    probabilities, target = drawn(images, classes, seed=seed)
    once = classification._weighted(probabilities, target, 0.5)(torch.ones(1, images, dtype=torch.float64))
    plain = classification_scores(probabilities, target)
    assert {name: once[name].item() for name in METRICS} == pytest.approx(plain, abs=1e-6, nan_ok=True)
    if classes > 2 and all(not math.isnan(value) for value in plain.values()):
        for name, oracle in {"precision": "precision", "specificity": "specificity", "sensitivity": "recall", "f1": "f1_score"}.items():
            expected = getattr(reference, f"multiclass_{oracle}")(probabilities, target, num_classes=classes, average="macro")
            assert plain[name] == pytest.approx(float(expected), abs=1e-6)


@given(images=st.integers(4, 40), seed=st.integers(0, 99))
def test_an_image_drawn_twice_counts_as_two_images(images, seed):
    probabilities, target = drawn(images, seed=seed, levels=5)
    times = torch.randint(3, (images,), generator=torch.Generator().manual_seed(seed + 1))
    times[:2] = 1  # both classes stay
    repeated = classification_scores(probabilities.repeat_interleave(times, dim=0), target.repeat_interleave(times))
    weighted = classification._weighted(probabilities, target, 0.5)(times[None].double())
    assert {name: weighted[name].item() for name in METRICS} == pytest.approx(repeated, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("classes", [2, 3])
def test_a_perfect_classifier_has_one_everywhere_with_intervals_of_no_width(classes):
    target = torch.arange(30) % classes
    figures = classification_intervals(torch.eye(classes)[target] * 0.9 + 0.1 / classes, target, rules=FigureRules(draws=50))
    assert all(figure == pytest.approx((1, 1, 1)) for figure in figures.values())


@given(seed=st.integers(0, 999))
def test_the_order_of_the_images_does_not_matter(seed):
    probabilities, target = drawn(30, 3, seed=seed)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(seed))
    shuffled = classification_scores(probabilities[order], target[order])
    assert shuffled == pytest.approx(classification_scores(probabilities, target), nan_ok=True)


@given(seed=st.integers(0, 999))
def test_the_order_of_three_classes_does_not_matter(seed):
    probabilities, target = drawn(40, 3, seed=seed)
    order = torch.tensor([2, 0, 1])
    renamed = classification_scores(probabilities[:, order], order.argsort()[target])
    assert renamed == pytest.approx(classification_scores(probabilities, target), nan_ok=True)


@given(seed=st.integers(0, 999))
def test_naming_the_other_of_two_classes_positive_swaps_sensitivity_and_specificity_and_keeps_area_and_accuracy(seed):
    probabilities, target = drawn(40, seed=seed)
    one, other = classification_scores(probabilities, target), classification_scores(probabilities.flip(1), 1 - target)
    assert (one["sensitivity"], one["specificity"]) == pytest.approx((other["specificity"], other["sensitivity"]))
    assert (one["auc"], one["accuracy"]) == pytest.approx((other["auc"], other["accuracy"]))


def test_what_is_not_defined_is_nan_and_not_zero():
    nobody = classification_scores(sure([0, 0, 0]), torch.tensor([0, 1, 0]))
    assert math.isnan(nobody["precision"])
    assert (nobody["specificity"], nobody["sensitivity"]) == (1, 0)
    one_class = classification_scores(sure([0, 1, 0]), torch.tensor([0, 0, 0]))
    assert math.isnan(one_class["auc"])
    assert math.isnan(one_class["sensitivity"])


def test_a_lower_threshold_finds_more_and_even_odds_are_no_yes():
    probabilities, target = torch.tensor([[0.5, 0.5], [0.7, 0.3], [0.9, 0.1]]), torch.tensor([1, 1, 0])
    assert predicted(probabilities).tolist() == [0, 0, 0]
    assert classification_scores(probabilities, target)["sensitivity"] == 0
    assert classification_scores(probabilities, target, threshold=0.2)["sensitivity"] == 1
    assert predicted(probabilities, threshold=0.2).tolist() == [1, 1, 0]


@pytest.mark.parametrize("groups", [None, [index // 3 for index in range(31)]], ids=["images", "groups"])
def test_the_interval_of_accuracy_is_the_bootstrap_interval_of_the_mean_of_right_answers(groups, monkeypatch):
    probabilities, target = drawn(31, seed=3)
    expected = bootstrap_interval((predicted(probabilities) == target).double(), groups, draws=300, seed=5)
    for at_once in (1 << 22, 100):  # however many draws are in memory at a time
        monkeypatch.setattr(classification, "_AT_ONCE", at_once)
        found = classification_intervals(probabilities, target, groups, rules=FigureRules(draws=300, seed=5))["accuracy"]
        assert found == pytest.approx(expected, abs=1e-12)


def test_intervals_hold_their_figure_and_grow_where_images_come_in_groups():
    probabilities, target = drawn(200, seed=1)
    alone = classification_intervals(probabilities, target)
    # every image ten times over: as many images as before, a tenth of the patients
    some = torch.arange(20).repeat_interleave(10)
    grouped = classification_intervals(probabilities[some], target[some], some.tolist())
    for name in METRICS:
        assert alone[name].low <= alone[name].mean <= alone[name].high
        assert grouped[name].high - grouped[name].low > alone[name].high - alone[name].low


def test_a_version_compared_with_itself_differs_by_nothing_and_pairs_are_closer_than_their_intervals():
    probabilities, target = drawn(120, seed=2)
    same = classification_differences(probabilities, probabilities, target, rules=FigureRules(draws=200))
    assert all(figure == (0, 0, 0) for figure in same.values())
    worse = 0.9 * probabilities + 0.1 * drawn(120, seed=9)[0]
    paired = classification_differences(worse, probabilities, target)["auc"]
    first, second = (classification_intervals(one, target)["auc"] for one in (worse, probabilities))
    assert paired.mean == pytest.approx(first.mean - second.mean)
    assert paired.high - paired.low < min(first.high - first.low, second.high - second.low)


def test_bounds_are_unknown_with_one_group_and_where_draws_lack_a_class():
    probabilities, target = drawn(20, seed=4)
    alone = classification_intervals(probabilities, target, ["P1"] * 20)
    assert all(math.isnan(figure.low) and not math.isnan(figure.mean) for figure in alone.values())
    # one patient in three has all that is positive, so that three draws in ten lack it
    target = torch.tensor([0] * 10 + [1] * 10)
    lacking = classification_intervals(probabilities, target, ["A"] * 5 + ["B"] * 5 + ["C"] * 10)
    assert math.isnan(lacking["auc"].low)
    assert not math.isnan(lacking["accuracy"].low)


@pytest.mark.parametrize(
    ("probabilities", "target", "options", "expected"),
    [
        (torch.rand(3), torch.zeros(3), {}, "expected n k and n"),
        (torch.full((3, 2), 0.5), torch.zeros(4), {}, "do not fit"),
        (torch.zeros(0, 2), torch.zeros(0), {}, "one image or more"),
        (torch.full((3, 2), 1.5), torch.zeros(3), {}, "outside"),
        (torch.full((3, 2), math.nan), torch.zeros(3), {}, "NaN"),
        (torch.full((3, 2), 0.5), torch.full((3,), 2), {}, r"expected classes 0 \.\. 1"),
        (torch.full((3, 2), 0.5), torch.zeros(3), {"threshold": 1.0}, "must lie in"),
        (torch.full((3, 3), 0.3), torch.zeros(3), {"threshold": 0.2}, "likeliest"),
    ],
)
def test_what_does_not_fit_is_refused(probabilities, target, options, expected):
    with pytest.raises(ValueError, match=expected):
        classification_scores(probabilities, target, **options)


def test_groups_draws_and_partners_that_do_not_fit_are_refused():
    probabilities, target = drawn(6)
    with pytest.raises(ValueError, match="one group for each image"):
        classification_intervals(probabilities, target, ["a"])
    for options in ({"draws": 0}, {"level": 1.0}):
        with pytest.raises(ValueError, match="draws be at least 1"):
            classification_intervals(probabilities, target, rules=FigureRules(**options))
    with pytest.raises(ValueError, match="expected the same images"):
        classification_differences(probabilities, probabilities[:5], target)


# versions of images in folders, and a classifier that looks at how red an image is

RED = [0.1, 0.9, 0.3, 0.8]
CASES = [Case(f"{index}.png", index % 2, f"P{index}") for index in range(4)]


def redness(image):
    """The mean of the red channel as the probability of the second class."""
    red = image[:, 0].mean(dim=(1, 2))
    return torch.stack([1 - red, red], dim=1)


@pytest.fixture
def versions(tmp_path):
    """Two versions of four images; the second ones are all alike."""
    for name in ("clean", "gray"):
        (tmp_path / name).mkdir()
        for index, red in enumerate(RED):
            level = round(255 * (red if name == "clean" else 0.4))
            Image.fromarray(np.full((20 + index, 24, 3), level, np.uint8)).save(tmp_path / name / f"{index}.png")
    return {name: tmp_path / name for name in ("gray", "clean")}


def test_every_version_is_scored_on_the_same_images(versions):
    scored = score_versions(redness, CASES, versions)
    assert scored.cases == tuple(CASES)
    assert (scored.failures, scored.excluded) == ((), 0)
    assert scored.probabilities["clean"][:, 1].tolist() == pytest.approx(RED, abs=1e-2)
    result = compare(scored, Rules(classes=("no", "yes"), reference="clean", draws=50))
    assert result.scores["clean"]["auc"].mean == 1
    assert result.scores["gray"]["auc"].mean == 0.5
    assert result.differences["gray"]["auc"].mean == -0.5
    assert list(result.differences) == ["gray"]
    assert result.table()[0] == ["images", "AUC", "accuracy", "precision", "specificity", "sensitivity"]
    assert result.table()[2][1] == "100.00 [n/a]" or result.table()[2][1].startswith("100.00 [")
    assert result.table()[1][3] == "n/a", "nothing gray is called positive, so that precision is not defined"
    assert result.difference_table()[0][0] == "minus clean"
    with pytest.raises(ValueError, match="--reference sharp is no version"):
        compare(scored, Rules(classes=("no", "yes"), reference="sharp"))


def test_an_image_that_fails_in_one_version_is_left_out_of_all_and_the_others_are_done(versions):
    (versions["gray"] / "1.png").write_bytes((versions["gray"] / "1.png").read_bytes()[:60])
    (versions["clean"] / "2.png").unlink()
    (versions["gray"] / "2.png").unlink()
    heard, seen = [], []
    scored = score_versions(redness, CASES, versions, on_failure=heard.append, progress=lambda done, total: seen.append((done, total)))
    assert [case.file for case in scored.cases] == ["0.png", "3.png"]
    assert [len(rows) for rows in scored.probabilities.values()] == [2, 2]
    assert [(one.version, one.file) for one in heard] == [("gray", "1.png"), ("gray", "2.png"), ("clean", "2.png")]
    assert all(len(one.reason.splitlines()) == 1 and one.file in one.reason for one in heard)
    assert scored.excluded == 2
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_classifier_that_fails_on_an_image_or_gives_nan_fails_that_image_alone(versions):
    def moody(image):
        if image.shape[2] == 21:
            raise RuntimeError("kernel size\ncan't be greater")
        return redness(image) * (math.nan if image.shape[2] == 22 else 1)

    scored = score_versions(moody, CASES, versions)
    assert [case.file for case in scored.cases] == ["0.png", "3.png"]
    reasons = [failure.reason for failure in scored.failures]
    assert "1.png: unexpected RuntimeError: kernel size can't be greater" in reasons[0]
    assert "not finite" in reasons[2]


def test_no_image_left_and_no_folder_are_errors(versions, tmp_path):
    with pytest.raises(ImageFileError, match="none of 1 images"):
        score_versions(redness, [Case("gone.png", 0, "P")], versions)
    with pytest.raises(ValueError, match="gone: is no folder"):
        score_versions(redness, CASES, versions | {"far": tmp_path / "gone"})


def test_a_version_may_have_another_suffix_if_only_one_file_fits(tmp_path):
    for name in ("a.b.png", "c.tif", "d.png", "d.jpg"):
        (tmp_path / name).write_bytes(b"x")
    assert find_image(tmp_path, "a.b.jpg").name == "a.b.png"
    assert find_image(tmp_path, "a.b").name == "a.b.png"
    assert find_image(tmp_path, "c.tif").name == "c.tif"
    assert find_image(tmp_path, "d.png").name == "d.png"
    with pytest.raises(ImageFileError, match=r"could be any of d\.jpg, d\.png"):
        find_image(tmp_path, "d.bmp")
    with pytest.raises(ImageFileError, match="no such image"):
        find_image(tmp_path, "a.png")


def test_results_are_written_as_strict_json_and_a_table_that_reads_back(versions, tmp_path):
    names = ["0.png", 'a,"b"\n.png', "=1+1.png", "c\rd.png"]
    for folder in versions.values():
        for index, name in enumerate(names):
            (folder / f"{index}.png").rename(folder / name)
    cases = [Case(name, index % 2, f"P{index}") for index, name in enumerate(names)]
    result = compare(score_versions(redness, cases, versions), Rules(classes=("no", "yes"), reference="clean", draws=20))
    check_output(tmp_path / "out", overwrite=False)
    write_comparison(tmp_path / "out", result, {"model": "red"})

    def refuse(constant):
        raise AssertionError(constant)

    told = json.loads((tmp_path / "out" / "scores.json").read_text(), parse_constant=refuse)
    assert told["scores"]["gray"]["precision"] == {"value": None, "low": None, "high": None}
    assert (told["images"], told["groups"], told["positive"], told["model"]) == ({"no": 2, "yes": 2}, 4, "yes", "red")
    rows = list(csv.DictReader(io.StringIO(probabilities_csv(result), newline="")))
    assert [row["file"] for row in rows[::2]] == names
    assert [row["version"] for row in rows[:2]] == ["gray", "clean"]
    assert all(float(row["p_no"]) + float(row["p_yes"]) == pytest.approx(1) for row in rows)
    with pytest.raises(ValueError, match="--overwrite replaces it"):
        check_output(tmp_path / "out", overwrite=False)
    check_output(tmp_path / "out", overwrite=True)
    with pytest.raises(ValueError, match="is a file"):
        check_output(tmp_path / "out" / "scores.json", overwrite=True)
