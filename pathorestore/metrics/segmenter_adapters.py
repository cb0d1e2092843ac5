"""Segmenters with networks of other packages: InstanSeg, HoVer-Net through TIAToolbox, StarDist; and HoVer-Net's way from maps to nuclei.

The packages are optional and imported at the first image. The adapters follow the packages' documented interface and are tested against
stand-ins of it; the packages themselves are not part of the tests.
"""

import importlib
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from pathorestore.metrics.availability import Availability
from pathorestore.metrics.segmenters import Labels, LooksAtPixels, Pixels, check_mpp

_NUCLEAR, _EDGE = 0.5, 0.4
_SMALLEST_MARKER_PX = 10
_WINDOWS = {"original": (270, 80), "fast": (256, 164)}  # px that go in, and the px in their middle that come out


@dataclass(frozen=True)
class InstanSeg(LooksAtPixels):
    """InstanSeg (Goldsborough et al. 2024, arXiv:2408.15954), from the package `instanseg-torch`.

    model: a name that the package knows, which it downloads when it first needs it and keeps; or the path of a TorchScript file, for which
    nothing is downloaded. mpp: um per pixel of the images; the package resamples to what the model expects and back, so no `AtScale` is
    needed. device: None leaves the choice to the package.
    """

    model: str | Path = "brightfield_nuclei"
    _: KW_ONLY
    mpp: float = 0.25
    device: str | None = None

    def __post_init__(self) -> None:
        check_mpp(self.mpp)

    def available(self) -> Availability:
        """Whether the package is installed, and the file there if the model is one."""
        if isinstance(self.model, Path) and not self.model.is_file():
            return Availability(False, f"there is no InstanSeg model {self.model}; give the path of its TorchScript file instanseg.pt")
        return _installed("instanseg", "instanseg-torch")

    @cached_property
    def _network(self) -> Any:
        package = _imported("instanseg", "instanseg-torch")
        file = Path(self.model)
        model = torch.jit.load(str(file)) if file.is_file() else str(self.model)  # type: ignore[no-untyped-call]
        return package.InstanSeg(model, device=self.device, verbosity=0)

    def __call__(self, pixels: Pixels) -> Labels:
        """Segment. Raises ImportError with the remedy if the package is missing."""
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float()
        # the package's own limit between one pass and tiles
        evaluate = self._network.eval_small_image if pixels[..., 0].size <= 1500**2 else self._network.eval_medium_image
        found = evaluate(image, pixel_size=self.mpp, target="nuclei", return_image_tensor=False)
        return np.asarray(torch.as_tensor(found).reshape(pixels.shape[:2]).round().int().cpu().numpy())


@dataclass(frozen=True)
class StarDist(LooksAtPixels):
    """StarDist (Schmidt et al. 2018, MICCAI) with a model from a folder, from the packages `stardist` and `tensorflow`.

    folder: of the model, with its config.json, weights and thresholds, e.g. of 2D_versatile_he. mpp: um per pixel that it was trained at.
    """

    folder: Path | str
    _: KW_ONLY
    mpp: float = 0.25

    def __post_init__(self) -> None:
        check_mpp(self.mpp)

    def available(self) -> Availability:
        """Whether the packages are installed and the folder holds a model."""
        if not Path(self.folder, "config.json").is_file():
            return Availability(False, f"{self.folder} holds no StarDist model (config.json); give the folder of one, unpacked")
        stardist = _installed("stardist", "stardist tensorflow")
        return _installed("tensorflow", "stardist tensorflow") if stardist.ok else stardist

    @cached_property
    def _network(self) -> Any:
        models, folder = _imported("stardist.models", "stardist tensorflow"), Path(self.folder).resolve()
        return models.StarDist2D(None, name=folder.name, basedir=str(folder.parent))

    def __call__(self, pixels: Pixels) -> Labels:
        """Segment. Raises ImportError with the remedy if a package is missing."""
        normalize = _imported("csbdeep.utils", "stardist tensorflow").normalize
        labels, _ = self._network.predict_instances(normalize(pixels, 1, 99.8))
        return np.asarray(labels, dtype=np.int32)


