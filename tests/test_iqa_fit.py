"""`pathorestore iqa-fit`: levels, sources, the fit from end to end on made-up tissue, clear lines for what went wrong."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tissue_files import save, tissue

from pathorestore import cli
from pathorestore.data.manifest import Row, write_manifest
from pathorestore.evaluation.iqa_fit import FitOptions, find_sources, fit_iqa, spearman
from pathorestore.evaluation.iqa_levels import DEGRADATIONS, STEPS, level_score, variants
from pathorestore.image import from_uint8
from pathorestore.metrics import brisque, niqe
from pathorestore.metrics.scene_parameters import EMBEDDED

SMALL = FitOptions(crop_px=64, patch_px=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two tiles each of three slides."""
    place = tmp_path_factory.mktemp("tiles")
    for number in range(6):
        save(place / f"slide{number // 2}_{number % 2}.png", tissue(number, 320, 320))
    return place


@pytest.fixture(scope="module")
def fitted(folder):
    return fit_iqa(folder, SMALL)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run a command line in an empty folder; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        code = cli.main(["iqa-fit", *(str(word) for word in words)])
        out, err = capsys.readouterr()
        return code, out, err

    return call


# --- levels ---------------------------------------------------------------------------------------------------------------------------


def test_every_level_of_every_degradation_is_further_from_the_sharp_image():
    sharp = from_uint8(tissue(0, 96, 96))
    found = list(variants(sharp, torch.Generator().manual_seed(0)))
    assert len(found) == 1 + len(DEGRADATIONS) * STEPS
    assert torch.equal(found[0].image, sharp)
    assert (found[0].degradation, found[0].level) == ("", 0)
    for one in DEGRADATIONS:
        own = [variant for variant in found if variant.degradation == one.name]
        errors = [(variant.image - sharp).square().mean().item() for variant in own]
        assert [variant.level for variant in own] == [1, 2, 3, 4, 5]
        assert errors == sorted(errors)
        assert errors[0] > 0
        assert all(variant.image.shape == sharp.shape and variant.image.min() >= 0 and variant.image.max() <= 1 for variant in own)


def test_the_score_of_a_level_is_its_rank_on_a_scale_to_100():
    assert [level_score(level) for level in range(STEPS + 1)] == [0, 20, 40, 60, 80, 100]


def test_the_box_blur_is_the_mean_of_its_square():
    box = next(one for one in DEGRADATIONS if one.name == "box")
    image = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(box.apply(image, 3, torch.Generator())[..., 4, 4], image[..., 3:6, 3:6].mean((-1, -2)))


# --- rank correlation -----------------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 1000))
def test_the_rank_correlation_is_that_of_scipy_and_leaves_unknown_scores_out(seed):
    rng = np.random.default_rng(seed)
    scores, levels = rng.integers(0, 8, 20) / 3, rng.integers(0, 6, 20)
    expected = stats.spearmanr(scores, levels).statistic
    unknown = torch.cat([torch.from_numpy(scores), torch.tensor([math.nan])])
    assert spearman(unknown, torch.tensor([*levels, 3])) == pytest.approx(expected, abs=1e-9)


def test_scores_that_do_not_vary_have_no_rank_correlation():
    assert math.isnan(spearman(torch.ones(5), torch.arange(5)))
    assert math.isnan(spearman(torch.full((5,), math.nan), torch.arange(5)))


# --- sources --------------------------------------------------------------------------------------------------------------------------


def test_tiles_of_one_slide_are_never_on_both_sides(folder):
    for seed in range(5):
        sources = find_sources(folder, FitOptions(seed=seed), note=print)
        fitted, held_out = ({one.group for one in sources if one.held_out is kept} for kept in (False, True))
        assert len(sources) == 6
        assert (len(fitted), len(held_out)) == (2, 1)
        assert not fitted & held_out


