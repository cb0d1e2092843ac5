"""Prompted models judged task by task: examples, what they are asked, instances and their verdicts, protocols."""

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from tissue_files import save, tissue

from pathorestore._torchvision import ensure_torchvision

ensure_torchvision()
pytest.importorskip("diffusers")

from histo_samples import awake_lpfm  # noqa: E402

from pathorestore.cli import _parser, main  # noqa: E402
from pathorestore.cli_evaluate import with_protocols  # noqa: E402
from pathorestore.data.task_prompts import TaskSpec  # noqa: E402
from pathorestore.data.tasks import builtin_tasks  # noqa: E402
from pathorestore.degradations.stain import synthetic_stain  # noqa: E402
from pathorestore.evaluation.case_files import files_of_folder  # noqa: E402
from pathorestore.evaluation.measures import Features  # noqa: E402
from pathorestore.evaluation.report import report_html  # noqa: E402
from pathorestore.evaluation.results import Column, ScoreRow  # noqa: E402
from pathorestore.evaluation.summarise import Question, summarise  # noqa: E402
from pathorestore.evaluation.tables import markdown, terminal_text  # noqa: E402
from pathorestore.evaluation.task_cases import Prompted, TaskExamples, asked_tasks  # noqa: E402
from pathorestore.metrics.comparison import holm  # noqa: E402

UP, DOWN = Column(key="up", label="Up", unit="dB"), Column(key="down", label="Down", better="lower")
SHIFTS = {"denoise": {"given": 0.0, "other": 1.0, "mine": 2.0}, "sr": {"given": 3.0, "other": 1.0, "mine": 2.0}}


def made_rows(images=20, slides=0, seed=0):
    """Mine is best at denoising; at enlarging what was given is better."""
    rng, rows = np.random.default_rng(seed), []
    for task, shifts in SHIFTS.items():
        for number in range(images):
            base = rng.normal(20, 1)
            for method, shift in shifts.items():
                up = base + shift + rng.normal(0, 0.2)
                slide = f"s{number % slides}" if slides else ""
                rows.append(
                    ScoreRow(
                        case=f"i{number}: {task}",
                        method=method,
                        image=f"i{number}",
                        slide=slide,
                        task=task,
                        scores={"up": up, "down": 100 - up},
                    )
                )
    return rows


def question(**changes):
    return Question(**{"title": "t", "methods": ("given", "other", "mine"), "reference": "mine", "columns": (UP, DOWN)} | changes)


def values(rows, task, method, column="up"):
    return np.array([row.scores[column] for row in rows if (row.task, row.method) == (task, method)])


def test_each_instance_is_against_the_best_other_method_of_its_task():
    rows = made_rows()
    told = {(one.task, one.column): one for one in summarise(rows, question()).instances}
    assert told.keys() == {(task, column) for task in SHIFTS for column in ("up", "down")}
    assert {key: (one.best, one.outcome) for key, one in told.items()} == {
        ("denoise", "up"): ("other", "win"),
        ("denoise", "down"): ("other", "win"),
        ("sr", "up"): ("given", "loss"),
        ("sr", "down"): ("given", "loss"),
    }
    tests = [stats.wilcoxon(values(rows, task, "mine", c), values(rows, task, one.best, c)).pvalue for (task, c), one in told.items()]
    assert [one.p for one in told.values()] == pytest.approx(tests)
    assert [one.p_holm for one in told.values()] == pytest.approx(holm(tests))
    one, mine, best = told["denoise", "up"], values(rows, "denoise", "mine"), values(rows, "denoise", "other")
    assert one.relative_gain == pytest.approx((mine.mean() - best.mean()) / best.mean())
    assert one.median_difference == pytest.approx(np.median(mine - best))
    low, high = stats.t.interval(0.95, len(mine) - 1, mine.mean(), stats.sem(mine))
    assert one.mean == pytest.approx((mine.mean(), low, high))
    assert told["denoise", "down"].relative_gain > 0


