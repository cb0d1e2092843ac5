"""A sharp image file to the files of a simulated focal stack, with exact labels."""

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from pathorestore.atomic import write_atomic
from pathorestore.degradations.optical import FocalStack, simulate_stack
from pathorestore.degradations.recipes import Setting
from pathorestore.pipelines.image_file import DEFAULT_MAX_PIXELS, ImageFile, ImageFileError, check_target, read_image_file, write_image_file
from pathorestore.pipelines.provenance import SIMULATED_NOTICE, Provenance
from pathorestore.version import __version__

SETTINGS = {"ideal": Setting.ideal, "scanner": Setting.scanner, "shifted": Setting.shifted}
ASSUMED_PIXEL_UM = 0.25


@dataclass(frozen=True, kw_only=True)
class SimulatedPlane:
    """One row of the table: file name, focus position, signed distance of the section from focus, and the CTF value there."""

    plane: str
    z_um: float
    defocus_um: float
    ctf: float


@dataclass(frozen=True, kw_only=True)
class StackFiles:
    """What was written: a row for each plane, the clean target, the table; and a sentence for each thing worth knowing."""

    planes: tuple[SimulatedPlane, ...]
    clean: Path
    table: Path
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class SimulateFile:
    """Simulates the focal stack of an image file.

    z_um: focus positions, signed. setting: a name in SETTINGS. pixel_um: side of a pixel; None takes what the file says, else 0.25 um.
    Raises ValueError for positions that are not finite or have the same name at three decimals, and for an unknown setting.
    """

    z_um: Sequence[float]
    created_utc: str
    setting: str = "ideal"
    seed: int = 0
    pixel_um: float | None = None
    overwrite: bool = False
    max_pixels: int = DEFAULT_MAX_PIXELS

    def __post_init__(self) -> None:
        if self.setting not in SETTINGS:
            raise ValueError(f"setting {self.setting!r} is unknown; expected one of {', '.join(SETTINGS)}")
        if not self.z_um or not all(math.isfinite(z) for z in self.z_um):
            raise ValueError(f"z_um={list(self.z_um)} must be one or more finite focus positions in um, e.g. -1.6 0 1.6")
        if len({_label(z) for z in self.z_um}) < len(self.z_um):
            raise ValueError(f"z_um={list(self.z_um)} names a focus position twice (to 0.001 um); give each once")
        if self.pixel_um is not None and not (math.isfinite(self.pixel_um) and self.pixel_um > 0):
            raise ValueError(f"pixel_um={self.pixel_um} must be a positive number of micrometres")

    def __call__(self, sharp: Path, folder: Path) -> StackFiles:
        """Write `<name>_z+1.600um.png` for each position, `<name>_clean.png` and `<name>_stack.csv` to the folder."""
        source = read_image_file(sharp, max_pixels=self.max_pixels)
        names = [f"{sharp.stem}_z{_label(z)}um.png" for z in self.z_um]
        clean, table = folder / f"{sharp.stem}_clean.png", folder / f"{sharp.stem}_stack.csv"
        for path in (*(folder / name for name in names), clean):
            check_target(path, sharp, overwrite=self.overwrite)
        if table.exists() and not self.overwrite:
            raise ImageFileError(f"{table}: exists already; --overwrite replaces it")
        pixel_um = self.pixel_um or source.pixel_um or ASSUMED_PIXEL_UM
        stack = self._stack(source, pixel_um)
        like = replace(source, bit_depth=8, alpha=None, pixel_um=pixel_um)
        for name, z, plane in zip((*names, clean.name), (*self.z_um, None), (*stack.planes[:, None], stack.clean), strict=True):
            write_image_file(folder / name, plane, like, self._provenance(like, z), overwrite=self.overwrite)
        rows = tuple(
            SimulatedPlane(plane=name, z_um=z, defocus_um=defocus, ctf=ctf)
            for name, z, defocus, ctf in zip(names, self.z_um, stack.defocus_um.tolist(), stack.ctf.tolist(), strict=True)
        )
        write_atomic(table, _csv(rows).encode())
        known = self.pixel_um or source.pixel_um
        notes = source.notes if known else (*source.notes, f"pixel size unknown, {ASSUMED_PIXEL_UM} um assumed; --pixel-um sets it")
        return StackFiles(planes=rows, clean=clean, table=table, notes=notes)

    def _stack(self, source: ImageFile, pixel_um: float) -> FocalStack:
        setting = replace(SETTINGS[self.setting](), pixel_um=(pixel_um, pixel_um))
        generator = torch.Generator().manual_seed(self.seed)
        return simulate_stack(source.image, torch.tensor(list(self.z_um)), setting=setting, generator=generator)

    def _provenance(self, source: ImageFile, z_um: float | None) -> Provenance:
        return Provenance(
            version=__version__,
            model_id="focal-stack simulator",
            weights_sha256=None,
            seed=self.seed,
            parameters={"setting": self.setting, "z_um": z_um},
            input_sha256=source.input_sha256,
            pixel_um=source.pixel_um,
            created_utc=self.created_utc,
            notice=SIMULATED_NOTICE,
        )


def _label(z_um: float) -> str:
    return f"{round(z_um, 3) + 0.0:+.3f}"  # adding zero turns -0.0 into 0.0


def _csv(rows: Sequence[SimulatedPlane]) -> str:
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(["plane", "z_um", "defocus_um", "ctf"])
    table.writerows([row.plane, f"{row.z_um:.6g}", f"{row.defocus_um:.6f}", f"{row.ctf:.6f}"] for row in rows)
    return out.getvalue()
