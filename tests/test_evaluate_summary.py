"""What rows come to: means over slides, claims and their limits, curves, agreement, risk, tables."""

import csv
import json
import math

import numpy as np
import pytest
import torch
from scipy.stats import wilcoxon

from pathorestore.evaluation.measures import AGREEING, Features
from pathorestore.evaluation.methods import CLEAN
from pathorestore.evaluation.results import Column, ScoreRow
from pathorestore.evaluation.summarise import Question, summarise
from pathorestore.evaluation.tables import markdown, terminal_text, write_tables
from pathorestore.metrics.statistics import bootstrap_interval, paired_interval

HIGHER, LOWER = Column(key="up", label="Up", unit="dB"), Column(key="down", label="Down", better="lower")


def made_up(seed=0, images=24, slides=12):
    """Rows of three methods; `good` is better than `base` everywhere, `same` equals it."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(images):
        base = rng.normal(20, 2)
        for method, up, down in (("base", base, 5.0), ("same", base, 5.0), ("good", base + rng.uniform(0.5, 1.5), rng.uniform(3, 4.5))):
            z = (0.8, 2.4)[number % 2]
            one = {"up": up, "down": down}
            rows.append(ScoreRow(case=f"c{number}", method=method, image=f"i{number}", slide=f"s{number % slides}", z_um=z, scores=one))
    return rows


def question(**changes):
    return Question(**{"title": "t", "methods": ("base", "same", "good"), "reference": "good", "columns": (HIGHER, LOWER)} | changes)


def test_means_and_intervals_are_those_of_the_bootstrap_over_slides():
    rows = made_up()
    summary = summarise(rows, question())
    values = [row.scores["up"] for row in rows if row.method == "good"]
    others = [row.scores["up"] for row in rows if row.method == "base"]
    groups = [row.slide for row in rows if row.method == "good"]
    score = next(score for score in summary.scores if (score.column, score.method) == ("up", "good"))
    assert score.interval == pytest.approx(bootstrap_interval(values, groups, draws=10_000))
    assert score.gain == pytest.approx(paired_interval(values, others, groups, draws=10_000))
    assert (summary.unit, summary.groups, summary.cases) == ("slide", 12, 24)


def test_a_method_that_is_better_everywhere_is_called_so_and_an_equal_one_is_not():
    summary = summarise(made_up(), question())
    claims = {(one.column, one.other): one for one in summary.comparisons}
    assert all(one.verdict == "better" and one.wins == one.images == 24 for one in claims.values())
    behind = summarise(made_up(), question(reference="base"))
    told = {(one.column, one.other): (one.verdict, one.reason) for one in behind.comparisons}
    assert told["up", "good"] == told["down", "good"] == ("worse", "")
    assert told["up", "same"] == ("", "no pair differs")


def test_p_values_are_wilcoxons_over_slide_means_and_holm_multiplies_them_up():
    rows = made_up(images=40, slides=20)
    summary = summarise(rows, question(columns=(HIGHER,)))
    of = {method: np.array([row.scores["up"] for row in rows if row.method == method]) for method in ("base", "good")}
    means = {method: values.reshape(2, 20).mean(axis=0) for method, values in of.items()}
    (first, second) = summary.comparisons
    assert first.p == pytest.approx(wilcoxon(means["good"] - means["base"]).pvalue)
    assert (first.n, first.unit) == (20, "slide")
    assert first.p_holm == pytest.approx(2 * first.p) == pytest.approx(second.p_holm)


def test_one_image_at_many_distances_is_one_image_to_a_test():
    rows = [
        ScoreRow(case=f"{image} at {z}", method=method, image=image, z_um=float(z), scores={"up": 20.0 + z + (method == "good")})
        for image in "abc"
        for z in range(8)
        for method in ("base", "good")
    ]
    (one,) = summarise(rows, question(methods=("base", "good"), columns=(HIGHER,))).comparisons
    assert (one.n, one.unit, one.images, one.wins, one.verdict) == (3, "image", 3, 3, "")
    assert "fewer than 10" in one.reason


def test_nothing_is_claimed_where_slides_and_images_disagree():
    rows = []
    for slide in range(30):
        for image in range(200 if slide == 0 else 1):
            for method in ("base", "good"):
                gain = (-2.0 if slide == 0 else 1.0) * (method == "good")
                rows.append(ScoreRow(case=f"{slide} {image}", method=method, slide=f"s{slide}", scores={"up": 20 + gain}))
    (one,) = summarise(rows, question(methods=("base", "good"), columns=(HIGHER,))).comparisons
    assert one.difference.mean < 0
    assert one.p_holm < 0.01
    assert (one.verdict, one.reason) == ("", "the mean over groups and the mean over cases point different ways")


def test_perfect_images_are_counted_beside_the_mean():
    rows = [ScoreRow(case=str(n), method="m", image=str(n), scores={"up": math.inf if n < 2 else 20.0}) for n in range(6)]
    (score,) = summarise(rows, question(methods=("m",), reference="m", columns=(HIGHER,))).scores
    assert (score.interval.mean, score.images, score.perfect, score.without) == (20, 6, 2, 0)
    (all_of_them,) = summarise(rows[:2], question(methods=("m",), reference="m", columns=(HIGHER,))).scores
    assert all_of_them.interval.mean == math.inf


def test_images_of_one_patient_make_no_claim_however_many_they_are():
    rows = [ScoreRow(**vars(row) | {"patient": "P1"}) for row in made_up(images=40)]
    summary = summarise(rows, question())
    assert (summary.unit, summary.groups) == ("patient", 1)
    assert {one.verdict for one in summary.comparisons} == {""}
    assert {one.reason for one in summary.comparisons if one.other == "base"} == {"images of 1 patient are not independent; claims take 10"}


def test_where_no_claim_is_possible_the_report_says_so():
    columns = tuple(Column(key=f"up{n}", label=f"Up {n}") for n in range(30))
    rows = [ScoreRow(**vars(row) | {"scores": {one.key: row.scores["up"] for one in columns}}) for row in made_up(images=12)]
    summary = summarise(rows, question(methods=("base", "good"), columns=columns))
    assert {one.verdict for one in summary.comparisons} == {""}
    assert "12 pairs in 30 tests can reach an adjusted p of 0.015 at best" in summary.comparisons[0].reason
    assert "nothing is claimed: 12 pairs in 30 tests" in terminal_text(summary)


def test_few_pairs_allow_no_claim():
    summary = summarise(made_up(images=8, slides=4), question())
    assert {one.verdict for one in summary.comparisons} == {""}
    assert all("fewer than 10" in one.reason and math.isnan(one.p_holm) for one in summary.comparisons)


def test_columns_that_judge_nothing_are_not_tested():
    described = Column(key="up", label="Up", better="none")
    assert summarise(made_up(), question(columns=(described,))).comparisons == ()


def test_parts_of_other_columns_are_told_and_not_tested():
    part = Column(key="down", label="Down", better="lower", detail=True)
    summary = summarise(made_up(), question(columns=(HIGHER, part)))
    assert {one.column for one in summary.comparisons} == {"up"}
    assert {score.column for score in summary.scores} == {"up", "down"}


def test_images_of_one_field_count_as_one_where_nothing_else_is_known():
    rows = [ScoreRow(case=f"c{n}", method="m", image=f"i{n // 4}", scores={"up": float(n)}) for n in range(40)]
    summary = summarise(rows, question(methods=("m",), reference="m", columns=(HIGHER,)))
    assert (summary.unit, summary.groups, summary.cases) == ("image", 10, 40)
    with pytest.raises(ValueError, match="--group slide: not every image has a slide"):
        summarise(rows, question(methods=("m",), reference="m", grouping="slide"))


def test_missing_numbers_are_left_out_and_counted_and_failures_are_listed():
    rows = made_up()
    rows[2] = ScoreRow(case="c0", method="good", slide="s0", z_um=0.8, error="no such file")
    rows[5] = ScoreRow(case="c1", method="good", slide="s1", z_um=2.4, scores={"up": math.nan, "down": 3.0}, notes={"m": "too small"})
    summary = summarise(rows, question())
    score = next(score for score in summary.scores if (score.column, score.method) == ("up", "good"))
    assert (score.images, score.without) == (22, 2)
    assert "(base 24, same 24, good 23 of 24)" in summary.notes[0]
    assert summary.failures == (("c0", "good", "no such file"),)
    assert summary.left_out == {"m, in 1 of 71 rows": "too small"}
    assert next(one for one in summary.comparisons if (one.column, one.other) == ("up", "base")).images == 22


def test_scores_over_defocus_are_means_at_each_distance():
    rows = made_up()
    summary = summarise(rows, question())
    for one in summary.bins:
        values = [row.scores[one.column] for row in rows if row.method == one.method and row.z_um == one.low]
        assert one.low == one.high
        assert one.interval.mean == pytest.approx(np.mean(values))
    assert len(summary.bins) == 2 * 3 * 2


def test_a_constant_gain_is_found_at_every_distance_with_an_interval_of_no_width():
    base = [row for row in made_up() if row.method == "base"]
    rows = [*base, *(ScoreRow(**vars(row) | {"method": "more", "scores": {"up": row.scores["up"] + 1.25}}) for row in base)]
    summary = summarise(rows, question(methods=("base", "more"), reference="more", columns=(HIGHER,)))
    assert [one.gain for one in summary.bins if one.method == "more"] == [pytest.approx((1.25,) * 3)] * 2
    assert all(math.isnan(one.gain.mean) for one in summary.bins if one.method == "base")


def test_gains_are_of_images_that_both_have_and_two_perfect_ones_differ_by_nothing():
    def row(case, method, value, z=1.5):
        return ScoreRow(case=case, method=method, z_um=z, scores={"up": value})

    first = [row("a", "m", 20.0, -1.5), row("b", "m", math.nan), row("d", "m", math.inf), row("e", "m", 3.0), row("f", "m", 1.0)]
    second = [row("a", "n", 26.0, -1.5), row("b", "n", 30.0), row("d", "n", math.inf), row("f", "n", math.inf)]
    summary = summarise([*first, *second], question(methods=("m", "n"), reference="n", columns=(HIGHER,)))
    (at_place,) = [one for one in summary.bins if one.method == "n"]
    assert at_place.gain.mean == summary.comparisons[0].difference.mean == 3.0  # a: 6, d: 0; f has no mean
    assert summary.comparisons[0].wins == 2


def test_many_distances_are_put_in_bins_that_hold_every_image_once():
    distances = np.linspace(-7, 7, 61)
    rows = [ScoreRow(case=str(z), method="m", image=str(z), z_um=float(z), scores={"up": abs(z)}) for z in distances]
    summary = summarise(rows, question(methods=("m",), reference="m", columns=(HIGHER,)))
    assert sum(one.images for one in summary.bins) == 61
    assert all(one.low <= one.interval.mean < one.high for one in summary.bins)


def test_agreement_is_that_of_the_same_images():
    (count, _) = AGREEING
    rows = [ScoreRow(case=str(n), method="m", scores={count.column: 10.0 + n + (-1) ** n, count.clean_column: 10.0 + n}) for n in range(20)]
    (found,) = summarise(rows, question(methods=("m",), reference="m", columns=(), agreeing=(count,))).agreements
    assert found.bias == pytest.approx(0, abs=1e-12)
    assert found.upper == pytest.approx(1.96 * math.sqrt(20 / 19))
    assert len(found.points) == 20


def test_a_risk_that_knows_the_error_has_the_oracles_curve():
    errors = np.random.default_rng(0).exponential(size=200)
    points = {f"c{number}": torch.tensor(part)[:, None].expand(-1, 2).flatten() for number, part in enumerate(errors.reshape(4, 50))}
    rows = [ScoreRow(case=case, method="m") for case in points]
    (curve,) = summarise(rows, question(methods=("m",), reference="m", columns=()), lambda kind, _: points if kind == "risk" else {}).risk
    assert curve.error == pytest.approx(curve.oracle)
    assert (curve.spearman, curve.images) == (pytest.approx(1), 4)
    assert curve.mean_error == pytest.approx(errors.mean()) == pytest.approx(curve.error[-1])


def test_images_equal_to_the_clean_ones_have_no_distance_as_a_set():
    rng = np.random.default_rng(0)
    features = Features(name="f", label="Frechet", of=torch.flatten)
    vectors = {f"c{number}": torch.tensor(rng.normal(size=4)) for number in range(12)}
    shifted = {case: vector + 1 for case, vector in vectors.items()}
    arrays = {CLEAN: vectors, "m": vectors, "far": shifted}
    rows = [ScoreRow(case=case, method="m", image=case) for case in vectors]
    asked = question(methods=("m", "far"), reference="m", columns=(), features=features)
    summary = summarise(rows, asked, lambda kind, name: arrays[name] if kind == "features" else {})
    ((label, method, value, note), (_, _, apart, _)) = summary.set_scores
    assert (label, method, note) == ("Frechet", "m", "12 cases of 12 images, indicative: fewer than 2048")
    assert value == pytest.approx(0, abs=1e-6)
    assert apart == pytest.approx(4, abs=1e-6)


def test_a_reference_that_is_no_method_is_refused():
    with pytest.raises(ValueError, match="--reference 'x' is none of the methods base, same, good"):
        summarise(made_up(), question(reference="x"))


def test_tables_hold_every_row_and_are_read_by_others(tmp_path):
    pyarrow = pytest.importorskip("pyarrow.parquet")
    rows = [*made_up(), ScoreRow(case='=1+1,"\n<b>|', method="base", error="bad\nfile", image="\udcff")]
    summary = summarise(rows, question(grouping="image"))
    files, notes = write_tables(tmp_path, rows, summary)
    assert ([file.name for file in files], notes) == (["scores.csv", "summary.json", "tables.md", "scores.parquet"], ())
    with (tmp_path / "scores.csv").open(newline="", encoding="utf-8") as stream:
        table = list(csv.DictReader(stream))
    assert [float(row["up"]) for row in table[:-1]] == [row.scores["up"] for row in made_up()]
    assert (table[-1]["case"], table[-1]["error"], table[-1]["up"]) == ('=1+1,"\n<b>|', "bad\nfile", "")
    columns = pyarrow.read_table(tmp_path / "scores.parquet").to_pydict()
    assert columns["up"] == [*(row.scores["up"] for row in made_up()), None]
    plain = json.loads((tmp_path / "summary.json").read_text())
    assert plain["scores"][0]["interval"]["mean"] == summary.scores[0].interval.mean
    assert plain["scores"][0]["gain"]["mean"] is None


def test_text_names_what_is_claimed_and_escapes_what_users_named():
    rows = [ScoreRow(**vars(row) | {"method": "a|<b>" if row.method == "base" else row.method}) for row in made_up()]
    summary = summarise(rows, question(methods=("a|<b>", "same", "good")))
    text = terminal_text(summary)
    assert "good is better than same in Up; Down (Wilcoxon, Holm-adjusted p < 0.01)" in text
    page = markdown(summary)
    assert "<b>" not in page
    assert "a\\|&lt;b>" in page
    grid = [line for line in page.splitlines() if line.startswith("| 0.8 um")]
    assert len(grid) == 2
    assert all(len(line.replace("\\|", "").split("|")) == 6 for line in grid)
