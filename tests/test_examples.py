"""Every example runs as it stands, in an empty folder, and leaves what it says it leaves."""

import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
LEAVES = {
    "custom_pipeline.py": [],
    "draw_detail.py": ["drawn.generated.png"],
    "enlarge_at_any_scale.py": ["enlarged.png"],
    "restore_one_image.py": ["restored.png"],
    "simulate_focal_stack.py": ["focal_stack/clean.png"],
    "train_pformer_tiny_steps.py": ["pformer/config.json", "pformer/model.safetensors"],
}


def test_every_example_is_run() -> None:
    assert sorted(path.name for path in EXAMPLES.glob("*.py")) == sorted(LEAVES)


# lightning remarks on frozen parts, which are frozen on purpose
@pytest.mark.filterwarnings("ignore:Found .* in eval mode")
@pytest.mark.parametrize("name", sorted(LEAVES))
def test_an_example_runs_and_leaves_its_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    assert capsys.readouterr().out
    for left in LEAVES[name]:
        assert (tmp_path / left).stat().st_size > 0


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_an_example_fits_on_a_screen(name: str) -> None:
    assert len((EXAMPLES / name).read_text().splitlines()) <= 40
