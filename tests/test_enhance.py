"""`enhance` and `stain`: files and slides under a prompt, what their records say, and what is refused."""

import json
import pickle
from xml.etree import ElementTree

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from pathorestore._torchvision import ensure_torchvision

ensure_torchvision()
pytest.importorskip("diffusers")

from histo_samples import awake_lpfm  # noqa: E402
from slide_samples import level_pixels, tissue_pixels, write_slide  # noqa: E402

from pathorestore import cli  # noqa: E402
from pathorestore.cli_upscale import upscale_elsewhere  # noqa: E402
from pathorestore.image import from_uint8, to_uint8  # noqa: E402
from pathorestore.pipelines.caption import captioned  # noqa: E402
from pathorestore.pipelines.provenance import GENERATED_NOTICE, RESTORED_NOTICE, STAINED_NOTICE, read_provenance  # noqa: E402

DENOISE = "denoise the H&E image"
SMALL = ["--tile", 64, "--overlap", 64]


@pytest.fixture(scope="module")
def model():
    return awake_lpfm()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    target = tmp_path_factory.mktemp("models") / "prompted"
    model.save_pretrained(target)
    return target


@pytest.fixture
def run(folder, capsys):
    def called(*words, model=folder):
        code = cli.main([*map(str, words), "--model", str(model), "-q"])
        told = capsys.readouterr()
        return code, told.out, told.err

    return called


@pytest.fixture
def image(tmp_path):
    Image.fromarray(tissue_pixels(36, 50)).save(tmp_path / "in.png")
    return tmp_path / "in.png"


def test_a_file_becomes_what_the_system_makes_of_it(model, image, tmp_path, run):
    code, _, err = run("enhance", image, "-o", f"{tmp_path}/out/", "--prompt", DENOISE, "--seed", 3, "--tile", 256, "--overlap", 64)
    assert (code, err) == (0, "")
    made = np.asarray(Image.open(tmp_path / "out" / "in.generated.png"))
    expected = to_uint8(model(from_uint8(np.asarray(Image.open(image))), DENOISE, seed=3))
    assert np.abs(made.astype(int) - expected).max() <= 1
    record = read_provenance(tmp_path / "out" / "in.generated.png")
    assert record.notice == GENERATED_NOTICE
    told = record.parameters
    assert (told["prompt"], told["task"], told["generative"], told["scale"]) == (DENOISE, "denoise", True, 1.0)


def test_a_slide_is_made_under_the_prompt_alone(model, tmp_path, run):
    pixels = tissue_pixels(90, 70)
    source = write_slide(tmp_path / "in.tif", pixels, levels=1)
    code, _, err = run(
        "enhance",
        source,
        "-o",
        tmp_path / "out.generated.tif",
        "--task",
        "deblur",
        "--pyramid",
        "--all-tiles",
        "--compression",
        "deflate",
        *SMALL,
    )
    assert (code, err) == (0, "")
    made = level_pixels(tmp_path / "out.generated.tif")
    whole = to_uint8(model.working(model.asked(task="deblur")).upscale(from_uint8(pixels), scale=1))
    assert np.abs(made.astype(int) - whole).max() <= 1
    assert read_provenance(tmp_path / "out.generated.tif").parameters["task"] == "deblur"


def test_a_prompt_may_say_how_large(image, tmp_path, run):
    code, _, _ = run("enhance", image, "-o", tmp_path / "a.generated.png", "--prompt", "enlarge the H&E image 1.5 times", *SMALL)
    assert code == 0
    assert np.asarray(Image.open(tmp_path / "a.generated.png")).shape == (54, 75, 3)
    assert run("enhance", image, "-o", tmp_path / "b.generated.png", "--task", "sr", "--scale", 2, *SMALL)[0] == 0
    assert np.asarray(Image.open(tmp_path / "b.generated.png")).shape == (72, 100, 3)


