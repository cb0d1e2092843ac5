"""The model card of exported weights, filled from the record of their training."""

from collections.abc import Mapping, Sequence
from typing import Any

from pathorestore.hub import ModelCard

_REFERENCES = (
    "Mixture of Prompts: arXiv 2503.12399. Restormer: Zamir et al., CVPR 2022. ResShift: Yue et al., NeurIPS 2023. "
    "RandStainNA: Shen et al., MICCAI 2022. VICReg: Bardes et al., ICLR 2022. ISTE: arXiv 2401.15613. SwinIR: Liang et al., ICCVW 2021. "
    "LIIF: Chen et al., CVPR 2021. LTE: Lee & Jin, CVPR 2022. Histo-Diffusion: arXiv 2408.15218. DiffBIR: Lin et al., ECCV 2024. Latent "
    "diffusion: Rombach et al., CVPR 2022. ControlNet: Zhang et al., ICCV 2023.",
)


def training_card(record: Mapping[str, Any], *, title: str, trained: Sequence[str], averaged: bool, notes: Sequence[str] = ()) -> ModelCard:
    """What `TrainingRecord` knows, as a card; what it does not know is printed as not recorded.

    trained: names of the parts that this training moved. averaged: whether the weights are the moving average. notes: sentences for the
    summary.
    """
    weights = "the exponential moving average of the weights" if averaged else "the last weights, not averaged"
    summary = f"{', '.join(trained)} as trained by {record.get('stage', 'an unrecorded stage')} of pathorestore; {weights}."
    step = record.get("validation_step")
    return ModelCard(
        title=title,
        summary=" ".join([summary, *notes]),
        data=_data(record.get("manifest")),
        seed=", ".join(f"{name} {seed}" for name, seed in record.get("seeds", {}).items()),
        command=" && ".join(record.get("commands", [])),
        duration=_duration(record),
        hardware=_hardware(record),
        code=_code(record),
        metrics={f"{name} (step {step})": value for name, value in record.get("validation", {}).items()},
        references=_REFERENCES,
    )


def _data(manifest: Mapping[str, str] | None) -> str:
    return f"manifest {manifest['name']}, sha256 {manifest['sha256']}; what it holds and its licences: not recorded" if manifest else ""


def _duration(record: Mapping[str, Any]) -> str:
    if not record:
        return ""
    images = record["batch"] * record["accumulate"] * record["processes"]
    runs = f" in {record['runs']} runs" if record["runs"] > 1 else ""
    return f"{record['minutes']:.1f} min{runs}; {record['steps']:,} steps of {images} images ({record['images_seen']:,} images seen)"


def _hardware(record: Mapping[str, Any]) -> str:
    if not record:
        return ""
    memory = f"peak memory {record['peak_memory_gib']:.2f} GiB" if record["peak_memory_gib"] else "peak memory not recorded"
    return f"{record['machine']}; {memory}; precision {record['precision']}"


def _code(record: Mapping[str, Any]) -> str:
    if not record:
        return ""
    commit = f", commit {record['commit']}" if record["commit"] else ""
    software = f"torch {record['torch']}, lightning {record['lightning']}, Python {record['python']}"
    return f"pathorestore {record['version']}{commit}; {software}"