def test_images_of_ten_slides_are_averaged_over_them_and_fewer_are_not():
    rows = made_rows(images=24, slides=12)
    one = summarise(rows, question()).instances[0]
    assert (one.n, one.unit) == (12, "slide")
    by_slide = [values(rows, "denoise", method).reshape(2, 12).mean(0) for method in ("mine", "other")]
    assert one.p == pytest.approx(stats.wilcoxon(*by_slide).pvalue)
    low, high = stats.t.interval(0.95, 11, by_slide[0].mean(), stats.sem(by_slide[0]))
    assert one.mean == pytest.approx((by_slide[0].mean(), low, high))
    few = summarise(made_rows(images=24, slides=4), question())
    assert (few.instances[0].n, few.instances[0].unit) == (24, "image")
    # of few slides nothing is claimed, here as in the comparisons of the whole report
    assert {one.outcome for one in few.instances} == {""}
    assert {one.reason for one in few.instances} == {one.reason for one in few.comparisons}


def test_few_images_claim_nothing_and_equal_methods_neither():
    few = summarise(made_rows(images=8), question()).instances
    assert {one.outcome for one in few} == {""}
    assert all("10" in one.reason for one in few)
    rows = [row for row in made_rows() if row.method == "given"]
    twins = [ScoreRow(**(vars(row) | {"method": "mine"})) for row in rows]
    assert {one.outcome for one in summarise([*rows, *twins], question(methods=("given", "mine"))).instances} == {""}


def altered(rows, method, image, **scores):
    return [
        ScoreRow(**(vars(row) | {"scores": row.scores | scores})) if (row.method, row.image) == (method, image) else row for row in rows
    ]


def test_one_perfect_image_makes_no_method_the_best():
    """What is given may equal what is wanted, as of blank glass."""
    one = summarise(altered(made_rows(), "given", "i3", up=math.inf), question()).instances[0]
    assert (one.task, one.best, one.outcome, one.n) == ("denoise", "other", "win", 20)
    alone = summarise(altered(made_rows(), "given", "i3", up=math.inf), question(methods=("given", "mine"))).instances[0]
    assert (alone.outcome, alone.n) == ("win", 19)


def test_a_method_that_is_known_of_few_images_is_not_the_best_there():
    rows = made_rows()
    for number in range(1, 20):
        rows = altered(rows, "other", f"i{number}", up=math.nan)
    one = summarise(altered(rows, "other", "i0", up=99.0), question()).instances[0]
    assert (one.best, one.n, one.outcome) == ("given", 20, "win")


def test_a_mean_that_one_image_makes_is_no_win():
    rows = [row for row in made_rows() if row.task == "sr"]
    one = summarise(altered(rows, "mine", "i0", up=500.0), question(methods=("given", "mine"))).instances[0]
    assert one.mean.mean > one.best_mean.mean
    assert one.median_difference < 0
    assert one.p_holm < 0.01
    assert (one.outcome, one.reason) == ("", "the mean and the median of the differences point different ways: a few images make the mean")


def test_each_task_has_targets_of_its_own_in_distances_of_sets():
    torch.manual_seed(0)
    features = {task: torch.randn(20, 4) + shift for task, shift in (("denoise", 0.0), ("sr", 9.0))}
    arrays = {"features": {f"i{number}: {task}": vectors[number] for task, vectors in features.items() for number in range(20)}}
    rows = [row for row in made_rows() if row.method == "mine"]
    asked = question(methods=("mine",), reference="mine", features=Features(name="f", label="F", of=None))
    ((_, _, distance, note),) = summarise(rows, asked, lambda kind, _: arrays.get(kind, {})).set_scores
    assert distance == pytest.approx(0, abs=1e-3)
    assert "40 cases of 40 images" in note


def test_without_tasks_there_are_no_instances():
    rows = [ScoreRow(**(vars(row) | {"task": ""})) for row in made_rows()]
    assert summarise(rows, question()).instances == ()


