"""The commands of the training guide, run as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from pathorestore.image import to_uint8

GUIDE = Path(__file__).parents[1] / "docs" / "train.md"


def test_the_three_commands_of_the_training_guide_make_a_model_that_restores(nuclei_image, tmp_path):
    images = tmp_path / "my_images"
    images.mkdir()
    whole = np.tile(to_uint8(nuclei_image), (3, 3, 1))
    for index in range(6):  # different places of a field, so that no two are alike
        Image.fromarray(whole[20 * index : 20 * index + 160, 30 * index : 30 * index + 160]).save(images / f"tile_{index}.png")
    Image.fromarray(to_uint8(nuclei_image)).save(tmp_path / "blurred.png")
    blocks = re.findall(r"```bash\n(.*?)```", GUIDE.read_text(), flags=re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines()]
    assert [command.split()[1] for command in commands] == ["data", "fit", "export", "restore"]
    shown = f'pathorestore() {{ "{sys.executable}" -W ignore -m pathorestore "$@"; }}\nset -e\n' + "\n".join(commands)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(["bash", "-c", shown], cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    with Image.open(tmp_path / "restored.png") as restored:
        assert restored.size == (128, 128)
    for left in ("training.yaml", "checkpoints/last.ckpt", "logs/version_0/training_record.json"):
        assert (tmp_path / "runs" / "mine" / left).stat().st_size > 0
