"""Trust maps: what each signal must and must not react to, the model that weighs them, and the files on the disk."""

import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pathorestore import cli
from pathorestore.degradations.slab import relative_transfer
from pathorestore.functional.color import linear_to_srgb, srgb_to_linear
from pathorestore.functional.optics import Optics, blur
from pathorestore.functional.trust import Signals, blur_residual, hidden_energy, hidden_share, sample_variance, structure_energy, with_rim
from pathorestore.hub_codec import ConfigError
from pathorestore.image import to_uint8
from pathorestore.metrics.risk import rank_correlation, reliability
from pathorestore.pipelines import assemble, mop, risk_files
from pathorestore.pipelines.assemble import ReadyRestorer
from pathorestore.pipelines.batch import BadResult, Job, PlanError
from pathorestore.pipelines.image_file import read_image_file
from pathorestore.pipelines.mop import default_folder
from pathorestore.pipelines.provenance import read_provenance
from pathorestore.pipelines.risk_files import OVERLAY_TOP_LEVELS, check_risk_names, overlay_picture, read_risk, risk_paths, risk_pixels
from pathorestore.pipelines.risk_model import RiskModel, RiskModels, SignalSettings, fit_risk
from pathorestore.pipelines.tiled import TiledRestorer
from pathorestore.pipelines.trust import RiskMap, TrustSignals, local_error

SETTINGS = SignalSettings()


class Context(NamedTuple):
    defocus_um: torch.Tensor


class Guess:
    """Two stages: one that sharpens, one that adds noise of a strength; and a distance from focus that depends on the tile's brightness."""

    tile_px, multiple_px = 64, 8

    def __init__(self, *, noise: float = 0.0, defocus_um: float | None = 1.6):
        self.noise, self.defocus_um = noise, defocus_um
        self.tiles_seen = 0

    def prepare(self, degraded: torch.Tensor) -> Context:
        self.tiles_seen += 1
        return Context(degraded.mean((1, 2, 3)) * 4 if self.defocus_um is None else torch.full((len(degraded),), self.defocus_um))

    @property
    def stages(self):
        return (self._sharpen, self._add)

    def _sharpen(self, current, degraded, context, noise):
        smooth = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(current, (1, 1, 1, 1), mode="replicate"), 3, 1)
        return 1.5 * current - 0.5 * smooth

    def _add(self, current, degraded, context, noise):
        side = current.shape[-1]
        return current + self.noise * noise.draw(0, channels=3, height_px=side, width_px=side)


def made_model(**changes) -> RiskModel:
    plain = {"steps": 0, "exponents": {"residual": 0.5, "structure": 0.2}, "scores": (-2.0, 0.0, 3.0), "errors": (0.5, 2.0, 9.0)}
    return RiskModel(**(plain | changes))


def signals_of(value: torch.Tensor) -> Signals:
    return Signals(*(value.clone() for _ in Signals._fields))