def test_super_resolution_without_a_factor_doubles(image, tmp_path, run):
    assert run("enhance", image, "-o", f"{tmp_path}/out/", "--task", "sr", "--coarse-only", *SMALL)[0] == 0
    assert np.asarray(Image.open(tmp_path / "out" / "in.png")).shape == (72, 100, 3)
    record = read_provenance(tmp_path / "out" / "in.png")
    assert (record.parameters["prompt"], record.parameters["scale"]) == ("enlarge the H&E image 2 times", 2.0)
    assert record.notice == RESTORED_NOTICE


def test_a_stain_asked_for_by_its_task_or_in_capitals_is_marked_too(image, tmp_path, run):
    assert run("enhance", image, "-o", f"{tmp_path}/out/", "--task", "stain_pas", "--coarse-only", *SMALL)[0] == 0
    assert read_provenance(tmp_path / "out" / "in.virtual-pas.png").notice == STAINED_NOTICE
    assert run("stain", image, "-o", f"{tmp_path}/caps/", "--to", "PAS", "--coarse-only", *SMALL)[0] == 0
    assert (tmp_path / "caps" / "in.virtual-pas.png").exists()


@pytest.mark.parametrize("coarse", [[], ["--coarse-only"]])
def test_virtual_stains_are_marked_whatever_made_them(image, tmp_path, run, coarse):
    code, _, err = run("stain", image, "-o", f"{tmp_path}/out/", "--to", "pas", *SMALL, *coarse)
    assert (code, err) == (0, "")
    record = read_provenance(tmp_path / "out" / "in.virtual-pas.png")
    assert record.notice == STAINED_NOTICE
    told = record.parameters
    assert (told["virtual_stain"], told["task"], told["generative"]) == ("pas", "stain_pas", True)
    assert told["prompt"] == "translate the H&E image to a PAS stained image"


def test_a_virtual_stain_says_so_in_its_corner_unless_told_not_to(tmp_path, run):
    Image.fromarray(tissue_pixels(150, 320)).save(tmp_path / "in.png")
    for out, words in (("a", []), ("b", ["--unmarked"])):
        command = ["stain", tmp_path / "in.png", "-o", f"{tmp_path}/{out}/", "--to", "masson", "--coarse-only", *SMALL, *words]
        assert run(*command)[0] == 0
    marked, plain = (np.asarray(Image.open(tmp_path / out / "in.virtual-masson.png")).astype(int) for out in "ab")
    rows, columns = np.nonzero((marked != plain).any(axis=2))
    assert rows.min() > 120
    assert columns.min() == 0
    assert marked[rows.min() :, : columns.max()].max() > 240
    caption = read_provenance(tmp_path / "a" / "in.virtual-masson.png").parameters["caption"]
    assert caption == "virtual Masson trichrome, stained by AI"
    assert "caption" not in read_provenance(tmp_path / "b" / "in.virtual-masson.png").parameters
    # what is enhanced and not stained has none
    command = ["enhance", tmp_path / "in.png", "-o", f"{tmp_path}/c/", "--prompt", DENOISE, "--coarse-only", *SMALL]
    assert run(*command)[0] == 0
    assert "caption" not in read_provenance(tmp_path / "c" / "in.png").parameters


def test_records_tell_the_caption_that_was_drawn_and_nothing_hides_it(tmp_path, run):
    pixels = np.dstack([tissue_pixels(150, 150), np.zeros((150, 150), np.uint8)])
    Image.fromarray(pixels).save(tmp_path / "clear.png")
    Image.fromarray(tissue_pixels(20, 300)).save(tmp_path / "low.png")
    for name in ("clear", "low"):
        words = ["stain", tmp_path / f"{name}.png", "-o", f"{tmp_path}/out/", "--to", "masson", "--coarse-only", *SMALL]
        assert run(*words)[0] == 0
    clear, low = (read_provenance(tmp_path / "out" / f"{name}.virtual-masson.png") for name in ("clear", "low"))
    assert clear.parameters["caption"] == "virtual stain"
    alpha = np.asarray(Image.open(tmp_path / "out" / "clear.virtual-masson.png"))[..., 3]
    assert alpha[-3:, :20].min() == 255
    assert alpha[:60].max() == 0
    assert "caption" not in low.parameters