def test_a_limit_draws_so_many_images_by_the_seed(folder):
    chosen = {tuple(one.path.name for one in find_sources(folder, FitOptions(limit=4, seed=seed), note=print)) for seed in range(5)}
    assert {len(names) for names in chosen} == {4}
    assert len(chosen) > 1


def test_plain_numbers_belong_to_their_folder_and_single_files_are_held_out_where_nothing_else_tells(tmp_path):
    for slide in ("a", "b"):
        for number in range(3):
            save(tmp_path / slide / f"{number:03}.png", tissue(number, 32, 32))
    assert {one.group for one in find_sources(tmp_path, FitOptions(), note=print)} == {"a", "b"}
    notes: list[str] = []
    sources = find_sources(tmp_path / "a", FitOptions(), notes.append)
    assert [one.held_out for one in sources].count(True) == 1
    assert "single files are held out" in notes[0]


def test_a_manifest_tells_splits_partners_and_patients(tmp_path):
    rows = [
        Row(path="x/1.png", target="x/sharp1.png", patient="A"),
        Row(path="x/2.png", target="x/sharp1.png", patient="A"),
        Row(path="x/3.png", slide="S"),
        Row(path="x/4.png", patient="B", split="val"),
        Row(path="x/5.png", patient="C", split="test"),
    ]
    write_manifest(tmp_path / "m.csv", rows)
    sources = find_sources(tmp_path / "m.csv", FitOptions(), note=print)
    assert [(one.path.name, one.group, one.held_out) for one in sources] == [
        ("3.png", "s", False),
        ("4.png", "b", True),
        ("sharp1.png", "a", False),
    ]
    write_manifest(tmp_path / "val.csv", rows[3:])
    with pytest.raises(ValueError, match="all of 1 images are of the split val"):
        find_sources(tmp_path / "val.csv", FitOptions(), note=print)
    write_manifest(tmp_path / "test.csv", rows[4:])
    with pytest.raises(ValueError, match="split test only"):
        find_sources(tmp_path / "test.csv", FitOptions(), note=print)


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ({"patient": "P1"}, {"patient": " p1"}, "patient leak"),
        ({"slide": "S1"}, {"slide": "S1"}, "slide leak"),
        ({"patient": "P1", "slide": "S1"}, {"slide": "S1"}, "slide leak"),
        ({}, {"path": "a.png"}, "listed twice"),
        ({"target": "sharp.png"}, {"target": "sharp.png"}, "shared file"),
        ({"patient": "7"}, {"slide": "7"}, ""),
        ({"patient": "P1", "split": "test"}, {"patient": "P1"}, ""),
    ],
)
def test_what_is_both_fitted_and_held_out_is_refused_and_only_that(first, second, reason, tmp_path):
    rows = [Row(**({"path": "a.png"} | first)), Row(**({"path": "b.png", "split": "val"} | second)), Row(path="c.png")]
    write_manifest(tmp_path / "m.csv", rows)
    if not reason:
        assert [one.held_out for one in find_sources(tmp_path / "m.csv", FitOptions(), note=print)].count(True) == 1
        return
    with pytest.raises(ValueError, match=rf"m\.csv: rows both fitted and held out: row 3 .*{reason}"):
        find_sources(tmp_path / "m.csv", FitOptions(), note=print)


# --- the fit --------------------------------------------------------------------------------------------------------------------------


def test_a_fit_orders_the_degradations_of_tissue_it_has_not_seen(fitted):
    assert (fitted.facts.files, fitted.facts.groups, fitted.facts.held_out) == (4, 2, 2)
    assert fitted.brisque.config.fit.samples == 4 * 26
    for name in ("gaussian", "box", "defocus", "noise", "jpeg"):
        assert fitted.agreement["brisque"][name].pooled > 0.7
        assert fitted.agreement["brisque"][name].within > 0.7
        assert fitted.brisque.config.fit.spearman[name] == pytest.approx(fitted.agreement["brisque"][name].pooled, abs=1e-4)
    assert fitted.agreement["niqe"]["noise"].pooled > 0.7