@dataclass(frozen=True)
class HoverNet(LooksAtPixels):
    """HoVer-Net (Graham et al. 2019, Medical Image Analysis 58) with a local checkpoint, its network from the package `tiatoolbox`.

    checkpoint: a state dict that `torch.load` reads with `weights_only=True`, bare or under the key "desc"; whether and how many types of
    nuclei it tells apart is read off it, the types themselves are not used. mode: "original" (CoNSeP weights, 270 px in, 80 px out) or
    "fast" (PanNuke, 256 and 164 px). mpp: um per pixel that it was trained at. batch: windows at a time.
    """

    checkpoint: Path | str
    _: KW_ONLY
    mode: Literal["original", "fast"] = "original"
    mpp: float = 0.25
    device: str = "cpu"
    batch: int = 8

    def __post_init__(self) -> None:
        check_mpp(self.mpp)
        if self.mode not in _WINDOWS:
            raise ValueError(f"mode must be one of {', '.join(_WINDOWS)}; got {self.mode!r}")
        if self.batch < 1:
            raise ValueError(f"batch={self.batch} must be at least 1 window")

    def available(self) -> Availability:
        """Whether the package is installed and the checkpoint there."""
        if not Path(self.checkpoint).is_file():
            return Availability(False, f"there is no HoVer-Net checkpoint {self.checkpoint}; download one that fits mode={self.mode!r}")
        return _installed("tiatoolbox", "tiatoolbox")

    @cached_property
    def _network(self) -> Any:
        architecture = _imported("tiatoolbox.models.architecture.hovernet", "tiatoolbox")
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        state = state.get("desc", state)
        types = state.get("decoder.tp.u0.conv.bias")
        network = architecture.HoVerNet(num_types=None if types is None else len(types), mode=self.mode)
        network.load_state_dict(state)
        return network.to(self.device).eval()

    def __call__(self, pixels: Pixels) -> Labels:
        """Segment. Raises ImportError with the remedy if the package is missing, RuntimeError if the checkpoint does not fit the mode."""
        nuclear, towards = self._maps(pixels)
        return hover_instances(nuclear, towards)

    @torch.inference_mode()
    def _maps(self, pixels: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The probability of nucleus h w, and the horizontal and vertical distances h w 2, from windows side by side."""
        taken, given = _WINDOWS[self.mode]
        (height, width), margin = pixels.shape[:2], (taken - given) // 2
        down, across = -(-height // given) * given, -(-width // given) * given
        # numpy reflects as often as it takes, so that images smaller than the margin pass too
        padded = np.pad(pixels, ((margin, margin + down - height), (margin, margin + across - width), (0, 0)), mode="symmetric")
        corners = [(y, x) for y in range(0, down, given) for x in range(0, across, given)]
        maps = np.zeros((down, across, 3), dtype=np.float32)
        for start in range(0, len(corners), self.batch):
            chosen = corners[start : start + self.batch]
            windows = np.stack([padded[y : y + taken, x : x + taken] for y, x in chosen]).transpose(0, 3, 1, 2)
            out = self._network(torch.from_numpy(windows).float().to(self.device))  # it divides by 255 itself
            found = torch.cat([out["np"].softmax(dim=1)[:, 1:], out["hv"]], dim=1).permute(0, 2, 3, 1).float().cpu().numpy()
            for (y, x), window in zip(chosen, found, strict=True):
                maps[y : y + given, x : x + given] = window
        return maps[:height, :width, 0], maps[:height, :width, 1:]


def hover_instances(nuclear_map: NDArray[Any], hv_maps: NDArray[Any]) -> Labels:
    """Nuclei from what HoVer-Net predicts, as a label map h w: watershed from markers that end where the distance maps fall steeply.

    nuclear_map: probability of nucleus h w. hv_maps: distance to the nucleus' centre of mass h w 2, horizontal and vertical, -1 at the left
    or upper border of a nucleus to 1 at its other. Between touching nuclei they drop from 1 to -1. A marker is where a pixel is nuclear
    (at least 0.5) and the drop below 0.4 of the largest; a nuclear region without a marker of 10 px is no nucleus.
    Raises ValueError if the shapes differ. Source: Graham et al. 2019, section 3.3.2, with Sobel kernels of 21 px.
    """
    if nuclear_map.ndim != 2 or hv_maps.shape != (*nuclear_map.shape, 2):
        raise ValueError(f"expected maps h w and h w 2; got {nuclear_map.shape} and {hv_maps.shape}")
    import cv2
    from scipy import ndimage
    from skimage.segmentation import watershed

    nuclear = nuclear_map >= _NUCLEAR
    if not nuclear.any():
        return np.zeros(nuclear.shape, dtype=np.int32)
    slopes = [cv2.Sobel(_to_unit(hv_maps[..., axis]), cv2.CV_64F, 1 - axis, axis, ksize=21) for axis in (0, 1)]
    drop = np.max([_to_unit(-slope) for slope in slopes], axis=0)
    markers, _ = ndimage.label(nuclear & (drop < _EDGE))
    small = np.bincount(markers.ravel()) < _SMALLEST_MARKER_PX
    markers[small[markers]] = 0
    return np.asarray(watershed(drop, markers, mask=nuclear), dtype=np.int32)


def _to_unit(values: NDArray[Any]) -> NDArray[np.float64]:
    """Values stretched to 0..1; a flat map becomes 0."""
    low, high = float(values.min()), float(values.max())
    return (values.astype(np.float64) - low) / (high - low or 1.0)


def _installed(module: str, packages: str) -> Availability:
    if find_spec(module) is None:
        return Availability(False, f"it needs {module}, which is not installed: pip install {packages}")
    return Availability(True)


def _imported(module: str, packages: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"this segmenter needs {module} ({error}); install it with: pip install {packages}") from error
