"""The measuring bench measures: laws that hold whatever the machine and the weights."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch.nn import init

from pathorestore.degradations.recipes import Setting
from pathorestore.diffusion.resshift import ResShift
from pathorestore.image import to_uint8
from pathorestore.models.defocus import DefocusEstimator, DefocusEstimatorConfig
from pathorestore.models.encoders import TinyEncoder, TinyEncoderConfig
from pathorestore.models.pdiffusion import PDiffusion, PDiffusionConfig
from pathorestore.models.pformer import PFormer, PFormerConfig
from pathorestore.models.prompts import EdgePrompt, EdgePromptConfig, PathologyPrompt, PathologyPromptConfig, Prompter
from pathorestore.pipelines.mop import MoPRestorer
from pathorestore.pipelines.refine import DiffusionRefiner, FineSettings

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import restoration_table
from simulated_defocus import AMOUNTS, DEGRADED, NOISE_TO_SIGNAL, UNSHARP, WIENER, KnownWiener, Row, Study, UnsharpMask, measure, tune


@pytest.fixture(scope="module")
def study():
    return Study(setting=Setting.ideal(), z_um=(0.8, 3.2))


@pytest.fixture
def fields(nuclei_image):
    return [("nuclei", nuclei_image), ("upside down", nuclei_image.flip(-2).roll(31, -1))]


@pytest.fixture
def results(study, fields):
    identity = {"identity": lambda pair: pair.degraded, "oracle": lambda pair: pair.clean}
    return restoration_table.Results(measure(study, fields, tune(study, fields), identity))


def test_a_restorer_that_changes_nothing_gains_nothing(results):
    assert [tuple(gain) for gain in results.gain("identity", DEGRADED)] == [(0, 0, 0)] * 3
    assert results.means("ssim", "identity") == results.means("ssim", DEGRADED)
    assert results.means("l1_texture", "identity") == results.means("l1_texture", DEGRADED)


def test_the_clean_image_is_perfect_in_every_measure(results):
    assert results.values("psnr_db", "oracle").isposinf().all()
    assert results.values("ssim", "oracle").eq(1).all()
    assert results.values("l1_texture", "oracle").eq(0).all()
    assert results.values("l1_intensity", "oracle").eq(0).all()


def test_wiener_with_the_known_blur_beats_the_input_and_the_unsharp_mask(results):
    assert min(gain.low for gain in results.gain(WIENER, DEGRADED)) > 1
    assert min(gain.mean for gain in results.gain(WIENER, UNSHARP)) > 0.5


def test_tuning_finds_the_best_of_the_grid(study, fields, results):
    assert min(gain.mean for gain in results.gain(UNSHARP, DEGRADED)) > 0
    others = {"weak": UnsharpMask(sigma_px=1.0, amount=0.25, linear=False), "plain": KnownWiener(noise_to_signal=1e-3, from_scan=False)}
    tried = restoration_table.Results(measure(study, fields, tune(study, fields), others))
    assert min(gain.mean for gain in tried.gain(UNSHARP, "weak")) >= 0
    assert min(gain.mean for gain in tried.gain(WIENER, "plain")) >= 0
    assert min(AMOUNTS) == 0
    for methods in tune(study, fields).values():
        assert methods[UNSHARP].amount < max(AMOUNTS)
        assert min(NOISE_TO_SIGNAL) < methods[WIENER].noise_to_signal < max(NOISE_TO_SIGNAL)


def test_a_pair_depends_on_seed_and_distance_alone(study, fields):
    whole = {(name, z): pair.degraded for name, z, pair in study.pairs(fields)}
    alone = {(name, z): pair.degraded for name, z, pair in Study(setting=study.setting, z_um=(3.2,)).pairs(fields[:1])}
    other = {(name, z): pair.degraded for name, z, pair in Study(setting=study.setting, z_um=(3.2,), seed=1).pairs(fields[:1])}
    assert torch.equal(whole["nuclei", 3.2], alone["nuclei", 3.2])
    assert not torch.equal(other["nuclei", 3.2], alone["nuclei", 3.2])


def test_images_without_nuclei_are_left_out_of_nuclear_means_only():
    rows = [
        Row(image=name, z_um=0.8, method=method, psnr_db=20.0 + shift, ssim=0.5, nuclei=count, l1_intensity=value, l1_texture=value,
            intensity=(value,) * 4, texture=(value,) * 4)
        for name, count, value in (("cells", 3, 2.0), ("blank", 0, float("nan")))
        for method, shift in ((DEGRADED, 0), (UNSHARP, 1), ("coarse", 3))
    ]  # fmt: skip
    results = restoration_table.Results(rows)
    assert results.means("l1_texture", "coarse") == [2.0, 2.0]
    assert results.gain("coarse", DEGRADED)[-1].mean == 3
    assert "2 images with 3 nuclei; 1 of them without any" in restoration_table.markdown(results)


@pytest.fixture(scope="module")
def untrained_folder(tmp_path_factory):
    torch.manual_seed(0)
    encoder, defocus = TinyEncoder(TinyEncoderConfig.tiny()), DefocusEstimator(DefocusEstimatorConfig.tiny())
    prompter = Prompter(encoder, defocus, PathologyPrompt(PathologyPromptConfig.tiny()), EdgePrompt(EdgePromptConfig.tiny()))
    coarse = PFormer(PFormerConfig.tiny())
    init.zeros_(coarse.output.weight)
    fine = PDiffusion(PDiffusionConfig.tiny())
    init.normal_(fine.unet.out[2].weight, std=0.1)  # as it begins, it returns the coarse image
    folder = tmp_path_factory.mktemp("untrained")
    MoPRestorer(prompter, coarse, DiffusionRefiner(fine, FineSettings(process=ResShift()))).save_pretrained(folder)
    return folder


def test_the_command_prints_the_table_and_keeps_every_row(untrained_folder, nuclei_image, tmp_path, capsys):
    import cv2

    (tmp_path / "images").mkdir()
    for name in "ab":
        cv2.imwrite(str(tmp_path / "images" / f"{name}.png"), to_uint8(nuclei_image)[..., ::-1])
    options = f"--data {tmp_path / 'images'} --model {untrained_folder} --json {tmp_path / 't.json'} --csv {tmp_path / 't.csv'}"
    restoration_table.main([*options.split(), "--limit", "1", "--crop", "100", "--tile", "128"])
    printed, written = capsys.readouterr().out, json.loads((tmp_path / "t.json").read_text())
    methods = [DEGRADED, UNSHARP, WIENER, "coarse", "two-stage"]
    assert f"| z | {' | '.join(methods)} |" in printed
    assert "above it not at z = 0.8, 1.6, 2.4, 3.2 um" in printed
    assert [(row["z_um"], row["method"]) for row in written["rows"]] == [(z, method) for z in (0.8, 1.6, 2.4, 3.2) for method in methods]
    assert len((tmp_path / "t.csv").read_text().splitlines()) == 21
    assert {"commit", "torch", "machine", "weights_sha256", "tuned", "arguments"} <= set(written["run"])
    # the network's last layer is zero, so the coarse stage is the identity
    scores = {method: [row["psnr_db"] for row in written["rows"] if row["method"] == method] for method in methods}
    assert scores["coarse"] == pytest.approx(scores[DEGRADED], abs=1e-3)
    assert scores["two-stage"] != scores["coarse"]