def test_tables_count_wins_and_escape_names():
    hostile = "<b>|x"
    rows = [ScoreRow(**(vars(row) | {"method": hostile if row.method == "given" else row.method})) for row in made_rows()]
    summary = summarise(rows, question(methods=(hostile, "other", "mine")))
    sentence = "mine beats the best other method in 2 of 4 instances of a task and a metric, and loses in 2"
    assert sentence in terminal_text(summary)
    table = markdown(summary)
    assert sentence in table
    assert "<b>" not in table
    page = report_html(summary, rows, [])
    assert sentence in page
    assert hostile not in page
    assert page.count("\u25b2 win") == page.count("\u25bc loss") == 2


@pytest.fixture
def clean(tmp_path):
    for seed in range(3):
        save(tmp_path / "clean" / f"t{seed}.png", tissue(seed, 70, 64))
    return tmp_path / "clean"


def test_examples_are_what_tasks_want_and_the_same_every_time(clean):
    files = files_of_folder(clean, None, None)
    cases = TaskExamples(files, tasks=asked_tasks(["denoise", "stain_pas"]), crop_px=48)
    assert [key.name for key in cases.keys] == [f"t{n}.png: {task}" for n in range(3) for task in ("denoise", "stain_pas")]
    noisy, stained = (cases.load(key) for key in cases.keys[:2])
    assert noisy.clean.shape == (1, 3, 48, 48)
    assert torch.equal(stained.degraded, noisy.clean)
    assert torch.equal(stained.clean, synthetic_stain(stained.degraded, "pas"))
    assert (noisy.degraded - noisy.clean).std() > 0.01
    assert torch.equal(cases.load(cases.keys[0]).degraded, noisy.degraded)
    fewer = TaskExamples(files[:1], tasks=asked_tasks(["denoise"]), crop_px=48)
    assert torch.equal(fewer.load(fewer.keys[0]).degraded, noisy.degraded)
    other = TaskExamples(files, tasks=asked_tasks(["denoise"]), crop_px=48, seed=1)
    assert not torch.equal(other.load(other.keys[0]).degraded, noisy.degraded)


def test_all_tasks_are_those_that_make_examples_and_others_are_refused():
    assert [task.name for task in asked_tasks(["all"])] == [task.name for task in builtin_tasks() if task.example]
    with pytest.raises(ValueError, match="--task stain_af: makes no examples of sharp images"):
        asked_tasks(["stain_af"])
    with pytest.raises(ValueError, match="no task 'sharpen'"):
        asked_tasks(["sharpen"])
    for names in (["denoise", "denoise"], ["all", "denoise"]):
        with pytest.raises(ValueError, match="name each task once, or all of them by all"):
            asked_tasks(names)


def test_a_model_is_told_the_task_its_first_stage_alone_or_nothing(clean):
    model = awake_lpfm()
    cases = TaskExamples(files_of_folder(clean, None, None), tasks=asked_tasks(["deblur"]), crop_px=32)
    case = cases.load(cases.keys[0])
    assert torch.equal(Prompted("a", model)(case), model(case.degraded, task="deblur", scale=1.0))
    assert torch.equal(Prompted("a", model, way="coarse")(case), model(case.degraded, task="deblur", scale=1.0, coarse_only=True))
    silent = Prompted("a", model, way="unprompted")(case)
    assert torch.equal(silent, model(case.degraded, TaskSpec(task=None, text=""), scale=1.0))
    assert not torch.equal(silent, Prompted("a", model)(case))


def test_enlarging_names_the_factor_that_the_image_was_reduced_by(clean):
    model = awake_lpfm()
    cases = TaskExamples(files_of_folder(clean, None, None), tasks=asked_tasks(["sr"]), crop_px=32)
    case = cases.load(cases.keys[0])
    assert case.shrunk > 1
    words = f"enlarge the H&E image {round(case.shrunk, 1):g} times"
    assert torch.equal(Prompted("a", model, way="coarse")(case), model(case.degraded, words, scale=1.0, coarse_only=True))


