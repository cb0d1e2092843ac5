"""Real images: PATHORESTORE_DATA names a folder of sharp ones, PATHORESTORE_SLIDE a whole slide, PATHORESTORE_STAINS registered stains."""

import math
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from pathorestore import cli
from pathorestore.data.sharp_crops import image_files, read_rgb
from pathorestore.degradations.optical import degrade
from pathorestore.degradations.recipes import Setting
from pathorestore.functional.noise import stream
from pathorestore.image import from_uint8
from pathorestore.metrics.fidelity import psnr
from pathorestore.pipelines.mop import load_default

pytestmark = pytest.mark.real_data


@pytest.mark.skipif("PATHORESTORE_DATA" not in os.environ, reason="PATHORESTORE_DATA is not set")
def test_the_coarse_stage_gains_two_decibels_on_average_and_something_at_every_distance():
    restorer = load_default().coarse_only()
    images = [from_uint8(read_rgb(path))[..., :256, :256] for path in image_files(Path(os.environ["PATHORESTORE_DATA"]))]
    means = []
    for z_um in (0.8, 1.6, 2.4, 3.2):
        gains = []
        for index, image in enumerate(images):
            pair = degrade(image, torch.tensor([z_um]), setting=Setting.ideal(), generator=stream(index))
            gains.append(float(psnr(restorer.restore(pair.degraded), pair.clean) - psnr(pair.degraded, pair.clean)))
        means.append(sum(gains) / len(gains))
    assert min(means) > 0
    assert sum(means) / len(means) >= 2.0


@pytest.mark.skipif("PATHORESTORE_SLIDE" not in os.environ, reason="PATHORESTORE_SLIDE is not set")
def test_a_real_slide_keeps_its_size_and_pixel_size_and_changes_only_where_there_is_tissue(tmp_path):
    openslide = pytest.importorskip("openslide")
    source = Path(os.environ["PATHORESTORE_SLIDE"])
    assert cli.main(["restore", str(source), "-o", str(tmp_path / "out.tiff"), "--coarse-only"]) == 0
    with openslide.OpenSlide(source) as before, openslide.OpenSlide(tmp_path / "out.tiff") as after:
        assert after.dimensions == before.dimensions
        assert float(after.properties["openslide.mpp-x"]) == pytest.approx(float(before.properties["openslide.mpp-x"]), rel=1e-4)
        assert (after.color_profile is None) == (before.color_profile is None)
        assert after.level_count == 1 + max(0, math.ceil(math.log2(max(before.dimensions) / 512)))
        assert not after.associated_images
        assert "AI-restored" in after.properties["tiff.ImageDescription"]
        images = [np.asarray(slide.get_thumbnail((600, 600)).convert("RGB")).astype(float) for slide in (before, after)]
    assert np.abs(images[0] - images[1]).mean() < 6  # a restored slide is the same slide, seen from afar
    with tifffile.TiffFile(tmp_path / "out.tiff") as tiff:
        assert len(tiff.series[0].levels) == len(tiff.pages)


@pytest.mark.skipif("PATHORESTORE_STAINS" not in os.environ, reason="PATHORESTORE_STAINS is not set")
def test_registered_stains_pass_the_contract_and_train_a_translation(tmp_path):
    """DeepLIIF's strips: immunohistochemistry with its haematoxylin. Partners of another patient or far apart do not pass."""
    pytest.importorskip("diffusers")
    from pytorch_lightning import Trainer

    from pathorestore.data.check import check_manifest
    from pathorestore.data.defects import CheckOptions
    from pathorestore.data.drawing import CropConfig
    from pathorestore.data.manifest import Row, read_manifest, write_manifest
    from pathorestore.data.tasks import Task, builtin_tasks
    from pathorestore.models.contrastive import ContrastiveEncoder, ContrastiveEncoderConfig
    from pathorestore.models.prompted import FusionConfig, PromptedSwinIR, PromptedSwinIRConfig
    from pathorestore.models.swinir import SwinIRConfig
    from pathorestore.models.text import ByteTextConfig, ByteTextEncoder
    from pathorestore.training import Curriculum, PairedImages, PromptedCoarseStage

    stains, table = Path(os.environ["PATHORESTORE_STAINS"]), tmp_path / "pairs.csv"
    rows = [
        Row(
            path=str(stains / f"deepliif_{tissue}_IHC.png"),
            target=str(stains / f"deepliif_{tissue}_Hematoxylin.png"),
            patient=tissue,
            stain="ihc",
            split=split,
            extra=(("target_stain", "haematoxylin"),),
        )
        for tissue, split in (("Bladder1", "train"), ("Lung1", "val"))
    ]
    write_manifest(table, rows)
    assert check_manifest(read_manifest(table), CheckOptions(crop_px=64)) == []
    swapped = [replace(rows[0], target=rows[1].target, split="train"), replace(rows[1], patient="Bladder1")]
    write_manifest(tmp_path / "wrong.csv", swapped)
    assert "patient leak" in {one.kind for one in check_manifest(read_manifest(tmp_path / "wrong.csv"), CheckOptions(crop_px=64))}

    torch.manual_seed(0)
    fusion = FusionConfig.nano()
    swinir = SwinIRConfig(
        embed=24, blocks=(2, 2), heads=4, window=4, features=16, unshuffle=2, upsampler="nearest+conv", drop_path=0.0, skip=True
    )
    task = Task(
        name="stain_haematoxylin", templates=("show the haematoxylin of the {source} image",), target="haematoxylin", empty_share=0.0
    )
    stage = PromptedCoarseStage(
        PromptedSwinIR(PromptedSwinIRConfig(swinir=swinir, vector_dim=fusion.vector_dim)),
        ByteTextEncoder(ByteTextConfig.nano()),
        ContrastiveEncoder(ContrastiveEncoderConfig.nano()),
        curriculum=Curriculum([*builtin_tasks(), task], pairs_task="stain_haematoxylin"),
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=2e-3),
    )
    data = PairedImages(str(table), batch_size=4, val_crops=4, crops=CropConfig(crop_px=64), check=False)
    trainer = Trainer(
        max_steps=80,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=str(tmp_path),
    )
    trainer.fit(stage, datamodule=data)
    # on a patient that was never seen the brown is on its way out
    (figures,) = trainer.validate(stage, datamodule=data, verbose=False)
    assert figures["val_gain_stain_haematoxylin"] > 0.3