def blurred(image: torch.Tensor, defocus_um: float, rim_px: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The image out of focus, 8 bit, and the transfer function for its padded size."""
    height, width = image.shape[-2:]
    response = relative_transfer(torch.tensor([defocus_um]), Optics(), (height + 2 * rim_px, width + 2 * rim_px))
    light = blur(with_rim(srgb_to_linear(image), rim_px), response)[..., rim_px : rim_px + height, rim_px : rim_px + width]
    return (linear_to_srgb(light.clamp(0, 1)) * 255).round() / 255, response


# --- signals ----------------------------------------------------------------------------------------------------------------------------


def test_an_image_that_explains_the_blurred_one_leaves_no_residual_but_rounding(nuclei_image):
    degraded, response = blurred(nuclei_image, 2.0, 32)
    residual = blur_residual(nuclei_image, degraded, response, rim_px=32)
    steepest = 2.3  # of linear light over sRGB, near white
    assert residual.sqrt().max() <= 0.5 / 255 * steepest
    assert blur_residual(degraded, degraded, response, rim_px=32).mean() > 100 * residual.mean()


def test_a_structure_painted_in_shows_in_the_residual_and_there_only(nuclei_image):
    degraded, response = blurred(nuclei_image, 0.8, 32)
    before = blur_residual(nuclei_image, degraded, response, rim_px=32)
    grown = []
    for depth in (0.1, 0.2, 0.4):
        painted = nuclei_image.clone()
        painted[..., 40:48, 40:48] -= depth
        after = blur_residual(painted.clamp(0, 1), degraded, response, rim_px=32)
        grown.append((after - before)[..., 36:52, 36:52].mean().item())
        assert grown[-1] > 50 * (after - before).abs()[..., 90:, 90:].mean()
    assert 0 < grown[0] < grown[1] < grown[2]


def test_without_blur_nothing_is_hidden_and_the_residual_is_the_difference(nuclei_image):
    nothing = torch.ones(1, 3, 128, 65)
    assert hidden_energy(nuclei_image, nothing, rim_px=0, contrast=0.1).max() < 1e-10
    other = nuclei_image.flip(-1)
    difference = (srgb_to_linear(nuclei_image) - srgb_to_linear(other)).square().mean(1, keepdim=True)
    assert torch.allclose(blur_residual(nuclei_image, other, nothing, rim_px=0), difference, atol=1e-6)


def wave(cycles: int, side: int = 64) -> torch.Tensor:
    """An sRGB image of a cosine in linear light, amplitude 0.2 about 0.5."""
    light = 0.5 + 0.2 * torch.cos(2 * torch.pi * cycles * torch.arange(side) / side)
    return linear_to_srgb(light.expand(1, 3, side, side).contiguous())


def test_hidden_energy_is_none_within_the_band_and_half_the_squared_amplitude_beyond_it():
    response = torch.ones(1, 3, 64, 33)
    response[..., 10:] = 0  # nothing finer than 9 cycles across the image comes through
    assert hidden_energy(wave(6), response, rim_px=0, contrast=0.1).max() < 1e-9
    assert hidden_energy(wave(9), response, rim_px=0, contrast=0.1).max() < 1e-9
    assert hidden_energy(wave(12), response, rim_px=0, contrast=0.1).mean().item() == pytest.approx(0.2**2 / 2, rel=1e-4)


def test_more_is_hidden_the_stricter_the_contrast_and_never_what_passes_with_it():
    response = torch.linspace(-1, 1, 201).view(1, 1, 1, -1)
    shares = [hidden_share(response, contrast=contrast) for contrast in (0.05, 0.1, 0.3)]
    assert all((after >= before).all() for before, after in pairwise(shares))
    assert shares[1][response.abs() > 0.1001].max() == 0
    assert shares[1][0, 0, 0, 100].item() == pytest.approx(1, abs=1e-5)
    with pytest.raises(ValueError, match="contrast=0"):
        hidden_energy(torch.rand(1, 3, 8, 8), torch.ones(1, 3, 8, 5), rim_px=0, contrast=0)


def test_a_blur_hides_the_more_the_farther_from_focus(nuclei_image):
    hidden = [hidden_energy(nuclei_image, blurred(nuclei_image, z, 32)[1], rim_px=32, contrast=0.1).mean().item() for z in (0.8, 1.6, 3.2)]
    assert 0 <= hidden[0] < hidden[1] < hidden[2]


def test_variance_and_slope_worked_by_hand():
    samples = torch.stack([torch.full((3, 2, 2), value) for value in (0.2, 0.4, 0.6)])
    assert sample_variance(samples).flatten().tolist() == pytest.approx([0.04] * 4)
    ramp = (0.01 * torch.arange(16.0)).expand(1, 3, 8, 16)
    assert structure_energy(ramp)[..., 1:-1].sqrt().sub(0.01).abs().max() < 1e-6
    with pytest.raises(ValueError, match="1 samples have no spread"):
        sample_variance(samples[:1])


def test_spread_is_zero_for_what_draws_nothing_and_the_noise_of_what_does(nuclei_image):
    image = nuclei_image * 0.5 + 0.25  # away from where values are clipped
    restored = TiledRestorer(Guess(), overlap_px=16).restore(image)
    assert TrustSignals(Guess(), SETTINGS, seeds=3).of(image, restored).spread.abs().max() < 1e-4
    assert TrustSignals(Guess(noise=0.02), SETTINGS, seeds=1).of(image, restored).spread.max() == 0
    spread = TrustSignals(Guess(noise=0.02), SETTINGS, seeds=6).of(image, restored).spread
    assert spread.mean().item() == pytest.approx(0.02 * 255, rel=0.03)


def test_maps_are_the_same_for_any_order_of_the_tiles_and_only_the_spread_depends_on_the_seed(nuclei_image):
    image = torch.cat([nuclei_image, nuclei_image.flip(-2)], -1)[..., :100, :201]
    system = Guess(noise=0.02, defocus_um=None)
    restored = TiledRestorer(system, overlap_px=16).restore(image)
    there = TrustSignals(system, SETTINGS, seeds=2).of(image, restored, seed=5)
    back = TrustSignals(system, SETTINGS, seeds=2, order=lambda count: range(count)[::-1]).of(image, restored, seed=5)
    other = TrustSignals(system, SETTINGS, seeds=2).of(image, restored, seed=9)
    assert all(torch.equal(one, same) for one, same in zip(there, back, strict=True))
    assert not torch.equal(there.spread, other.spread)
    assert all(torch.equal(one, same) for one, same in zip(there[1:], other[1:], strict=True))
    assert all(values.shape == (1, 1, 100, 201) and values.min() >= 0 for values in there)


def test_the_image_of_a_batch_gets_the_maps_that_it_would_get_alone(nuclei_image):
    batch = torch.cat([nuclei_image, nuclei_image.flip(-1)])[..., :80, :80]
    signals = TrustSignals(Guess(noise=0.02), SETTINGS, seeds=2)
    together = signals.of(batch, batch)
    assert all(torch.equal(maps[1:], alone) for maps, alone in zip(together, signals.of(batch[1:], batch[1:]), strict=True))


def test_tiles_leave_no_seam_in_the_residual_where_the_blur_is_the_same_everywhere(nuclei_image):
    wide = torch.cat([nuclei_image, nuclei_image.flip(-1)], -1)
    degraded, _ = blurred(wide, 0.8, 32)
    signals = TrustSignals(Guess(defocus_um=0.8), SETTINGS, tile_px=64).of(degraded, wide)
    assert signals.residual.max() < 1.3  # of 255: the rounding of the degraded image, and no more at the seams
    assert signals.change.max() > 10 * signals.residual.max()
    assert (signals.defocus_um == 0.8).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 90), (64, 64), (65, 127)])
def test_images_of_any_size_get_maps_of_their_size(size):
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    maps = RiskMap(Guess(noise=0.01), made_model()).of(image)
    assert all(values.shape == (1, 1, *size) and torch.isfinite(values).all() for values in maps)


def test_a_map_restores_what_it_was_not_given(nuclei_image):
    system = Guess(noise=0.02)
    restored = TiledRestorer(system).restore(nuclei_image, seed=3)
    risk = RiskMap(system, made_model())
    assert all(
        torch.equal(one, same) for one, same in zip(risk.of(nuclei_image, seed=3), risk.of(nuclei_image, restored, seed=3), strict=True)
    )


def test_what_has_no_defocus_or_another_size_is_refused(nuclei_image):
    class Blind(Guess):
        def prepare(self, degraded):
            return (degraded,)

    with pytest.raises(ValueError, match="does not estimate the defocus"):
        TrustSignals(Blind(), SETTINGS).of(nuclei_image, nuclei_image)
    with pytest.raises(ValueError, match="of one shape"):
        TrustSignals(Guess(), SETTINGS).of(nuclei_image, nuclei_image[..., :64])
    with pytest.raises(ValueError, match="restored spans"):
        TrustSignals(Guess(), SETTINGS).of(nuclei_image, nuclei_image + 1)


def test_the_error_to_be_predicted_is_in_grey_levels():
    clean = torch.full((1, 3, 20, 20), 0.4)
    assert local_error(clean + 5 / 255, clean, window_px=4).sub(5).abs().max() < 1e-4


# --- the model --------------------------------------------------------------------------------------------------------------------------


@given(st.lists(st.floats(0, 3), min_size=6, max_size=6), st.lists(st.floats(0, 60), min_size=6, max_size=6), st.floats(0.01, 50))
def test_no_signal_that_grows_lowers_the_risk(powers, values, more):
    model = made_model(exponents=dict(zip(Signals._fields, powers, strict=True)))
    maps = [torch.full((1, 1, 1, 1), value) for value in values]
    before = model.expected_error(Signals(*maps))
    for at in range(6):
        grown = [value + more * (at == other) for other, value in enumerate(maps)]
        assert model.expected_error(Signals(*grown)) >= before


def test_the_curve_goes_through_its_knots_and_is_level_beyond_them():
    model = made_model(exponents={"residual": 1.0}, scores=(-1.0, 0.0, 1.0), errors=(1.0, 3.0, 4.0))
    signal = (torch.tensor([-5.0, -1.0, -0.5, 0.0, 0.5, 1.0, 5.0]).exp() - 0.1).clamp(min=0).view(1, 1, 1, -1)
    assert model.expected_error(signals_of(signal)).flatten().tolist() == pytest.approx([1, 1, 2, 3, 3.5, 4, 4], abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"exponents": {"residual": -0.1}}, "must not be negative"),
        ({"exponents": {"luck": 1.0}}, "luck"),
        ({"exponents": {}}, "nothing"),
        ({"errors": (0.5, 9.0, 2.0)}, "must not fall"),
        ({"scores": (0.0, 0.0, 3.0)}, "must rise"),
        ({"errors": (0.5, 9.0)}, "no curve"),
        ({"exponents": {"residual": float("nan")}}, "finite"),
        ({"exponents": {"residual": float("inf")}}, "finite"),
        ({"scores": (float("-inf"), 0.0, 3.0)}, "finite"),
        ({"scores": (-2.0, 0.0, float("nan"))}, "finite"),
        ({"errors": (0.5, 2.0, float("inf"))}, "finite"),
        ({"errors": (float("nan"), float("nan"), float("nan"))}, "finite"),
        ({"exponents": {"residual": 1e308}}, "finite"),
    ],
)
def test_numbers_that_would_break_the_laws_are_refused(changes, why):
    with pytest.raises(ValueError, match=why):
        made_model(**changes)


def test_settings_of_signals_that_are_no_numbers_are_refused():
    for bad in ({"window_px": float("nan")}, {"window_px": float("inf")}, {"window_px": 0.0}, {"contrast": float("nan")}):
        with pytest.raises(ValueError, match="must be positive"):
            SignalSettings(**bad)


@given(st.integers(-200, 200), st.floats(0, 30))
def test_knots_closer_than_float32_tells_apart_still_make_a_curve(step, signal):
    low = 4.0
    scores = (low, low + 1e-9, low + 2e-9)
    assert len(set(torch.tensor(scores).tolist())) == 1
    model = made_model(exponents={"residual": 1.0}, scores=scores, errors=(1.0, 3.0, 4.0))
    for value in (signal, torch.tensor(low).exp().item() - 0.1 + step * 1e-5):
        found = model.expected_error(signals_of(torch.full((1, 1, 1, 1), value)))
        assert found.dtype == torch.float32
        assert 1 <= found.item() <= 4


@pytest.mark.parametrize("count", [100, 101, 199, 200])
def test_the_fewest_pixels_that_are_taken_make_a_model(count):
    features, error = synthetic(count)
    model = fit_risk(features, error, steps=0, settings=SETTINGS)
    assert model.errors[-1] >= model.errors[0] >= 0
    assert model.errors[-1] > error.mean()


def synthetic(count: int = 4000) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    gen = torch.Generator().manual_seed(1)
    residual, structure, change = (torch.rand(count, generator=gen) * 10 for _ in range(3))
    noise = torch.rand(count, generator=gen) * 2
    return {"residual": residual, "structure": structure, "change": change}, residual.sqrt() * noise / (1 + change)


def test_a_fit_finds_the_signals_that_tell_and_is_right_on_average():
    features, error = synthetic()
    model = fit_risk(features, error, steps=3, settings=SETTINGS)
    assert model.exponents["residual"] > 5 * model.exponents["structure"]
    assert model.exponents["change"] == 0  # it speaks for a pixel, which no signal may
    expected = model.expected_error(
        signals_of(torch.zeros(1, 1, 4000, 1))._replace(**{k: v.view(1, 1, -1, 1) for k, v in features.items()})
    )
    assert expected.mean().item() == pytest.approx(error.mean().item(), rel=0.03)
    bins = reliability(expected, error.view_as(expected), bins=5)
    assert (bins.expected - bins.error).abs().max() < 0.1 * bins.error.max()
    assert rank_correlation(expected, error.view_as(expected)) > 0.2
    with pytest.raises(ValueError, match="99 pixels are too few"):
        fit_risk({name: values[:99] for name, values in features.items()}, error[:99], steps=0, settings=SETTINGS)


def test_models_come_back_from_the_disk_as_they_were(tmp_path):
    models = RiskModels(weights_sha256="ab" * 32, models=(made_model(), made_model(steps=4, exponents={"spread": 0.3})))
    models.save(tmp_path)
    assert RiskModels.load(tmp_path) == models
    assert RiskModels.load(tmp_path, weights_sha256="ab" * 32).for_steps(4).needs_spread
    assert not models.for_steps(0).needs_spread


def test_a_file_that_is_not_exactly_a_model_is_refused(tmp_path):
    path = RiskModels(weights_sha256="ab" * 32, models=(made_model(),)).save(tmp_path)
    sound = json.loads(path.read_text())
    stranger, poorer, newer, wrong = (json.loads(path.read_text()) for _ in range(4))
    stranger["risk"]["models"][0]["luck"] = 1
    del poorer["risk"]["models"][0]["settings"]["contrast"]
    newer["format_version"] = 2
    wrong["risk"]["models"][0]["exponents"]["residual"] = -1.0
    for place in (("exponents", "residual"), ("scores", 0), ("errors", -1), ("settings", "window_px")):
        broken = json.loads(json.dumps(sound))
        broken["risk"]["models"][0][place[0]][place[1]] = float("nan")
        path.write_text(json.dumps(broken))
        with pytest.raises(ConfigError):
            RiskModels.load(tmp_path)
    for broken, why in ((stranger, "luck"), (poorer, "contrast"), (newer, "format_version"), (wrong, "negative"), ([], "format_version")):
        path.write_text(json.dumps(broken))
        with pytest.raises(ConfigError, match=why):
            RiskModels.load(tmp_path)
    path.write_text("{")
    with pytest.raises(ConfigError, match="not JSON"):
        RiskModels.load(tmp_path)
    path.write_text(json.dumps(sound))
    with pytest.raises(ValueError, match="other weights"):
        RiskModels.load(tmp_path, weights_sha256="cd" * 32)
    with pytest.raises(ValueError, match="never calibrated, only with 0"):
        RiskModels.load(tmp_path).for_steps(2)
    path.unlink()
    with pytest.raises(ValueError, match=r"holds no risk.json.*leave the risk map out"):
        RiskModels.load(tmp_path)


def test_a_model_that_needs_a_spread_is_not_used_without_one():
    with pytest.raises(ValueError, match="seeds=1"):
        RiskMap(Guess(), made_model(exponents={"spread": 1.0}), seeds=1)
    assert RiskMap(Guess(), made_model(), seeds=1).seeds == 0


def test_the_embedded_model_of_risk_is_about_the_embedded_weights():
    system = mop.load_default()
    models = RiskModels.load(default_folder(), weights_sha256=system.weights_sha256)
    assert models.for_steps(0).exponents.keys() == set(Signals._fields) - {"spread"}
    assert models.for_steps(system.fine.settings.process.steps).needs_spread


# --- files ------------------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """The command with a stand-in for the model, whose risk.json lies in a folder of its own."""
    folder = tmp_path / "weights"
    RiskModels(weights_sha256="ab" * 32, models=(made_model(),)).save(folder)
    system = Guess()

    def ready(options, **_):
        made = {"restorer": TiledRestorer(system, overlap_px=16), "system": system, "device": "cpu", "precision": "fp32"}
        return ReadyRestorer(**made, model_id="guess", weights_sha256="ab" * 32, parameters={"steps": 0})

    def call(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(assemble, "ready_restorer", ready)
        monkeypatch.setattr(mop, "default_folder", lambda: folder)
        code = cli.main(["restore", "--tile", "64", "--overlap", "16", *map(str, words)])
        return code, capsys.readouterr().err

    call.folder, call.system = folder, system
    return call


@pytest.fixture
def picture(nuclei_image, tmp_path) -> Path:
    path = tmp_path / "in.png"
    Image.fromarray(to_uint8(nuclei_image[..., :90, :])).save(path, dpi=(101600, 101600))  # 0.25 um
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_command_writes_numbers_and_a_picture_beside_the_image(run, picture, tmp_path):
    code, told = run(picture, "-o", tmp_path / "out" / "a.png", "--risk-map")
    assert (code, names(tmp_path / "out")[:3]) == (0, ["a.png", "a.risk.png", "a.risk.tiff"]), told
    risk = read_risk(tmp_path / "out" / "a.risk.tiff")
    assert risk.shape == (1, 1, 90, 128)
    assert risk.dtype == torch.float32
    assert 0.5 <= risk.min() < risk.max() <= 9
    assert read_image_file(tmp_path / "out" / "a.risk.tiff").bit_depth == 16  # every part that takes images takes it
    for name in ("a.risk.tiff", "a.risk.png"):
        record = read_provenance(tmp_path / "out" / name)
        image = read_provenance(tmp_path / "out" / "a.png")
        assert "expected error of an AI-restored image" in record.notice
        assert (record.input_sha256, record.created_utc, record.model_id) == (image.input_sha256, image.created_utc, "guess")
        assert (record.parameters["risk_seeds"], record.parameters["risk_stored_per_level"]) == (0, 256)
        assert record.pixel_um == pytest.approx(0.25, rel=1e-3)
    with tifffile.TiffFile(tmp_path / "out" / "a.risk.tiff") as tiff:
        assert tiff.pages[0].photometric == 1
    without = tmp_path / "plain.png"
    assert run(picture, "-o", without)[0] == 0
    assert np.array_equal(np.asarray(Image.open(without)), np.asarray(Image.open(tmp_path / "out" / "a.png")))


def test_files_that_are_there_are_refused_left_or_replaced_as_was_asked(run, picture, tmp_path):
    out = tmp_path / "out.png"
    mine = risk_paths(out)[0]
    mine.write_text("mine")
    code, told = run(picture, "-o", out, "--risk-map")
    assert code == 4
    assert "out.risk.tiff: exists already; --overwrite replaces it" in told
    assert run.system.tiles_seen == 0  # before the long part
    assert (mine.read_text(), out.exists(), risk_paths(out)[1].exists()) == ("mine", False, False)
    assert run(picture, "-o", out, "--risk-map", "--overwrite")[0] == 0
    assert read_risk(mine).shape == (1, 1, 90, 128)
    before = [path.stat().st_mtime_ns for path in (out, *risk_paths(out))]
    assert run(picture, "-o", out, "--risk-map", "--skip-existing")[0] == 0
    assert before == [path.stat().st_mtime_ns for path in (out, *risk_paths(out))]


@pytest.mark.parametrize("left", [[0], [1], [0, 1]])
def test_maps_that_a_killed_run_left_without_their_image_are_made_anew_by_skip_existing(run, picture, tmp_path, left):
    out = tmp_path / "out" / "a.png"
    out.parent.mkdir()
    for index in left:
        risk_paths(out)[index].write_text("old")
    assert run(picture, "-o", out, "--risk-map")[0] == 4
    assert run(picture, "-o", out, "--risk-map", "--skip-existing")[0] == 0
    assert out.is_file()
    assert read_risk(risk_paths(out)[0]).shape == (1, 1, 90, 128)
    assert risk_paths(out)[1].read_bytes()[:4] == b"\x89PNG"


def test_an_image_that_came_meanwhile_is_not_replaced_by_a_run_that_leaves_what_exists(run, picture, tmp_path, monkeypatch):
    out = tmp_path / "a.png"
    restore = TiledRestorer.restore
    monkeypatch.setattr(TiledRestorer, "restore", lambda *args, **kwargs: (out.write_text("theirs"), restore(*args, **kwargs))[1])
    code, told = run(picture, "-o", out, "--risk-map", "--skip-existing")
    assert (code, "exists already" in told, out.read_text()) == (4, True, "theirs")
    assert not any(path.exists() for path in risk_paths(out))


@pytest.mark.parametrize("broken_disk", [False, True])
@pytest.mark.parametrize("existing", [[], ["a.risk.tiff"], ["a.risk.png", "a.png"], ["a.risk.tiff", "a.risk.png", "a.png"]])
@pytest.mark.parametrize("fails_at", [1, 2, 3])
def test_a_write_that_fails_leaves_the_three_files_as_they_were(run, picture, tmp_path, monkeypatch, fails_at, existing, broken_disk):
    from pathorestore.pipelines import image_file, siblings

    (tmp_path / "out").mkdir()
    for name in existing:
        (tmp_path / "out" / name).write_text(f"old {name}")
    real, calls = risk_files.write_atomic, []

    def fail(path: Path, data: bytes) -> None:
        calls.append(path.name)
        if len(calls) == fails_at:
            raise OSError(28, "cannot be written: no space left on device", str(path))
        real(path, data)

    monkeypatch.setattr(risk_files, "write_atomic", fail)
    monkeypatch.setattr(image_file, "write_atomic", fail)
    if broken_disk:  # on which nothing can be put back
        monkeypatch.setattr(siblings, "write_atomic", lambda path, data: _full(path))
    code, told = run(picture, "-o", tmp_path / "out" / "a.png", "--risk-map", "--overwrite")
    assert code == 4
    assert "no space left" in told
    assert calls == ["a.risk.tiff", "a.risk.png", "a.png"][:fails_at]
    lost = ["a.risk.tiff", "a.risk.png"][: fails_at - 1] if broken_disk else []
    left = {path.name: path.read_text() for path in (tmp_path / "out").iterdir() if path.name.startswith(("a.", ".pathorestore"))}
    assert left == {name: f"old {name}" for name in existing if name not in lost}


def _full(path: Path) -> None:
    raise OSError(28, "no space left on device", str(path))


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_slides_are_refused_before_any_work_with_what_to_do_instead(run, picture, tmp_path, options):
    code, told = run(picture, "-o", tmp_path / "out.tiff", "--risk-map", "--pyramid", *options)
    assert code == 2
    assert "--risk-map is for plain images" in told
    assert "leave it out" in told
    assert not (tmp_path / "out.tiff").exists()
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "z.svs").write_bytes(b"II*\0")
    Image.open(picture).save(tmp_path / "in" / "a.png")
    code, told = run(tmp_path / "in", "-o", tmp_path / "out", "--risk-map", *options)
    assert (code, "z.svs: --risk-map is for plain images" in told, (tmp_path / "out").exists()) == (2, True, False)
    assert run.system.tiles_seen == 0
    assert run(picture, "-o", tmp_path / "out.png", "--risk-map", "--dry-run")[0] == 0


def test_two_images_that_would_share_a_risk_map_are_found_before_any_work(tmp_path):
    jobs = [Job(Path("in/a.png"), tmp_path / "a.png"), Job(Path("in/a.tif"), tmp_path / "a.tif")]
    with pytest.raises(PlanError, match=r"risk map of in/a.tif would be .*a.risk.tiff, the output of in/a.png"):
        check_risk_names(jobs)
    with pytest.raises(PlanError, match="an input"):
        check_risk_names([Job(tmp_path / "a.risk.png", tmp_path / "a.png")])
    check_risk_names([Job(Path("in/a.png"), tmp_path / "a.png"), Job(Path("in/b.png"), tmp_path / "b.png")])


@pytest.mark.parametrize("shard", ["0/2", "1/2"])
def test_shards_do_not_hide_from_each_other_that_they_would_write_the_same_risk_map(run, picture, tmp_path, shard):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "a.tif"):
        Image.open(picture).save(tmp_path / "in" / name)
    code, told = run(tmp_path / "in", "-o", tmp_path / "out", "--risk-map", "--shard", shard)
    assert (code, "restore them into different folders" in told, (tmp_path / "out").exists()) == (2, True, False), told
    assert run(tmp_path / "in", "-o", tmp_path / "out")[0] == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--risk-seeds", "3"], "--risk-seeds belongs to --risk-map"),
        (["--risk-map", "--risk-seeds", "1"], "--risk-seeds 1 changes nothing"),
        (["--risk-map", "--risk-seeds", "5"], "--risk-seeds 5 changes nothing"),
    ],
)
def test_options_that_do_not_fit_are_told(run, picture, tmp_path, options, why):
    code, told = run(picture, "-o", tmp_path / "out.png", *options)
    assert (code, why in told) == (2, True), told


@pytest.mark.parametrize(("options", "seeds"), [([], 3), (["--risk-seeds", "2"], 2)])
def test_a_model_that_needs_a_spread_is_run_for_as_many_seeds_as_was_asked(run, picture, tmp_path, options, seeds):
    RiskModels(weights_sha256="ab" * 32, models=(made_model(exponents={"spread": 1.0}),)).save(run.folder)
    assert run(picture, "-o", tmp_path / "a.png", "--risk-map", *options)[0] == 0
    assert read_provenance(tmp_path / "a.risk.tiff").parameters["risk_seeds"] == seeds
    code, told = run(picture, "-o", tmp_path / "b.png", "--risk-map", "--risk-seeds", "1")
    assert (code, "--risk-seeds 1 gives no spread; take at least 2" in told) == (2, True), told


def test_a_model_whose_risk_was_never_calibrated_gives_no_map(run, picture, tmp_path):
    (run.folder / "risk.json").unlink()
    code, told = run(picture, "-o", tmp_path / "out.png", "--risk-map")
    assert code == 2
    assert "holds no risk.json" in told
    assert run(picture, "-o", tmp_path / "out.png")[0] == 0


def test_the_overlay_shows_the_picture_in_gray_under_the_colours_of_the_ramp_with_a_legend():
    restored = torch.rand(1, 3, 50, 320, generator=torch.Generator().manual_seed(0))
    risk = torch.zeros(1, 1, 50, 320)
    risk[..., 160:] = 3 * OVERLAY_TOP_LEVELS
    overlay = overlay_picture(risk, restored).astype(int)
    assert overlay.shape[0] > 60
    assert overlay.shape[1] == 320
    safe, risky = overlay[:50, :160], overlay[:50, 160:]
    assert safe[..., 2].mean() > safe[..., 0].mean() + 10  # blue
    assert risky[..., 0].mean() > risky[..., 2].mean() + 80  # yellow
    assert (
        np.corrcoef(safe[..., 1].ravel(), (restored[0, :, :, :160] * torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None]).sum(0).ravel())[
            0, 1
        ]
        > 0.99
    )
    assert len(np.unique(overlay[60], axis=0)) > 50  # the ramp
    assert overlay_picture(risk[..., :20], restored[..., :20]).shape[1] == 300


@given(st.floats(0, 300))
def test_a_map_is_stored_to_a_256th_of_a_level_and_saturates(level):
    stored = risk_pixels(torch.full((1, 1, 2, 3), level))
    assert (stored.shape, stored.dtype) == ((2, 3, 1), np.uint16)
    assert stored[0, 0, 0] / 256 == pytest.approx(min(level, 65535 / 256), abs=0.5 / 256 + 1e-4)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_risk_that_is_not_known_is_not_stored_as_none(value):
    with pytest.raises(BadResult, match="not finite"):
        risk_pixels(torch.tensor([[[[1.0, value]]]]))


def test_a_map_that_is_no_map_is_refused(tmp_path):
    tifffile.imwrite(tmp_path / "x.risk.tiff", np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="holds uint8"):
        read_risk(tmp_path / "x.risk.tiff")


# --- how it is calibrated ---------------------------------------------------------------------------------------------------------------


def test_the_calibration_script_fits_judges_draws_and_saves(tmp_path, monkeypatch, nuclei_image):
    sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
    import calibrate_risk

    class Small:
        weights_sha256 = "ef" * 32
        tile_px, multiple_px = 64, 8
        fine, prompter = None, type("P", (), {"optics": None})()
        stages = Guess(noise=0.02).stages

        def prepare(self, degraded):
            return Context((0.02 / structure_energy(degraded).mean((1, 2, 3)).sqrt()).clamp(max=8))  # the softer the farther

    small = Small()
    for folder in ("train", "val"):
        (tmp_path / folder).mkdir()
        for name in ("a", "b"):
            Image.fromarray(to_uint8(nuclei_image.roll(9 * ord(name), -1)[..., :64, :64])).save(tmp_path / folder / f"{name}.png")
    monkeypatch.setattr(calibrate_risk.MoPRestorer, "from_pretrained", lambda _: small)
    monkeypatch.setattr(calibrate_risk, "generative_steps", lambda _: 4)
    options = (
        f"--train {tmp_path}/train --val {tmp_path}/val --json {tmp_path}/r.json --picture {tmp_path}/r.png --save {tmp_path} --seeds 2"
    )
    calibrate_risk.main(options.split())
    written = json.loads((tmp_path / "r.json").read_text())
    models = RiskModels.load(tmp_path, weights_sha256="ef" * 32)
    assert [model.steps for model in models.models] == [0, 4]
    assert models.for_steps(4).exponents.keys() == set(Signals._fields)
    both = written["results"]["two-stage"]["both"]
    assert (both["pairs"], both["images"], both["pixels"]) == (16, 2, 16 * 64)
    assert both["signals"]["risk"]["gain"] <= 1
    assert written["results"]["coarse"]["ideal"]["curve"]["coverage"][-1] == 1
    assert (tmp_path / "r.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_embedded_map_knows_where_the_errors_are_in_a_stain_that_it_was_never_shown():
    from pathorestore.degradations.optical import degrade
    from pathorestore.degradations.recipes import Setting
    from pathorestore.pipelines.demo import demo_image

    system = mop.load_default().coarse_only()
    model = RiskModels.load(default_folder()).for_steps(0)
    sharp = demo_image()[..., 128:384, 128:384]
    risks, errors = [], []
    for z in (0.8, 2.4):
        pair = degrade(sharp, torch.tensor([z]), setting=Setting.ideal(), generator=torch.Generator().manual_seed(0))
        restored = system.restore(pair.degraded)
        risks.append(RiskMap(system, model).of(pair.degraded, restored).risk)
        errors.append(local_error(restored, pair.clean, window_px=model.settings.window_px))
    assert rank_correlation(torch.stack(risks), torch.stack(errors)) > 0.5