CAPTIONS = ("virtual Masson trichrome, stained by AI", "virtual stain", "AI")


@pytest.mark.parametrize(("height", "width"), [(64, 64), (64, 900), (900, 64), (200, 150), (2000, 3000)])
def test_the_longest_caption_that_fits_stands_in_the_corner(height, width):
    image = torch.full((1, 3, height, width), 0.6)
    drawn, text, box = captioned(image, CAPTIONS)
    rows, columns = (drawn != image).any(1)[0].nonzero().unbind(1)
    assert drawn.min() >= 0
    assert 0.9 < drawn.max() <= 1
    assert (rows.max(), columns.min()) == (height - 1, 0)
    assert rows.min() >= height / 2
    assert columns.max() < 0.9 * width
    bright = (drawn > 0.7).any(1)[0].nonzero()
    assert bright[:, 0].max() - bright[:, 0].min() >= 6, "letters that can be read"
    fits = [one for one in CAPTIONS if captioned(image, (one,)).text]
    assert text == fits[0]
    assert fits == list(CAPTIONS[-len(fits) :])
    assert (box[0].start, box[1].stop) == (rows.min(), columns.max() + 1)


def test_tiny_images_have_no_room_for_a_caption_and_odd_letters_no_shape():
    image = torch.rand(1, 3, 20, 300)
    drawn, text, _ = captioned(image, CAPTIONS)
    assert torch.equal(drawn, image)
    assert text == ""
    with pytest.raises(ValueError, match="expected printable ASCII"):
        captioned(image, ("\u00fc",))


@pytest.mark.parametrize("pyramid", [[], ["--pyramid"]])
def test_a_virtual_stain_stays_one_whatever_is_done_to_it(image, tmp_path, run, pyramid):
    assert run("stain", image, "-o", tmp_path / "a.tif", "--to", "pas", *SMALL, *pyramid)[0] == 0
    assert run("upscale", tmp_path / "a.tif", "-o", tmp_path / "b.tif", "--scale", 1.5, *pyramid, model="iste-tiny")[0] == 0
    record = read_provenance(tmp_path / "b.tif")
    assert (record.notice, record.parameters["virtual_stain"], record.parameters["generative"]) == (STAINED_NOTICE, "pas", True)
    # and what is stained is so, even if detail was drawn before
    assert run("enhance", image, "-o", tmp_path / "c.generated.tif", "--task", "denoise", *SMALL, *pyramid)[0] == 0
    assert run("stain", tmp_path / "c.generated.tif", "-o", tmp_path / "d.tif", "--to", "masson", *SMALL, *pyramid)[0] == 0
    record = read_provenance(tmp_path / "d.tif")
    assert (record.notice, record.parameters["virtual_stain"]) == (STAINED_NOTICE, "masson")


def test_degraded_inputs_are_restored_and_stained_in_one(image, tmp_path, run):
    words = ["stain", image, "-o", tmp_path / "x.png", "--to", "masson", "--from", "pas", "--restore", "--coarse-only", *SMALL]
    code, _, err = run(*words)
    assert code == 0
    told = read_provenance(tmp_path / "x.png").parameters
    assert told["prompt"] == "restore the low-quality PAS image and translate it to a Masson trichrome stained image"
    # -q keeps the advice about names away
    assert err == ""


def test_free_text_is_passed_on_with_one_plain_line(image, tmp_path, folder, capsys):
    words = ["-o", tmp_path / "x.generated.png", "--prompt", "make it shine", "--coarse-only", *SMALL, "--model", folder]
    assert cli.main(["enhance", *map(str, [image, *words])]) == 0
    err = "".join(line for line in capsys.readouterr().err.splitlines(keepends=True) if "it/s" not in line and "%|" not in line)
    assert err.count("\n") == 1
    assert "pathorestore: the prompt 'make it shine' is no known task's" in err
    told = read_provenance(tmp_path / "x.generated.png").parameters
    assert (told["prompt"], told["task"]) == ("make it shine", None)