def test_a_protocol_judges_from_the_command_line(clean, tmp_path, capsys):
    awake_lpfm().save_pretrained(tmp_path / "model")
    (tmp_path / "mine.yaml").write_text(
        f"task: [denoise, stain_pas]\ncrop: 32\nmetrics: [psnr]\npictures: 1\nmodel: [lpfm={tmp_path / 'model'}]\nreference: lpfm\n"
    )
    words = ["--clean", str(clean), "-o", str(tmp_path / "out"), "--coarse", f"first={tmp_path / 'model'}", "--json", "--seed", "3"]
    words += ["--baseline", "degraded", "unsharp"]
    assert main(["evaluate", "--config", str(tmp_path / "mine.yaml"), *words]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["methods"] == ["given", "unsharp mask", "first", "lpfm"]
    assert any("denoise: " in note and "stain_pas: " in note for note in summary["notes"]), "the mask was tuned for each task"
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [(one["task"], one["column"]) for one in lines] == [("denoise", "psnr_db"), ("stain_pas", "psnr_db")]
    assert lines == summary["instances"]
    assert "virtually stained" in (tmp_path / "out" / "report.html").read_text().lower()
    assert "task" in (tmp_path / "out" / "scores.csv").read_text().splitlines()[0].split(",")


def test_a_protocol_stands_for_its_options_and_all_others_count_over_them(tmp_path):
    (tmp_path / "p.yaml").write_text("task: [a, b]\nmodel: [x=1, y=2]\nrisk: true\njson: false\nlimit: null\nreduce: []\ntitle: '-x'\n")
    options = ["--task", "a", "b", "--model=x=1", "--model=y=2", "--risk", "--title=-x"]
    assert with_protocols(["evaluate", "-o", "q", "--config", str(tmp_path / "p.yaml")]) == ["evaluate", *options, "-o", "q"]
    assert with_protocols(["evaluate", f"--config={tmp_path / 'p.yaml'}"]) == ["evaluate", *options]
    assert "--crop=128" in with_protocols(["evaluate", "--config", "lpfm"])
    (tmp_path / "p.yaml").write_text("crop: 9\nmetrics: [psnr]\n")
    words = with_protocols(["evaluate", "--crop", "64", "--config", str(tmp_path / "p.yaml"), "--clean", "x", "-o", "y"])
    assert _parser().parse_args(words)["evaluate"].crop == 64


@pytest.mark.parametrize(
    ("text", "said"),
    [("[1, 2]", "expected options"), ("a: [", "is not YAML"), ("config: x", "expected options"), ("nonsense: 3", "nonsense")],
)
def test_files_that_are_no_protocol_are_refused(tmp_path, capsys, text, said):
    (tmp_path / "p.yaml").write_text(text)
    assert main(["evaluate", "--config", str(tmp_path / "p.yaml"), "--clean", "x", "-o", "y"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config", "nothing"], "neither a file nor a protocol of the package: lpfm"),
        (["--task", "denoise", "--reduce", "2"], "--simulate, --reduce and --task degrade in different ways"),
        (["--unprompted", "a=b"], "--unprompted belongs to --task"),
        (["--task", "denoise", "--risk", "--model", "a=b"], "--task for prompted models"),
        (["--task", "denoise", "--model", "a=iste-tiny"], "does not take prompts; expected one of LPFM"),
        (["--task", "denoise", "--coarse", "a=MODEL", "--steps", "3"], "none is named with --model or --unprompted"),
        (["--task", "denoise", "denoise"], "name each task once"),
        (["--task", "denoise", "--tile", "128"], "are for restorers; leave them out with --task"),
        (["--task", "denoise", "--precision", "fp32"], "are for restorers; leave them out with --task"),
    ],
)
def test_wishes_that_do_not_fit_are_refused(clean, tmp_path, capsys, words, said):
    assert main(["evaluate", "--clean", str(clean), "-o", str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err
