"""The package as a whole: what importing it costs, what it offers, what its source must not do."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import pathorestore

ROOT = Path(__file__).parents[1]
SOURCE = sorted((ROOT / "pathorestore").rglob("*.py"))
HEAVY = (
    "PIL",
    "cv2",
    "diffusers",
    "huggingface_hub",
    "jsonargparse",
    "kornia",
    "lightning",
    "lpips",
    "pytorch_lightning",
    "scipy",
    "skimage",
    "tifffile",
    "timm",
    "torchmetrics",
    "torchvision",
    "transformers",
)
NAMES = [name for name in pathorestore.__all__ if name != "__version__"]


def python(code: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True).stdout


def test_importing_the_package_loads_neither_torch_nor_anything_heavy() -> None:
    loaded = python("import sys, pathorestore; print(*(name for name in sys.modules if '.' not in name))").split()
    assert "pathorestore" in loaded
    assert not {"torch", "numpy", *HEAVY} & set(loaded)


def test_loading_every_public_name_loads_nothing_heavy_beside_torch() -> None:
    code = "import sys, pathorestore; [getattr(pathorestore, name) for name in pathorestore.__all__]; print(*sys.modules)"
    loaded = {name.partition(".")[0] for name in python(code).split()}
    assert "torch" in loaded
    assert not set(HEAVY) & loaded


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_imports_and_says_what_it_is(name: str) -> None:
    value = getattr(pathorestore, name)
    assert value.__name__ == name
    # a dataclass without a docstring gets its signature for one
    assert value.__doc__
    assert not value.__doc__.startswith(f"{name}(")


def test_public_names_are_listed_once_and_by_the_same_home_everywhere() -> None:
    tree = ast.parse((ROOT / "pathorestore" / "__init__.py").read_text())
    for_editors = {
        alias.name: str(node.module).removeprefix("pathorestore.")
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("pathorestore.") and node.module != "pathorestore.version"
        for alias in node.names
    }
    assert for_editors == pathorestore._HOMES
    assert sorted(pathorestore._HOMES) == sorted(NAMES)
    assert set(pathorestore.__all__) <= set(dir(pathorestore))


def test_a_name_that_does_not_exist_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'PFormers'"):
        _ = pathorestore.PFormers


def test_configs_of_leaf_networks_have_three_presets() -> None:
    for name in NAMES:
        if name.endswith("Config"):
            config = getattr(pathorestore, name)
            for preset in ("tiny", "base", "paper"):
                assert isinstance(getattr(config, preset)(), config), f"{name}.{preset}"


def test_the_version_is_written_in_one_place() -> None:
    assert pathorestore.__version__ == version("pathorestore")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    written = [path.name for path in SOURCE if f'"{pathorestore.__version__}"' in path.read_text()]
    assert written == ["version.py"]
    assert f"version: {pathorestore.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{pathorestore.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_layer_imports_only_from_below() -> None:
    tool = Path(sys.executable).with_name("lint-imports")
    if not tool.exists():
        pytest.skip("import-linter is not installed")
    result = subprocess.run([tool], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    "pattern",
    [
        r"torch\.manual_seed\(",
        r"torch\.seed\(",
        r"\bseed_everything\(",
        r"\bnp\.random\.(?!Generator|default_rng)",
        r"(?<![\w.])random\.\w+\(",
        r"\.cuda\(",
        r"\bpickle\.loads?\(",
        r"shell=True",
    ],
)
def test_the_source_seeds_nothing_globally_and_names_no_device_or_pickle(pattern: str) -> None:
    found = [f"{path.name}: {line.strip()}" for path in SOURCE for line in path.read_text().splitlines() if re.search(pattern, line)]
    assert not found


def test_checkpoints_are_unpickled_as_tensors_only() -> None:
    calls = [
        (path.name, node.lineno, {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}.get("weights_only"))
        for path in SOURCE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert calls
    assert all(weights_only == "True" for *_, weights_only in calls), calls


def test_the_command_is_installed() -> None:
    command = shutil.which("pathorestore", path=str(Path(sys.executable).parent))
    assert command is not None


def test_every_test_that_the_fidelity_page_names_exists() -> None:
    named = re.findall(r"`(\w+)::(\w+)`", (ROOT / "docs" / "fidelity.md").read_text())
    assert len(named) > 40
    for file, start in named:
        source = ROOT / "tests" / f"test_{file}.py"
        assert source.exists(), source
        assert f"\ndef test_{start}" in source.read_text(), f"{file}::{start}"


def test_decisions_are_numbered_without_gaps_and_fit_on_a_page() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [int(page.name[:4]) for page in pages] == list(range(1, len(pages) + 1))
    for page in pages:
        text = page.read_text()
        assert len(text.splitlines()) <= 40, page.name
        assert all(f"## {part}" in text for part in ("Context", "Decision", "Consequences")), page.name


def test_links_between_the_pages_lead_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} -> {target}"