def test_workers_elsewhere_leave_the_warning_to_the_driver(image, folder, tmp_path, capsys):
    words = ["enhance", str(image), "-o", str(tmp_path / "x.generated.png"), "--prompt", "make it shine", "--model", str(folder)]
    arguments = cli._parser().parse_args(words)["enhance"]
    elsewhere = pickle.loads(pickle.dumps(upscale_elsewhere(arguments, str)))
    assert elsewhere("cpu") is not None
    assert capsys.readouterr().err == ""


def test_a_prompt_is_escaped_wherever_it_is_shown(image, tmp_path, run, capsys):
    """In the records of PNG, TIFF and OME-TIFF, whose XML stays whole, and in what `info` prints."""
    words = '<script>alert(1)</script> "; rm -rf / é'
    ome = ["--pyramid", "--format", "ome-tiff"]
    for name, more in (("x.generated.png", []), ("x.generated.tif", []), ("x.generated.ome.tif", ome)):
        code, _, err = run("enhance", image, "-o", tmp_path / name, "--prompt", words, "--coarse-only", *SMALL, *more)
        assert code == 0, err
        assert read_provenance(tmp_path / name).parameters["prompt"] == words
    with tifffile.TiffFile(tmp_path / "x.generated.ome.tif") as tiff:
        assert "<script>" not in tiff.ome_metadata
        assert ElementTree.fromstring(tiff.ome_metadata) is not None
    assert cli.main(["info", str(tmp_path / "x.generated.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]["prompt"] == words


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["enhance"], "--prompt"),
        (["enhance", "--prompt", DENOISE, "--task", "denoise"], "not allowed with"),
        (["enhance", "--prompt", ""], "the prompt is empty"),
        (["enhance", "--prompt", "a\x1b[2Jb"], "cannot be printed"),
        (["enhance", "--task", "paint"], "no task 'paint'; expected one of restore, sr"),
        (["enhance", "--prompt", DENOISE, "--scale", "0.5"], "--scale 0.5 must lie in 1..16"),
        (["enhance", "--prompt", DENOISE, "--scale", "0"], "--scale 0 must lie in 1..16"),
        (["enhance", "--prompt", "enlarge the H&E image 3 times", "--scale", "2"], "the prompt says 3 times, and --scale 2"),
        (["enhance", "--prompt", DENOISE, "--from", "pas"], "--from pas belongs to --task"),
        (["enhance", "--task", "denoise", "--from", "a\x1b[31mb"], "cannot be printed"),
        (["stain"], "--to"),
        (["stain", "--to", "gold"], "no task 'stain_gold'"),
        (["upscale", "--scale", "2"], "holds a LPFM, which does not enlarge without a prompt"),
    ],
)
def test_wishes_that_cannot_be_are_refused_in_one_line(image, tmp_path, run, words, told):
    code, _, err = run(words[0], image, "-o", tmp_path / "x.png", *words[1:])
    assert code == 2
    assert told in err
    assert err.count("\n") == 1
    assert not (tmp_path / "x.png").exists()


def test_without_weights_it_is_said_how_to_come_by_some(image, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("pathorestore.pipelines.upscalers.DEFAULT_PROMPTED", "nothing-like-it")
    assert cli.main(["enhance", str(image), "-o", str(tmp_path / "x.png"), "--prompt", DENOISE]) == 2
    assert "no nothing-like-it weights are embedded yet; train some (docs/enhance.md)" in capsys.readouterr().err


def test_a_model_without_prompts_is_refused(image, tmp_path, run):
    code, _, err = run("enhance", image, "-o", tmp_path / "x.png", "--prompt", DENOISE, model="iste-tiny")
    assert code == 2
    assert "holds a ISTE, which does not take prompts; expected one of LPFM" in err