def test_the_agreement_is_that_of_the_scores_of_the_held_out_images(fitted, folder):
    from hashlib import sha256

    scores, levels = [], []
    for path in [one.path for one in find_sources(folder, SMALL, note=print) if one.held_out]:
        # as the fit seeds its noise: by the file's bytes, wherever it lies
        key = int(sha256(f"0:{sha256(path.read_bytes()).hexdigest()}".encode()).hexdigest()[:15], 16)
        from PIL import Image

        crop = from_uint8(np.array(Image.open(path)))[..., 128:192, 128:192]
        for one in variants(crop, torch.Generator().manual_seed(key)):
            if one.degradation in ("", "noise"):
                scores.append([niqe.niqe(one.image, fitted.niqe).item(), brisque.brisque(one.image, fitted.brisque).item()])
                levels.append(one.level)
    for column, kind in enumerate(("niqe", "brisque")):
        own = np.array(scores)[:, column]
        assert fitted.agreement[kind]["noise"].pooled == pytest.approx(stats.spearmanr(own, levels).statistic, abs=1e-9)
        medians = [np.median(own[np.array(levels) == level]) for level in range(STEPS + 1)]
        assert fitted.agreement[kind]["noise"].medians == pytest.approx(medians, abs=1e-6)


def test_held_out_images_change_nothing_of_the_fit(fitted, folder, tmp_path):
    held_out = {one.path.name for one in find_sources(folder, SMALL, note=print) if one.held_out}
    rows = [Row(path=str(path)) for path in sorted(folder.iterdir()) if path.name not in held_out]
    save(tmp_path / "other.png", tissue(99, 64, 64))
    write_manifest(tmp_path / "m.csv", [*rows, Row(path="other.png", split="val")])
    other = fit_iqa(tmp_path / "m.csv", SMALL)
    assert torch.equal(other.niqe.mean, fitted.niqe.mean)
    assert torch.equal(other.niqe.covariance, fitted.niqe.covariance)
    assert torch.equal(other.brisque.coefficients, fitted.brisque.coefficients)
    assert other.facts.digest == fitted.facts.digest
    assert other.agreement != fitted.agreement


def test_the_command_writes_what_the_metrics_read_and_the_same_bytes_again(folder, run, tmp_path):
    words = (folder, "--crop", 64, "--patch", 32, "--limit", 4, "--seed", 2)
    code, out, err = run(*words, "-o", "one")
    assert (code, err) == (0, "")
    assert "fitted to 3 images of 2 groups; held out: 1" in out
    table, medians = out.split("Median score of the held-out images at levels 0 (sharp) to 5:")
    for part in (table, medians):
        assert {line.split()[0] for line in part.splitlines() if line} >= {"degradation", "gaussian", "box", "defocus", "noise", "jpeg"}
    (noise,) = [line for line in medians.splitlines() if line.startswith("noise")]
    assert noise.count(",") == 2 * STEPS
    assert f"written: {Path('one') / 'brisque.json'}" in out
    image = from_uint8(tissue(50, 96, 96))
    assert niqe.niqe(image, niqe.load_parameters(Path("one"))).item() > 0
    assert 0 <= brisque.brisque(image, brisque.load_parameters(Path("one"))).item() <= 100
    assert run(*words, "-o", "two", "-q") == (0, "", "")
    names = sorted(path.name for path in Path("one").iterdir())
    assert names == ["brisque.json", "brisque.safetensors", "niqe.json", "niqe.safetensors"]
    assert all((Path("one") / name).read_bytes() == (Path("two") / name).read_bytes() for name in names)


def test_one_kind_alone_is_fitted_alone(folder, run):
    for kind in ("niqe", "brisque"):
        code, out, _ = run(folder, "-o", "out", "--crop", 64, "--patch", 32, "--limit", 4, "--seed", 2, "--kind", kind)
        assert code == 0
        assert sorted(path.name for path in Path("out").iterdir()) == [f"{kind}.json", f"{kind}.safetensors"]
        assert out.splitlines()[2].split()[2:] == [kind, "per", "image"]
        for path in Path("out").iterdir():
            path.unlink()


