"""`pathorestore fit --config classifier_tiny`, `export` and `classify` as a user meets them: labels in, figures of every version out."""

import csv
import json
import subprocess
import sys
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from pathorestore import cli
from pathorestore.cli_classify import fill_classify, parse_versions
from pathorestore.data.labels import read_labels
from pathorestore.hub import ConfigError, WeightsError
from pathorestore.models.classifier import Classifier, ClassifierConfig, to_side
from pathorestore.training.classifier_stage import LabelledSet

NETWORK = "test_resnet"  # 0.4 M parameters
SIDE = 64


def smear(shape, seed):
    """Nuclei on a pink ground, h w 3 uint8: round or long ones, all about equally large."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for _ in range(7):
        middle = tuple(int(value) for value in rng.integers(6, SIDE - 6, 2))
        cv2.ellipse(mask, middle, (5, 5) if shape == "round" else (11, 2), float(rng.integers(180)), 0, 360, 255, -1)
    share = mask[..., None] / 255
    pixels = np.array([225, 170, 205.0]) * (1 - share) + np.array([95, 65, 140.0]) * share
    return (pixels + rng.normal(0, 6, pixels.shape)).clip(0, 255).astype(np.uint8)


def blurred(pixels):
    """Far out of focus."""
    return cv2.GaussianBlur(pixels, (0, 0), 5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Sharp and blurred nuclei of 24 patients in three splits, and their labels."""
    root = tmp_path_factory.mktemp("nuclei")
    lines = ["file,label,patient,split"]
    for name in ("clean", "degraded"):
        (root / name / "sub").mkdir(parents=True)
    for index in range(96):
        shape, split = ("round", "long")[index % 2], "train" if index < 56 else "val" if index < 72 else "test"
        pixels = smear(shape, index)
        Image.fromarray(pixels).save(root / "clean" / "sub" / f"{index}.png")
        Image.fromarray(blurred(pixels)).save(root / "degraded" / "sub" / f"{index}.png")
        lines.append(f"sub/{index}.png,{shape},P{index // 4},{split}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


@pytest.fixture(scope="module")
def commands():
    """The command line."""
    return cli.main


@pytest.fixture(scope="module")
def model(folder, commands):
    """The folder of a classifier that was trained on the sharp images for 70 steps."""
    words = ["fit", "--config", "classifier_tiny", "--model.name", NETWORK, "--model.side_px", str(SIDE), "--data.batch_size", "8"]
    words += ["--model.classes", "[round, long]", "--model.optimizer.lr", "3e-3", "--data.labels", str(folder / "labels.csv")]
    words += ["--data.images", str(folder / "clean"), "--out", str(folder / "run"), "--trainer.max_steps", "70"]
    words += ["--trainer.val_check_interval", "70", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what the training command warns of is the business of its own tests
        assert commands([*words, "--trainer.logger", "false"]) == 0
    assert commands(["export", str(folder / "run" / "checkpoints" / "last.ckpt"), "-o", str(folder / "model")]) == 0
    return folder / "model"


@pytest.fixture
def run(tmp_path, monkeypatch, capsys, commands):
    """Run `classify` in a folder of its own; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()

    def call(*words: object) -> tuple[int, str, str]:
        code = commands(["classify", *(str(word) for word in words)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def words(folder, model):
    """What a plain run takes."""
    versions = ["--images", f"degraded={folder / 'degraded'}", "--images", f"clean={folder / 'clean'}"]
    return ["--model", model, "--labels", folder / "labels.csv", *versions, "-o", "out"]


def probabilities(out):
    """The rows of the table."""
    with Path(out, "probabilities.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def test_a_trained_classifier_tells_sharp_nuclei_apart_and_blurred_ones_no_better(run, words):
    code, out, err = run(*words)
    assert (code, err) == (0, "")
    told = json.loads(Path("out/scores.json").read_text())
    clean, degraded = told["scores"]["clean"], told["scores"]["degraded"]
    assert clean["accuracy"]["value"] >= 0.9
    assert all(degraded[name]["value"] <= clean[name]["value"] for name in ("auc", "accuracy"))
    assert degraded["accuracy"]["value"] < 0.9
    assert told["reference"] == "clean"
    assert (told["images"], told["groups"], told["excluded"]) == ({"round": 12, "long": 12}, 6, 0)
    assert (told["positive"], told["classifier"]["name"]) == ("long", NETWORK)
    table = [line.split() for line in out.splitlines()]
    assert table[0] == ["images", "AUC", "accuracy", "precision", "specificity", "sensitivity"]
    assert [table[1][0], table[2][0]] == ["degraded", "clean"]
    assert table[2][1] == f"{100 * clean['auc']['value']:.2f}"
    assert "minus clean" in out
    assert "bootstrap over patients or slides; positive is long, above 0.5" in out
    rows = probabilities("out")
    assert len(rows) == 48
    right = [row["predicted"] == row["label"] for row in rows if row["version"] == "clean"]
    assert np.mean(right) == pytest.approx(clean["accuracy"]["value"])


def test_the_same_run_gives_the_same_bytes_and_json_is_alone_on_stdout(run, words):
    assert run(*words)[0] == 0
    before = [Path("out", name).read_bytes() for name in ("scores.json", "probabilities.csv")]
    code, out, err = run(*words, "--json", "--overwrite")
    assert code == 0
    assert [Path("out", name).read_bytes() for name in ("scores.json", "probabilities.csv")] == before
    assert json.loads(out) == json.loads(before[0])
    assert err.startswith("images")
    assert run(*words, "-q", "--overwrite") == (0, "", "")


def test_a_bad_image_is_one_line_and_exit_code_1_and_the_rest_is_scored(run, words, folder, tmp_path):
    files = [f"sub/{index}.png" for index in range(72, 96)]
    for file in files:
        target = tmp_path / "restored" / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((folder / "clean" / file).read_bytes())
    (tmp_path / "restored/sub/80.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    (tmp_path / "restored/sub/81.png").unlink()
    code, out, err = run(*words, "--images", "restored=restored")
    assert code == 1
    assert len(err.splitlines()) == 2
    assert "restored/sub/80.png" in err.splitlines()[0]
    assert "there is no such image" in err.splitlines()[1]
    assert "2 left out of all versions" in out
    told = json.loads(Path("out/scores.json").read_text())
    assert told["excluded"] == 2
    assert sum(told["images"].values()) == 22
    assert told["scores"]["restored"] == told["scores"]["clean"], "the same images"
    assert all(one["value"] == 0 for one in told["differences"]["restored"].values())


def test_without_patients_the_width_of_intervals_is_warned_of_and_all_rows_are_scored_without_splits(run, words, folder, tmp_path):
    rows = [line.split(",") for line in (folder / "labels.csv").read_text().splitlines()]
    (tmp_path / "plain.csv").write_text("\n".join(["name,label", *(",".join(row[:2]) for row in rows[-30:])]))
    code, out, _ = run(*words, "--labels", "plain.csv", "--reference", "degraded", "--threshold", "0.3")
    assert code == 0
    assert "intervals may be too narrow" in out
    assert "minus degraded" in out
    assert "above 0.3" in out
    assert json.loads(Path("out/scores.json").read_text())["groups"] == 30


def test_names_of_files_may_be_hostile(run, words, folder, tmp_path):
    names = ["=cmd|' -C calc'!A1.png", 'a b, c;"d".png', "line\nbreak.png", "-o.png", "<script>.png", "näme✓.png"]
    for name in names:
        (tmp_path / "odd").mkdir(exist_ok=True)
        (tmp_path / "odd" / name).write_bytes((folder / "clean/sub/1.png").read_bytes())
    with (tmp_path / "odd.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["file", "label"], *([name, ("round", "long")[i % 2]] for i, name in enumerate(names))])
    odd = ["--model", words[1], "--labels", "odd.csv", "-o", "out", "--images"]
    assert run(*odd, "odd=odd")[0] == 0
    assert [row["file"] for row in probabilities("out")] == names
    (tmp_path / "odd" / "line\nbreak.png").write_bytes(b"")
    code, _, err = run(*odd, "odd=odd", "--overwrite")
    assert (code, len(err.splitlines())) == (1, 1)
    assert "line\\nbreak.png" in err


BAD_LABELS = {
    "path outside": ("../secret.png,round,,", r"row 2 \(\.\./secret\.png\): is no name below a folder"),
    "absolute path": ("/etc/passwd,round,,", "row 2.*write it relative to that folder"),
    "unknown label": ("a.png,square,,", r"row 2 \(a\.png\): label 'square' is unknown; expected one of round, long"),
    "no label": ("a.png,,,", "row 2.*no label"),
    "no file": (",round,,", "row 2.*no file"),
    "unknown split": ("a.png,round,,dev", "row 2.*split 'dev' is unknown; expected one of train, val, test"),
    "file twice": ("a.png,round,,\n./a.png,long,,", r"row 3 \(a\.png\): named already in row 2"),
    "patient in two splits": (
        "a.png,round,P 1,train\nb.png,long,p  1,test",
        r"row 3.*patient 'p  1' is in split test here \(row 3\) and in split train \(row 2\); keep all rows of a patient in one split",
    ),
    "patient half in a split": ("a.png,round,P1,\nb.png,long,P1,test", r"row 2.*is in no split here \(row 2\) and in split test \(row 3\)"),
    "too many cells": ("a.png,round,,,,", "row 2: got 6 cells"),
}


@pytest.mark.parametrize("fault", BAD_LABELS)
def test_a_row_at_fault_is_told_by_number_and_remedy(fault, tmp_path):
    table, expected = BAD_LABELS[fault]
    (tmp_path / "labels.csv").write_text(f"file,label,patient,split\n{table}\n")
    with pytest.raises(ValueError, match=f"labels.csv.*{expected}") as caught:
        read_labels(tmp_path / "labels.csv", ("round", "long"))
    assert len(str(caught.value).splitlines()) == 1


def test_slides_of_one_name_are_told_apart_by_their_patients_and_never_confused_with_them(tmp_path):
    (tmp_path / "labels.csv").write_text("file,label,patient,slide,split\na.png,x,P1,1,train\nb.png,x,P2,1,val\nc.png,x,1,,test\n")
    assert len(read_labels(tmp_path / "labels.csv")) == 3
    (tmp_path / "labels.csv").write_text("file,label,patient,slide,split\na.png,x,P1,S1,train\nb.png,x,,S1,val\n")
    with pytest.raises(ValueError, match="slide 'S1' is in split val here"):
        read_labels(tmp_path / "labels.csv")


def test_slides_are_kept_apart_like_patients_and_many_faults_are_cut_short(tmp_path):
    (tmp_path / "labels.csv").write_text("path,label,slide,split\na.png,x,S1,train\nb.png,x,S1,val\n")
    with pytest.raises(ValueError, match=r"row 3 \(b\.png\): slide 'S1' is in split val here \(row 3\) and in split train \(row 2\)"):
        read_labels(tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("file,label\n" + "\n".join(f"{index}.png," for index in range(15)))
    with pytest.raises(ValueError, match=r"row 11 \(9\.png\): no label; .*and 5 more$"):
        read_labels(tmp_path / "labels.csv")
    for text in ("file,lable\na.png,x\n", "picture,label\na.png,x\n", "file,label,label\na.png,x,x\n"):
        (tmp_path / "labels.csv").write_text(text)
        with pytest.raises(ValueError, match=r"row 1: got columns .*expected file and label"):
            read_labels(tmp_path / "labels.csv")
    (tmp_path / "labels.csv").write_text("file,label\n")
    with pytest.raises(ValueError, match="header without rows"):
        read_labels(tmp_path / "labels.csv")


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (["--images", "far=gone"], "--images far=gone: is no folder"),
        (["--images", "far"], "--images 'far' is no version; expected NAME=DIR"),
        (["--images", "clean=."], "--images 'clean' is named twice"),
        (["--model", "gone"], "--model gone: no such folder or file"),
        (["--model", "."], "holds no config.json"),
        (["--model", "labels.csv"], "say what it holds with --architecture and --classes"),
        (["--model", "labels.csv", "--architecture", NETWORK, "--classes", "a,b"], "labels.csv is damaged, or holds more than tensors"),
        (["--architecture", NETWORK], "a folder knows them itself"),
        (["--labels", "gone.csv"], "gone.csv: is no file"),
        (["--labels", "labels.csv"], "row 2 (a.png): label 'square' is unknown"),
        (["--labels", "empty.csv"], "empty.csv: is empty; expected a header row and one row for each image"),
        (["--labels", "train.csv"], "train.csv: has no row with split test"),
        (["--reference", "sharp"], "--reference sharp is no version; expected one of degraded, clean"),
        (["--threshold", "1"], "--threshold 1.0 must lie in (0, 1)"),
        (["--draws", "0"], "--draws 0 must be at least 1"),
        (["--split", "dev"], "invalid choice: 'dev'"),
        (["-o", "labels.csv"], "labels.csv: is a file; name a folder"),
        (["-o", "full"], "full/scores.json: exists already; --overwrite replaces it"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_wrong_usage_is_one_clear_line_and_exit_code_2(run, words, extra, expected, tmp_path):
    (tmp_path / "labels.csv").write_text("file,label\na.png,square\n")
    (tmp_path / "train.csv").write_text("file,label,split\na.png,round,train\n")
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "scores.json").write_text("mine")
    code, out, err = run(*words, *extra)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert expected in err
    assert not Path("out").exists()
    assert (tmp_path / "full" / "scores.json").read_text() == "mine"


def test_if_no_image_is_left_nothing_is_written_and_the_exit_code_is_1(run, words, tmp_path):
    (tmp_path / "empty").mkdir()
    code, _, err = run(*words, "--images", "restored=empty")
    assert (code, len(err.splitlines())) == (1, 25)
    assert "none of 24 images could be scored" in err
    assert not Path("out").exists()


def test_training_refuses_missing_files_and_rows_without_a_split(commands, folder, tmp_path, capsys):
    (tmp_path / "labels.csv").write_text("file,label,split\nsub/0.png,round,train\ngone.png,long,train\nsub/1.png,long,\n")
    words = [
        "fit",
        "--config",
        "classifier_tiny",
        "--model.name",
        NETWORK,
        "--model.classes",
        "[round, long]",
        "--out",
        str(tmp_path / "run"),
    ]
    words += ["--data.images", str(folder / "clean"), "--trainer.accelerator", "cpu", "--trainer.logger", "false"]
    assert commands([*words, "--data.labels", str(tmp_path / "labels.csv")]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "row 4 (sub/1.png): no split" in line
    assert "row 3: " in line
    assert "gone.png is missing" in line


def test_an_exported_classifier_comes_back_to_the_bit_and_nothing_else_is_taken(model, tmp_path):
    classifier = Classifier.from_pretrained(model / "classifier")
    image = torch.rand(2, 3, 70, 90, generator=torch.Generator().manual_seed(0))
    classifier.save_pretrained(tmp_path / "copy")
    assert torch.equal(Classifier.from_pretrained(tmp_path / "copy").probabilities(image), classifier.probabilities(image))
    assert classifier.probabilities(image).sum(dim=1).tolist() == pytest.approx([1, 1])
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert config["config"]["classes"] == ["round", "long"]
    config["config"]["classes"] = ["round", "long", "square"]
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="wrong shape"):
        Classifier.from_pretrained(tmp_path / "copy")
    config["config"]["colour"] = "red"
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="unknown colour"):
        Classifier.from_pretrained(tmp_path / "copy")


def test_a_fresh_process_loads_an_exported_classifier(model):
    # this process has made torchvision importable long ago
    code = "import sys; from pathorestore.models.classifier import Classifier; print(Classifier.from_pretrained(sys.argv[1]).config.name)"
    done = subprocess.run([sys.executable, "-c", code, str(model / "classifier")], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, NETWORK), done.stderr


def test_weights_of_a_file_are_scored_like_those_of_the_folder(run, words, model):
    torch.save({"state_dict": Classifier.from_pretrained(model / "classifier").network.state_dict()}, "weights.pth")
    assert run(*words)[0] == 0
    rest = ["--architecture", NETWORK, "--classes", "round,long", "--side-px", SIDE, "-o", "file"]
    assert run(*words, "--model", "weights.pth", *rest)[0] == 0
    assert Path("file/probabilities.csv").read_bytes() == Path("out/probabilities.csv").read_bytes()
    code, _, err = run(*words, "--model", "weights.pth", *rest, "--classes", "a,b,c", "-o", "other")
    assert code == 2
    assert "wrong shape: fc.weight" in err


def test_a_body_is_taken_from_a_file_and_its_head_only_if_it_fits(tmp_path):
    source = Classifier.create(NETWORK, ("a", "b", "c"))
    torch.save(source.network.state_dict(), tmp_path / "body.pth")
    taken = Classifier.create(NETWORK, ("x", "y"), checkpoint=tmp_path / "body.pth")
    body, other = source.network.state_dict(), taken.network.state_dict()
    assert all(torch.equal(body[name], other[name]) for name in body if not name.startswith("fc."))
    assert len(other["fc.bias"]) == 2
    again = Classifier.create(NETWORK, ("x", "y", "z"), checkpoint=tmp_path / "body.pth")
    assert torch.equal(again.network.state_dict()["fc.weight"], body["fc.weight"])
    torch.save({name: tensor for name, tensor in body.items() if name != next(iter(body))}, tmp_path / "less.pth")
    for missing in ("less.pth", "gone.pth"):
        with pytest.raises(WeightsError, match="missing"):
            Classifier.create(NETWORK, ("x", "y"), checkpoint=tmp_path / missing)
    torch.save({"state_dict": {"a": object}}, tmp_path / "code.pth")
    with pytest.raises(WeightsError, match="not unpickled"):
        Classifier.create(NETWORK, ("x", "y"), checkpoint=tmp_path / "code.pth")


def test_names_that_timm_does_not_know_and_addresses_of_the_hub_are_refused():
    with pytest.raises(ValueError, match=r"no network 'resnet19'; near names are .*resnet1"):
        Classifier.create("resnet19", ("a", "b"))
    with pytest.raises(ValueError, match="no network 'hf_hub:timm/resnet18'"):
        Classifier.create("hf_hub:timm/resnet18", ("a", "b"))
    with pytest.raises(ValueError, match="leave one of them out"):
        Classifier.create(NETWORK, ("a", "b"), pretrained=True, checkpoint="weights.pth")


def test_the_hub_is_asked_only_if_pretrained_says_so(monkeypatch):
    import timm

    asked = []
    build = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda *args, pretrained, **rest: asked.append(pretrained) or build(*args, **rest))
    Classifier.create(NETWORK, ("a", "b"))
    assert asked == [False]
    Classifier.create(NETWORK, ("a", "b"), pretrained=True)
    assert asked == [False, False, True]


def test_a_transformer_of_fixed_input_takes_the_side_that_is_asked_for():
    classifier = Classifier.create("test_vit", ("a", "b"), side_px=64).eval()
    assert classifier.config.mean == (0.5, 0.5, 0.5)
    assert classifier(torch.rand(1, 3, 100, 80)).shape == (1, 2)


@pytest.mark.parametrize(
    "options", [{"classes": ("a",)}, {"classes": ("a", "a")}, {"classes": ("a", " b")}, {"side_px": 8}, {"std": (1, 1, 0)}]
)
def test_a_config_that_makes_no_classifier_is_refused(options):
    with pytest.raises(ValueError, match="must be"):
        ClassifierConfig(**options)


def test_images_are_brought_to_a_square_without_distortion():
    image = torch.rand(1, 3, 64, 64)
    assert to_side(image, 64) is image
    disc = torch.zeros(1, 3, 120, 200)
    y, x = torch.meshgrid(torch.arange(120) - 59.5, torch.arange(200) - 99.5, indexing="ij")
    disc[..., x.square() + y.square() < 30**2] = 1
    small = to_side(disc, 60)[0, 0]
    assert small.shape == (60, 60)
    assert int((small[30] > 0.5).sum()) == int((small[:, 30] > 0.5).sum()) == 30
    assert (small.min(), small.max()) == (0, 1)
    assert to_side(torch.rand(1, 3, 20, 30), 40).shape == (1, 3, 40, 40)


def test_training_sees_every_image_once_a_round_in_an_order_that_the_key_decides(folder):
    files = sorted((folder / "clean" / "sub").glob("*.png"))[:9]
    data = LabelledSet(files, range(9), SIDE, augment=True, seed=3)
    rounds = [[int(data[key].target) for key in range(9 * start, 9 * start + 9)] for start in range(3)]
    assert all(sorted(one) == list(range(9)) for one in rounds)
    assert rounds[0] != rounds[1]
    twin = LabelledSet(files, range(9), SIDE, augment=True, seed=3)
    assert torch.equal(twin[5].image, data[5].image)
    still = LabelledSet(files, range(9), SIDE, augment=False)
    assert [int(still[key].target) for key in range(9)] == list(range(9))
    views = {tuple(data[key].image.flatten()[:40].tolist()) for key in range(90) if int(data[key].target) == 0}
    assert len(views) > 3, "turned differently each time"


def test_balance_shows_a_rare_class_as_often_as_a_common_one(folder):
    files = sorted((folder / "clean" / "sub").glob("*.png"))[:10]
    data = LabelledSet(files, [0] * 9 + [1], SIDE, augment=True, balance=True)
    assert [int(data[key].target) for key in range(8)] == [0, 1] * 4


def test_versions_are_named_folders():
    assert parse_versions(["a=x", "b = y=z"]) == {"a": Path("x"), "b": Path(" y=z")}


def test_every_option_says_what_it_is_for():
    from jsonargparse import ArgumentParser

    command = ArgumentParser(exit_on_error=False)
    fill_classify(command)
    helps = {action.dest: action.help for action in command._actions}
    assert len(helps) > 17
    assert [name for name, text in helps.items() if not text or len(text.split()) < 3] == []


def test_the_largest_image_is_that_of_the_pipeline_unless_told(run, words, monkeypatch):
    from pathorestore.evaluation import classification
    from pathorestore.pipelines.raster import DEFAULT_MAX_PIXELS

    asked = []
    read = classification.read_image_file
    monkeypatch.setattr(classification, "read_image_file", lambda path, *, max_pixels: asked.append(max_pixels) or read(path))
    assert run(*words, "-o", "one")[0] == 0
    assert run(*words, "-o", "two", "--max-pixels", 5000)[0] == 0
    assert set(asked[: len(asked) // 2]) == {DEFAULT_MAX_PIXELS}
    assert set(asked[len(asked) // 2 :]) == {5000}
