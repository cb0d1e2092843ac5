"""Runs of the command line in processes of their own: several at once, killed and resumed, with loading workers."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image

from pathorestore.image import to_uint8

TINY = [
    "--config=pformer_tiny",
    "--data.check=false",
    "--data.crops.crop_px=32",
    "--data.crops.margin_px=8",
    "--data.val_crops=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.accelerator=cpu",
    "--trainer.val_check_interval=1.0",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.max_steps=-1",
    "--trainer.max_epochs=4",
    "--model.coarse.config.dim=8",
    "--model.coarse.config.blocks=[1,1,1,1]",
    "--model.coarse.config.hidden_multiple=8",
    "--data.epoch_size=8",
]


@pytest.fixture
def folder(nuclei_image, tmp_path):
    pixels = to_uint8(nuclei_image)
    for index, name in enumerate(("a", "b", "c")):
        Image.fromarray(pixels[:, index * 8 : index * 8 + 100]).save(tmp_path / f"{name}.png")
    (tmp_path / "manifest.csv").write_text("path,split\na.png,train\nb.png,train\nc.png,val\n")
    return tmp_path


def _start(folder: Path, out: str, *words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "ignore", "-m", "pathorestore", "fit", *TINY, f"--data.manifest={folder / 'manifest.csv'}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
    return subprocess.Popen(
        [*command, f"--out={folder / out}", *words],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        cwd=folder,
    )


def _fit(folder: Path, out: str, *words: str) -> Path:
    process = _start(folder, out, *words)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return folder / out


def _weights(run: Path) -> dict[str, torch.Tensor]:
    stored = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert stored["global_step"] > 0
    return {key: value for key, value in stored["state_dict"].items() if key.startswith("coarse.")}


def _gains(run: Path) -> list[float]:
    table = next(run.glob("logs/*/metrics.csv")).read_text()
    return [float(row["val_gain"]) for row in csv.DictReader(table.splitlines()) if row.get("val_gain")]


def test_two_processes_train_as_one_with_the_same_global_batch(folder):
    one = _fit(folder, "one", "--data.batch_size=4", "--checkpoint.every_n_train_steps=2")
    two = _fit(folder, "two", "--data.batch_size=2", "--trainer.devices=2", "--trainer.strategy=ddp", "--checkpoint.every_n_train_steps=2")
    alone, shared = _weights(one), _weights(two)
    assert alone.keys() == shared.keys()
    for key, value in alone.items():
        assert torch.allclose(value, shared[key], atol=2e-5), key
    assert len(_gains(one)) == 4
    assert _gains(one) == pytest.approx(_gains(two), abs=1e-3)


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one_whatever_the_workers(folder):
    words = ("--data.batch_size=2", "--checkpoint.every_n_train_steps=3")
    whole = _fit(folder, "whole", *words, "--data.num_workers=1")
    process = _start(folder, "killed", *words)
    first = folder / "killed" / "checkpoints" / "last.ckpt"
    patience = time.monotonic() + 240
    while not first.exists() and process.poll() is None and time.monotonic() < patience:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert first.exists()
    assert torch.load(first, weights_only=True)["global_step"] < 16
    resumed = _fit(folder, "killed", *words, "--ckpt_path=last")
    expected, found = _weights(whole), _weights(resumed)
    assert all(torch.equal(value, found[key]) for key, value in expected.items())
