"""Generative enlargement of files: pieces of one picture, marks that nobody can miss, slides beside images, what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from slide_samples import CLOCK, OPTIONS, files_in, level_pixels, tissue_pixels, write_slide
from torch import nn

from pathorestore import cli
from pathorestore._torchvision import ensure_torchvision
from pathorestore.degradations.resize import resized
from pathorestore.functional.trust import sample_variance
from pathorestore.image import from_uint8, to_uint8
from pathorestore.pipelines.batch import BadResult, Job, PlanError, marked, plan_outputs
from pathorestore.pipelines.enlarge import DrawnPieces, Enlargement, enlarged, target_size
from pathorestore.pipelines.enlargement_risk import ENLARGEMENT_RISK_NOTICE, Samples, enlargement_signals
from pathorestore.pipelines.provenance import ENLARGED_NOTICE, GENERATED_NOTICE, read_provenance
from pathorestore.pipelines.risk_files import read_risk
from pathorestore.pipelines.risk_model import RiskModel, RiskModels
from pathorestore.pipelines.upscalers import UpscaleOptions, is_generative, ready_upscaler
from pathorestore.slide.enlarging import Enlarging
from pathorestore.slide.restore import RestoreSlide
from pathorestore.slide.source import open_slide

ensure_torchvision()
pytest.importorskip("diffusers", reason="the extra `diffusion`")

from histo_samples import awake_nano  # noqa: E402

from pathorestore.pipelines.generate import GeneratedPieces  # noqa: E402
from pathorestore.pipelines.histo_diffusion import HistoDiffusion, HistoDiffusionConfig  # noqa: E402


@pytest.fixture(scope="module")
def model():
    """A nano system whose branch is awake, of small tiles and few steps."""
    made = awake_nano()
    return made.with_settings(replace(made.settings, tile_px=32, steps=2))


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    model.save_pretrained(path := tmp_path_factory.mktemp("weights") / "drawing")
    return path


@pytest.fixture
def image(generator):
    """A soft picture of 40 x 52 px."""
    return F.interpolate(torch.rand(1, 3, 8, 10, generator=generator), size=(40, 52), mode="bicubic").clamp(0, 1)


@pytest.fixture
def run(capsys, folder):
    def call(*words, model=folder):
        code = cli.main(["upscale", *map(str, words), "--model", str(model)])
        return code, *capsys.readouterr()

    return call


def test_one_piece_is_what_the_system_makes_of_the_image(model, image):
    pieces = GeneratedPieces(system=model, tile_px=160, overlap_px=32, seed=3)
    assert torch.allclose(enlarged(pieces, image, (100, 130)), model.upscale(image, out_size=(100, 130), seed=3), atol=1e-4)
    coarse = replace(pieces, coarse_only=True)
    assert torch.allclose(enlarged(coarse, image, (100, 130)), model.coarse(image, out_size=(100, 130)), atol=1e-5)


@pytest.mark.slow
def test_any_pieces_make_the_same_image(model, image):
    out = target_size((40, 52), scale=3.96)
    whole = enlarged(GeneratedPieces(system=model, tile_px=256, overlap_px=16), image, out)
    for tile, overlap in ((64, 64), (80, 80)):
        parts = GeneratedPieces(system=model, tile_px=tile, overlap_px=overlap)
        assert (enlarged(parts, image, out) - whole).abs().max() < 1e-3
    careless = GeneratedPieces(system=model, tile_px=32, overlap_px=16)
    assert (enlarged(careless, image, out) - whole).abs().max() > 1e-3


def test_every_pixel_is_made_once_from_what_interpolation_needs(model):
    """Cutting an enlargement by interpolation alone changes nothing."""

    class Bare:
        grid_px, settings = 16, model.settings

        @staticmethod
        def coarse_region(part):
            return part

    size, out, image = (37, 61), (101, 163), torch.rand(1, 3, 37, 61, generator=torch.Generator().manual_seed(3))
    pieces = GeneratedPieces(system=Bare(), tile_px=32, overlap_px=16, coarse_only=True)
    count = torch.zeros(out)
    rows, columns = pieces.cuts(size, out)
    for row in rows:
        for column in columns:
            count[slice(*row.made), slice(*column.made)] += 1
    assert (count == 1).all()
    assert (len(rows), len(columns)) == (3, 5), "a narrow rest belongs to the piece before it, which sees it anyway"
    assert all(last - first <= 32 + 2 * 16 for first, last in (row.worked(out[0], beyond_px=16) for row in rows))
    assert max(row.read[1] - row.read[0] for row in rows) < 30
    whole = GeneratedPieces(system=Bare(), tile_px=256, overlap_px=16, coarse_only=True)
    assert torch.allclose(enlarged(pieces, image, out), enlarged(whole, image, out), atol=1e-6)


def test_an_image_below_the_least_size_is_one_piece(model, generator):
    image = torch.rand(1, 3, 5, 60, generator=generator)
    pieces = GeneratedPieces(system=model, tile_px=32, overlap_px=16, seed=2)
    assert [len(axis) for axis in pieces.cuts((5, 60), (10, 120))] == [1, 1]
    assert torch.equal(enlarged(pieces, image, (10, 120)), model.upscale(image, out_size=(10, 120), seed=2))
    assert torch.equal(enlarged(replace(pieces, coarse_only=True), image, (10, 120)), model.coarse(image, out_size=(10, 120)))


@pytest.mark.parametrize("coarse_only", [False, True])
def test_progress_counts_the_steps_of_all_pieces(model, image, coarse_only):
    pieces, told = GeneratedPieces(system=model, tile_px=64, overlap_px=16, coarse_only=coarse_only), []
    enlarged(pieces, image, (90, 104), progress=lambda done, total: told.append((done, total)))
    total = 4 * (1 if coarse_only else 2)
    assert told == [(done, total) for done in range(1, total + 1)]


@pytest.mark.parametrize(
    ("sides", "told"), [((36, 16), "--tile 36 must be a multiple of 16"), ((64, 0), "--overlap 0 .* try --overlap 16")]
)
def test_pieces_off_the_grid_are_refused_with_a_remedy(model, sides, told):
    with pytest.raises(ValueError, match=told):
        GeneratedPieces(system=model, tile_px=sides[0], overlap_px=sides[1])


def test_a_slide_is_what_its_image_would_be(model, tmp_path):
    """Also where a run was stopped and goes on, and where glass is left alone."""
    pixels = np.full((110, 150, 3), 243, np.uint8)
    pixels[:, :40] = tissue_pixels(110, 40)
    source = write_slide(tmp_path / "in.tif", pixels, levels=1)
    pieces = GeneratedPieces(system=model, tile_px=64, overlap_px=64, seed=4)
    whole = to_uint8(enlarged(replace(pieces, tile_px=512), from_uint8(pixels), (275, 375)))
    statuses = []
    work = RestoreSlide(
        work=Enlarging(pieces=pieces, target=Enlargement(scale=2.5), notice=GENERATED_NOTICE),
        options=replace(OPTIONS, tile_px=64, overlap_px=64, all_tiles=False),
        model_id="test",
        weights_sha256=None,
        parameters={},
        clock=lambda: CLOCK,
        seed=4,
        on_status=statuses.append,
    )
    assert 0 < work.estimate(source, timed=True).seconds < 600
    asked = iter([True])
    with pytest.raises(KeyboardInterrupt):
        replace(work, stop=lambda: next(asked, False))(Job(source, tmp_path / "out.tif"))
    statuses.clear()
    work(Job(source, tmp_path / "out.tif"))
    made, record = level_pixels(tmp_path / "out.tif"), read_provenance(tmp_path / "out.tif")
    tiles = record.parameters["tiles_drawn"]
    assert 0 < tiles < record.parameters["tiles"] == 20
    assert np.abs(made[:, :100].astype(int) - whole[:, :100]).max() <= 1
    assert (made[:, -20:] == 243).all()
    assert record.notice == GENERATED_NOTICE
    restored = [status for status in statuses if status.phase == "tiles"]
    assert [status.done for status in restored] == list(range(1, len(restored) + 1))
    assert {status.total for status in restored} == {len(restored)}
    assert 0 < len(restored) < 2 * tiles
    open_slide(tmp_path / "out.tif").close()


def test_what_is_not_finite_fails_or_is_interpolated_and_marked(tmp_path):
    torch.manual_seed(0)
    broken = HistoDiffusion.of(HistoDiffusionConfig.nano()).eval()
    nn.init.constant_(broken.sampler.denoiser.unet.model.conv_out.bias, float("nan"))
    source = write_slide(tmp_path / "in.tif", tissue_pixels(80, 80), levels=1)
    fields = {"model_id": "t", "weights_sha256": None, "parameters": {}, "clock": lambda: CLOCK}
    # pieces that begin to read at the same place
    work = Enlarging(pieces=GeneratedPieces(system=broken, tile_px=64, overlap_px=64), target=Enlargement(scale=2))
    with pytest.raises(BadResult, match="--on-bad-tile pass"):
        RestoreSlide(work=work, options=OPTIONS, **fields)(Job(source, tmp_path / "out.tif"))
    (tmp_path / "passed").mkdir()
    RestoreSlide(work=work, options=replace(OPTIONS, on_bad_tile="pass"), **fields)(Job(source, target := tmp_path / "passed" / "out.tif"))
    assert read_provenance(target).parameters["not_finite"] == 4
    events = json.loads((tmp_path / "passed" / "out.tif.provenance.json").read_text())["events"]
    assert {(event["y_px"], event["x_px"]) for event in events} == {(0, 0), (0, 32), (32, 0), (32, 32)}
    assert level_pixels(target).std() > 5


@pytest.mark.parametrize("coarse_only", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_small_images_and_infinite_values_are_told_too(coarse_only, value):
    torch.manual_seed(0)
    broken = HistoDiffusion.of(HistoDiffusionConfig.nano()).eval()
    broken = broken.with_settings(replace(broken.settings, colours="none"))
    for last in (broken.sampler.autoencoder.model.decoder.conv_out, broken.restoration.conv_last):
        nn.init.constant_(last.bias, value)
    pieces = GeneratedPieces(system=broken, tile_px=32, overlap_px=32, coarse_only=coarse_only)
    for size in ((6, 40), (40, 40)):
        rows, columns = pieces.cuts(size, (2 * size[0], 2 * size[1]))
        made = pieces.make(torch.rand(1, 3, *size), rows[0], columns[0], size, (2 * size[0], 2 * size[1]))
        assert made.isnan().all()
    with pytest.raises(BadResult):
        (broken.coarse if coarse_only else broken.upscale)(torch.rand(1, 3, 20, 20), scale=2)


def test_a_thin_image_is_not_blown_up(model, generator):
    image, seen = torch.rand(1, 3, 1, 600, generator=generator), []
    handle = model.restoration.register_forward_pre_hook(lambda _module, args: seen.append(tuple(args[0].shape[-2:])))
    assert model.coarse(image, scale=1).shape == (1, 3, 1, 600)
    handle.remove()
    assert max(seen[0]) < 700


@pytest.mark.parametrize(
    ("name", "mark", "expected"),
    [
        ("a.png", ".generated", "a.generated.png"),
        ("a.ome.tiff", ".generated", "a.ome.generated.tiff"),
        ("a.generated.png", ".generated", "a.generated.png"),
        ("a.png", "", "a.png"),
    ],
)
def test_marks_stand_before_the_suffix_once(name, mark, expected):
    assert marked(name, mark) == expected


def test_marks_are_for_names_that_nobody_chose(tmp_path):
    (tmp_path / "in").mkdir()
    for name in ("a.png", "b.svs", "c.bmp"):
        (tmp_path / "in" / name).touch()
    jobs = plan_outputs([tmp_path / "in"], tmp_path / "out", mark=".generated")
    assert {job.output.name for job in jobs} == {
        "a.generated.png",
        "b.svs.generated.tiff",
        marked(plan_outputs([tmp_path / "in" / "c.bmp"], f"{tmp_path}/o/")[0].output.name, ".generated"),
    }
    assert plan_outputs([tmp_path / "in" / "a.png"], tmp_path / "mine.png", mark=".generated")[0].output.name == "mine.png"


def test_the_command_marks_what_it_generates(tmp_path, run):
    (tmp_path / "in").mkdir()
    pixels = tissue_pixels(30, 40)
    Image.fromarray(pixels).save(tmp_path / "in" / "image.png")
    write_slide(tmp_path / "in" / "slide.tif", pixels, tile=16, levels=2)
    code, _, err = run(tmp_path / "in", "-o", tmp_path / "out", "--scale", 2, "--seed", 7, "--tile", 64, "--overlap", 32)
    assert (code, err) == (0, "")
    for name in ("image.generated.png", "slide.generated.tif"):
        record = read_provenance(tmp_path / "out" / name)
        assert (record.notice, record.seed, record.model_id) == (GENERATED_NOTICE, 7, "drawing")
        told = record.parameters
        assert (told["generative"], told["steps"], told["sampler"], told["tile_px"], told["overlap_px"]) == (True, 2, "ddpm", 64, 32)
    code, _, err = run(tmp_path / "in" / "image.png", "-o", tmp_path / "mine.png", "--scale", 2, "--seed", 7, "--tile", 64, "--overlap", 32)
    assert code == 0
    assert "mine.png will hold what was generated; a name such as mine.generated.png tells everyone" in err
    assert np.array_equal(np.asarray(Image.open(tmp_path / "mine.png")), np.asarray(Image.open(tmp_path / "out" / "image.generated.png")))


@pytest.mark.parametrize("pyramid", [[], ["--pyramid"]])
def test_what_was_generated_stays_so_whatever_is_done_to_it(tmp_path, run, pyramid):
    Image.fromarray(tissue_pixels(30, 40)).save(tmp_path / "in.png")
    assert run(tmp_path / "in.png", "-o", tmp_path / "a.generated.tif", "--scale", 2, *pyramid)[0] == 0
    (tmp_path / "a.generated.tif").rename(tmp_path / "innocent.tif")
    code, out, _ = run(tmp_path / "innocent.tif", "-o", tmp_path / "b.tif", "--scale", 1.5, model="iste-tiny")
    assert code == 0
    assert "the input holds generated detail" in out
    record = read_provenance(tmp_path / "b.tif")
    assert (record.notice, record.parameters["generative"], record.model_id) == (GENERATED_NOTICE, True, "iste-tiny")


@pytest.mark.parametrize(("words", "warned"), [(["--coarse-only"], False), (None, True)])
def test_only_a_model_that_never_saw_compression_warns_of_it(tmp_path, run, folder, words, warned):
    Image.fromarray(tissue_pixels(30, 40)).save(tmp_path / "in.jpg")
    model = folder if words else "iste-tiny"
    code, out, _ = run(tmp_path / "in.jpg", "-o", tmp_path / "out.png", "--scale", 2, *(words or []), model=model)
    assert code == 0
    assert ("bicubic interpolation may be nearer" in out) == warned


def test_the_coarse_stage_generates_nothing_and_is_not_marked(tmp_path, run):
    Image.fromarray(pixels := tissue_pixels(30, 40)).save(tmp_path / "in.png")
    code, _, err = run(tmp_path / "in.png", "-o", f"{tmp_path}/out/", "--scale", 2, "--coarse-only")
    assert (code, err) == (0, "")
    record = read_provenance(tmp_path / "out" / "in.png")
    assert record.notice == ENLARGED_NOTICE
    assert record.parameters["generative"] is False
    assert "steps" not in record.parameters
    assert np.asarray(Image.open(tmp_path / "out" / "in.png")).shape == (60, 80, 3)
    assert pixels.shape == (30, 40, 3)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--steps", "0"], "--steps 0 must be at least 1"),
        (["--steps", "1001"], "--steps or --sampler: steps must be between 1 and the 1000"),
        (["--steps", "3", "--coarse-only"], "which --coarse-only leaves out"),
        (["--seed", "-1"], "--seed -1 must not be negative"),
        (["--seed", "3", "--coarse-only"], "--seed 3 belongs to the second stage"),
        (["--tile", "36"], "--tile 36 must be a multiple of 16 px of the output"),
        (["--sampler", "euler"], "--sampler"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path, run, words, told):
    Image.fromarray(tissue_pixels(30, 30)).save(tmp_path / "in.png")
    code, _, err = run(tmp_path / "in.png", "-o", tmp_path / "out.generated.png", "--scale", 2, *words)
    assert code == 2
    assert told in err
    assert "Traceback" not in err
    assert files_in(tmp_path) == ["in.png"]


@pytest.mark.parametrize("words", [["--steps", "4"], ["--sampler", "ddim"], ["--coarse-only"], ["--seed", "3"]])
def test_a_model_that_draws_nothing_refuses_wishes_for_drawing(tmp_path, run, words):
    Image.fromarray(tissue_pixels(30, 30)).save(tmp_path / "in.png")
    code, _, err = run(tmp_path / "in.png", "-o", tmp_path / "out.png", "--scale", 2, *words, model="iste-tiny")
    assert code == 2
    assert f"{words[0]}: only for generative models" in err


def test_the_default_model_is_the_packages_whatever_lies_here(tmp_path, monkeypatch):
    (tmp_path / "iste-tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert ready_upscaler(UpscaleOptions(target=Enlargement(scale=2))).model_id == "iste-tiny"


def test_pieces_suit_the_model_and_all_of_its_settings_are_in_the_record(model, tmp_path):
    records = []
    for name, changes in (("a", {}), ("b", {"colours": "none"}), ("c", {"start": "cond"}), ("d", {"tile_px": 96})):
        model.with_settings(replace(model.settings, **changes)).save_pretrained(tmp_path / name)
        ready = ready_upscaler(UpscaleOptions(target=Enlargement(scale=2), model=str(tmp_path / name), sampler="ddim", steps=3))
        assert ready.pieces.system.settings == replace(model.settings, **changes, sampler="ddim", steps=3)
        assert ready.tile_px >= 1024
        assert ready.overlap_px >= 1.5 * ready.pieces.system.settings.tile_px
        records.append(str(ready.parameters))
    assert len(set(records)) == 4


def test_outputs_among_marked_inputs_are_refused(tmp_path):
    Image.fromarray(tissue_pixels(30, 30)).save(tmp_path / "a.png")
    with pytest.raises(PlanError, match="would lie among the inputs"):
        plan_outputs([tmp_path], tmp_path, mark=".generated")


def test_what_a_model_is_is_known_before_its_weights_are_read(folder, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "system.json").write_bytes((folder / "system.json").read_bytes())
    target = Enlargement(scale=2)
    assert is_generative(UpscaleOptions(target=target, model=str(bare)))
    assert not is_generative(UpscaleOptions(target=target, model=str(bare), coarse_only=True))
    assert not is_generative(UpscaleOptions(target=target))
    assert isinstance(ready_upscaler(UpscaleOptions(target=target)).pieces, DrawnPieces)


def test_an_evaluation_compares_both_stages_with_interpolation(tmp_path, folder, capsys):
    (tmp_path / "sharp").mkdir()
    for name in ("a", "b"):
        Image.fromarray(tissue_pixels(64, 64)).save(tmp_path / "sharp" / f"{name}.png")
    words = ["--clean", tmp_path / "sharp", "--reduce", 2, "--metrics", "psnr", "--pictures", 0, "-o", tmp_path / "judged", "--json"]
    models = ["--coarse", f"first={folder}", "--model", f"both={folder}", "--model", "iste=iste-tiny", "--steps", 1, "--sampler", "ddim"]
    assert cli.main(["evaluate", *map(str, words + models)]) == 0
    told = json.loads(capsys.readouterr().out)
    # wishes that nobody would hear are told
    assert cli.main(["evaluate", *map(str, [*words, "--overwrite", "--model", "iste=iste-tiny", "--steps", 1])]) == 2
    assert "--sampler and --steps are for generative upscalers" in capsys.readouterr().err
    assert {name for name in ("bicubic", "first", "both", "iste") if name in json.dumps(told)} == {"bicubic", "first", "both", "iste"}


@pytest.mark.parametrize("size", [(33, 47), (64, 40)])
def test_signals_of_an_enlargement_say_what_they_are_named_after(size, generator):
    large = F.interpolate(torch.rand(1, 3, 6, 7, generator=generator), size=size, mode="bicubic").clamp(0.1, 0.9)
    small = resized(large, (size[0] // 3, size[1] // 3))
    variance = torch.full((1, 1, *size), 0.02**2)
    told = enlargement_signals(small, large, variance, window_px=2.0)
    assert torch.allclose(told.spread, torch.full_like(told.spread, 0.02 * 255), atol=1e-2)
    assert told.residual.max() < 1e-3
    assert not told.defocus_um.any()
    bicubic = resized(small, size)
    assert enlargement_signals(small, bicubic, variance, window_px=2.0).change.max() < 1e-3
    shifted = enlargement_signals(small, large + 0.05, None, window_px=2.0)
    assert torch.allclose(shifted.residual, torch.full_like(shifted.residual, 0.05 * 255), atol=0.05)
    # what is lost in the small image is the same, where it went from interpolation is not
    assert torch.allclose(shifted.beyond_cutoff, told.beyond_cutoff, atol=1e-2)
    assert (shifted.change - told.change).abs().max() > 1
    assert not shifted.spread.any()
    slope = torch.arange(size[1]).div(100).expand(1, 3, *size)
    inside = enlargement_signals(small, slope, None, window_px=0.5).structure[..., 10:-10]
    assert torch.allclose(inside, torch.full_like(inside, 2.55), atol=1e-2)
    wider = enlargement_signals(small, large, variance, window_px=6.0)
    assert wider.structure.std() < told.structure.std()


def test_samples_have_the_variance_of_all_of_them(generator):
    images, samples = torch.rand(5, 3, 6, 7, generator=generator), Samples()
    for image in images:
        samples.add(image[None])
    assert torch.allclose(samples.variance(), sample_variance(images), atol=1e-6)
    alone = Samples()
    alone.add(images[:1])
    with pytest.raises(ValueError, match="1 samples have no spread"):
        alone.variance()


RISK = RiskModel(steps=2, exponents={"spread": 0.5, "change": 0.5}, scores=(-3.0, 5.0), errors=(0.0, 40.0))


@pytest.fixture
def calibrated(folder, tmp_path):
    """The weights with a model of risk beside them."""
    shutil.copytree(folder, path := tmp_path / "weights")
    RiskModels(weights_sha256=HistoDiffusion.from_pretrained(path).weights_sha256, models=(RISK,)).save(path)
    return path


def test_the_risk_map_is_that_of_the_image_beside_it(tmp_path, run, calibrated, model):
    Image.fromarray(pixels := tissue_pixels(30, 40)).save(tmp_path / "in.png")
    words = ("--scale", 2, "--seed", 5, "--risk-map", "--risk-seeds", 2)
    code, _, err = run(tmp_path / "in.png", "-o", f"{tmp_path}/out/", *words, model=calibrated)
    assert (code, err) == (0, "")
    assert {"in.generated.png", "in.generated.risk.png", "in.generated.risk.tiff"} < set(files_in(tmp_path / "out"))
    small = from_uint8(pixels)
    large = model.upscale(small, scale=2, seed=5)
    samples = Samples()
    for seed in (6, 7):
        samples.add(model.upscale(small, scale=2, seed=seed))
    expected = RISK.expected_error(enlargement_signals(small, large, samples.variance(), window_px=4.0))
    assert (read_risk(tmp_path / "out" / "in.generated.risk.tiff") - expected).abs().max() < 0.05
    assert expected.std() > 0.1
    record = read_provenance(tmp_path / "out" / "in.generated.risk.tiff")
    assert record.notice == ENLARGEMENT_RISK_NOTICE
    assert record.parameters["risk_seeds"] == 2
    assert "risk_seeds" not in read_provenance(tmp_path / "out" / "in.generated.png").parameters


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--risk-map", "--risk-seeds", "1"], "--risk-seeds 1 gives no spread"),
        (["--risk-map", "--steps", "1"], "the risk of ddpm with 1 steps was never calibrated, only of ddpm with 2 steps"),
        (["--risk-map", "--sampler", "ddim"], "the risk of ddim with 2 steps was never calibrated"),
        (["--risk-map", "--coarse-only"], "nothing is generated here"),
        (["--risk-seeds", "3"], "--risk-seeds belongs to --risk-map"),
        (["--risk-map", "--pyramid"], "--risk-map"),
    ],
)
def test_risk_maps_that_cannot_be_are_refused(tmp_path, run, calibrated, words, told):
    Image.fromarray(tissue_pixels(30, 30)).save(tmp_path / "in.png")
    code, _, err = run(tmp_path / "in.png", "-o", tmp_path / "out.generated.png", "--scale", 2, *words, model=calibrated)
    assert code == 2
    assert told in err
    assert "out.generated.png" not in files_in(tmp_path)


def test_weights_without_a_model_of_risk_say_what_to_do(tmp_path, run):
    Image.fromarray(tissue_pixels(30, 30)).save(tmp_path / "in.png")
    code, _, err = run(tmp_path / "in.png", "-o", tmp_path / "out.generated.png", "--scale", 2, "--risk-map")
    assert code == 2
    assert "holds no risk.json" in err
    assert "calibrate_enlargement_risk.py" in err


def test_risk_of_other_weights_is_refused(tmp_path, run, calibrated):
    RiskModels(weights_sha256="ab" * 32, models=(RISK,)).save(calibrated)
    Image.fromarray(tissue_pixels(30, 30)).save(tmp_path / "in.png")
    code, _, err = run(tmp_path / "in.png", "-o", tmp_path / "o.generated.png", "--scale", 2, "--risk-map", model=calibrated)
    assert code == 2
    assert "was calibrated for other weights" in err


def test_the_calibration_writes_a_model_that_the_command_takes(tmp_path, run, folder, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "benchmarks"))
    import calibrate_enlargement_risk

    weights = shutil.copytree(folder, tmp_path / "weights")
    for name in ("train", "val"):
        (tmp_path / name).mkdir()
        for index in range(2):
            Image.fromarray(tissue_pixels(70, 90)[:, index:]).save(tmp_path / name / f"{index}.png")
    words = f"--train {tmp_path}/train --val {tmp_path}/val --model {weights} --seeds 2 --json {tmp_path}/told.json --save {weights}"
    calibrate_enlargement_risk.main(words.split())
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["results"]["images"] == 2
    assert -1 <= told["results"]["signals"]["risk"]["spearman_pooled"] <= 1
    assert told["run"]["steps"] == 2
    Image.fromarray(tissue_pixels(30, 30)).save(tmp_path / "in.png")
    capsys.readouterr()
    assert run(tmp_path / "in.png", "-o", f"{tmp_path}/out/", "--scale", 2, "--risk-map", model=weights)[0] == 0
    assert "in.generated.risk.tiff" in files_in(tmp_path / "out")