def test_damaged_and_small_files_are_passed_over_by_name(folder, run):
    for path in sorted(folder.iterdir())[::2]:
        Path("in").mkdir(exist_ok=True)
        (Path("in") / path.name).write_bytes(path.read_bytes())
    (Path("in") / "broken_1.png").write_bytes(b"\x89PNG\r\n\x1a\nnot really")
    save(Path("in") / "small_1.png", tissue(0, 40, 40))
    save(Path("in") / "blank_1.png", np.full((64, 64, 3), 255, np.uint8))
    code, out, err = run("in", "-o", "out", "--crop", 64, "--patch", 32, "--kind", "brisque")
    assert (code, err) == (0, "")
    notes = [line for line in out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2
    assert "broken_1.png" in notes[0]
    assert "small_1.png: 40 x 40 px hold fewer than two patches of 32 px" in notes[1]
    assert brisque.load_parameters(Path("out")).coefficients.isfinite().all()


@pytest.mark.parametrize(
    ("words", "expected", "message"),
    [
        (("none",), 1, "none: no such folder"),
        (("empty",), 1, "empty: holds no images"),
        (("notes.txt",), 1, "is a file; name its folder, or a manifest"),
        (("none.csv",), 1, "none.csv: no such file"),
        (("damaged",), 2, "none of 1 images could be used"),
        (("damaged", "--crop", 100), 2, "crop=100 at least two patches, 192 px"),
        (("damaged", "--patch", 31), 2, "patch=31 must be even"),
        (("damaged", "--limit", -1), 2, "limit=-1"),
        (("one",), 2, "two patients or more"),
        (("damaged", "--kind", "psnr"), 2, "niqe"),
        (("leak.csv",), 2, "leak.csv: rows both fitted and held out: row 3 (one/b.png): patient leak: patient 'A'"),
    ],
)
def test_what_cannot_be_fitted_gets_one_clear_line(words, expected, message, run):
    Path("empty").mkdir()
    Path("damaged").mkdir()
    (Path("damaged") / "a.png").write_bytes(b"nothing")
    save(Path("one") / "a.png", tissue(0, 200, 200))
    Path("notes.txt").write_text("hello")
    write_manifest(Path("leak.csv"), [Row(path="one/a.png", patient="A"), Row(path="one/b.png", patient="A", split="val")])
    options = ("--crop", 64, "--patch", 32, "--kind", "brisque") if words == ("one",) else ()
    code, _, err = run(*words, "-o", "out", *options)
    assert code == expected
    assert message in err
    assert err.count("\n") == 1
    assert not Path("out").exists()


def test_parameters_that_exist_are_kept_unless_told_otherwise(folder, run):
    Path("out").mkdir()
    (Path("out") / "niqe.json").write_text("mine")
    code, _, err = run(folder, "-o", "out")
    assert (code, (Path("out") / "niqe.json").read_text()) == (2, "mine")
    assert "niqe.json: exists already; --overwrite replaces it" in err
    assert run(folder, "-o", "out/niqe.json")[0] == 2
    assert run(folder, "-o", "out", "--overwrite", "--limit", 4, "--seed", 2, "--crop", 64, "--patch", 32, "--kind", "niqe")[0] == 0
    assert json.loads((Path("out") / "niqe.json").read_text())["patch_px"] == 32


def test_the_card_of_the_embedded_parameters_states_their_figures():
    card = (EMBEDDED / "README.md").read_text()
    for module in (niqe, brisque):
        facts = module.load_parameters().config.fit
        assert facts.digest in card
        for name, value in facts.spearman.items():
            row = next(line for line in card.splitlines() if line.startswith(f"| {name} | 0."))
            assert f"{value:.3f}" in row
