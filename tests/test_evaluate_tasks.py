"""Prompted models judged task by task: examples, what they are asked, instances and their verdicts, protocols."""

import json

import numpy as np
import pytest
import torch
from scipy import stats
from tissue_files import save, tissue

from pathorestore._torchvision import ensure_torchvision

ensure_torchvision()
pytest.importorskip("diffusers")

from histo_samples import awake_lpfm  # noqa: E402

from pathorestore.cli import main  # noqa: E402
from pathorestore.cli_evaluate import with_protocols  # noqa: E402
from pathorestore.data.tasks import builtin_tasks  # noqa: E402
from pathorestore.degradations.stain import synthetic_stain  # noqa: E402
from pathorestore.evaluation.case_files import files_of_folder  # noqa: E402
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
    few = summarise(made_rows(images=24, slides=4), question()).instances[0]
    assert (few.n, few.unit) == (24, "image")


def test_few_images_claim_nothing_and_equal_methods_neither():
    few = summarise(made_rows(images=8), question()).instances
    assert {one.outcome for one in few} == {""}
    assert all("10" in one.reason for one in few)
    rows = [row for row in made_rows() if row.method == "given"]
    twins = [ScoreRow(**(vars(row) | {"method": "mine"})) for row in rows]
    assert {one.outcome for one in summarise([*rows, *twins], question(methods=("given", "mine"))).instances} == {""}


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


def test_a_model_is_told_the_task_its_first_stage_alone_or_nothing(clean):
    model = awake_lpfm()
    cases = TaskExamples(files_of_folder(clean, None, None), tasks=asked_tasks(["deblur"]), crop_px=32)
    case = cases.load(cases.keys[0])
    assert torch.equal(Prompted("a", model)(case), model(case.degraded, task="deblur", scale=1.0))
    assert torch.equal(Prompted("a", model, way="coarse")(case), model(case.degraded, task="deblur", scale=1.0, coarse_only=True))
    silent = Prompted("a", model, way="unprompted")(case)
    assert not torch.equal(silent, Prompted("a", model)(case))
    impression = model.impression(case.degraded)
    empty = model.fusion(model.text([""]), impression).vector
    assert torch.equal(model.text([""]).pooled, empty[:, : model.fusion.config.text_dim])


def test_a_protocol_judges_from_the_command_line(clean, tmp_path, capsys):
    awake_lpfm().save_pretrained(tmp_path / "model")
    (tmp_path / "mine.yaml").write_text(
        f"task: [denoise, stain_pas]\ncrop: 32\nmetrics: [psnr]\npictures: 1\nmodel: [lpfm={tmp_path / 'model'}]\nreference: lpfm\n"
    )
    words = ["--clean", str(clean), "-o", str(tmp_path / "out"), "--coarse", f"first={tmp_path / 'model'}", "--json", "--seed", "3"]
    assert main(["evaluate", "--config", str(tmp_path / "mine.yaml"), *words]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert summary["methods"] == ["given", "first", "lpfm"]
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [(one["task"], one["column"]) for one in lines] == [("denoise", "psnr_db"), ("stain_pas", "psnr_db")]
    assert lines == summary["instances"]
    assert "virtually stained" in (tmp_path / "out" / "report.html").read_text().lower()
    assert "task" in (tmp_path / "out" / "scores.csv").read_text().splitlines()[0].split(",")


def test_a_protocol_stands_for_its_options(tmp_path):
    (tmp_path / "p.yaml").write_text("task: [a, b]\nmodel: [x=1, y=2]\nrisk: true\ncrop: 9\n")
    options = ["--task", "a", "b", "--model", "x=1", "--model", "y=2", "--risk", "--crop", "9"]
    assert with_protocols(["evaluate", "--config", str(tmp_path / "p.yaml"), "-o", "q"]) == ["evaluate", *options, "-o", "q"]
    assert with_protocols(["evaluate", f"--config={tmp_path / 'p.yaml'}"]) == ["evaluate", *options]
    named = with_protocols(["evaluate", "--config", "lpfm"])
    assert "--unprompted" in named
    assert "no prompt=default" in named


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
        (["--task", "denoise", "--model", "a=iste-tiny"], "expected a LPFM"),
    ],
)
def test_wishes_that_do_not_fit_are_refused(clean, tmp_path, capsys, words, said):
    assert main(["evaluate", "--clean", str(clean), "-o", str(tmp_path / "out"), *words]) == 2
    assert said in capsys.readouterr().err
