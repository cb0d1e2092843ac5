"""Simulate what a defocused objective and its camera make of a sharp image, with exact labels."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from pathorestore.degradations import acquisition
from pathorestore.degradations.recipes import Parameters, Setting
from pathorestore.degradations.slab import Slab, image_slab, smooth_fields
from pathorestore.functional.color import linear_to_srgb, srgb_to_linear
from pathorestore.functional.optics import Optics, band_mtf
from pathorestore.image import pad_around

_HALO_PX = 32
_VEIL_UM = 5.0
_STRUCTURE_PX = 12.0  # layers exchange places over about the size of a nucleus


class Degraded(NamedTuple):
    """A batch of simulated images: degraded and clean b 3 h w in [0, 1], signed defocus b in um, CTF values b, what was drawn for each."""

    degraded: Tensor
    clean: Tensor
    defocus_um: Tensor
    ctf: Tensor
    parameters: list[Parameters]


class FocalStack(NamedTuple):
    """A simulated focal stack: planes n 3 h w, clean 1 3 h w, signed defocus n in um, CTF values n, height map 1 1 h w in um."""

    planes: Tensor
    clean: Tensor
    defocus_um: Tensor
    ctf: Tensor
    depth_um: Tensor
    parameters: Parameters


class _Scene(NamedTuple):
    """One field: the light of its section, where that lies in depth, and the light of a second tissue above or below it."""

    light: Tensor
    slab: Slab
    second: Tensor
    parameters: Parameters
    from_scan: bool


def _crop(image: Tensor, margin_px: int) -> Tensor:
    return image[..., margin_px : image.shape[-2] - margin_px, margin_px : image.shape[-1] - margin_px]


def _height_map(size_px: tuple[int, int], parameters: Parameters, generator: torch.Generator) -> Tensor:
    """Height h w in um: a plane tilted in a random direction plus a smooth random relief."""
    height, width = size_px
    if parameters.height_um == 0 and parameters.tilt_um == 0:
        return torch.zeros(size_px)
    relief = smooth_fields(1, height, width, scale_px=parameters.height_scale_px, generator=generator)[0] * parameters.height_um
    angle = 2 * math.pi * torch.rand((), generator=generator).item()
    rows, columns = torch.linspace(-0.5, 0.5, height)[:, None], torch.linspace(-0.5, 0.5, width)
    return relief + parameters.tilt_um * (math.cos(angle) * columns + math.sin(angle) * rows)


def _mean_defocus(focus_um: Tensor, height_um: Tensor, margin_px: int) -> Tensor:
    """Signed defocus of focus positions, averaged over what the crop keeps of a height map h w."""
    return focus_um - _crop(height_um, margin_px).mean()


def _slab(height_um: Tensor, parameters: Parameters, generator: torch.Generator) -> Slab:
    """Split a section into layers across its thickness; the one nearest the focal plane holds about `focal_share` of the absorption."""
    count = parameters.layers
    if count == 1 or parameters.thickness_um == 0:
        return Slab.flat(height_um)
    depth = parameters.thickness_um * ((torch.arange(count) + 0.5) / count - 0.5)
    depth = depth - depth[count // 2]
    others = (1 - parameters.focal_share) / (count - 1)
    mean = torch.full((count,), others)
    mean[count // 2] = parameters.focal_share
    fields = smooth_fields(count, *height_um.shape, scale_px=_STRUCTURE_PX, generator=generator)
    shares = (mean.clamp(min=1e-3).log()[:, None, None] + fields).softmax(0)
    return Slab(height_um, depth, shares)


def _focus(scene: _Scene, focus_um: Tensor, slab: Slab) -> Tensor:
    """Linear light n 3 h w that reaches the camera with the focus at n heights."""
    optics = scene.parameters.optics
    light = image_slab(scene.light, slab, focus_um, optics, from_scan=scene.from_scan)
    if scene.parameters.second_layer > 0:
        plane = Slab.flat(torch.full_like(slab.height_um, scene.parameters.second_layer_um))
        light = light * image_slab(scene.second, plane, focus_um, optics, from_scan=scene.from_scan)
    return light.clamp(0, 1)


def _clean(scene: _Scene) -> Tensor:
    """The in-focus image 1 3 h w: the focus follows the section's height, its layers and the second tissue keep their own depth."""
    thin = scene.slab.shares.shape[0] == 1 and scene.parameters.second_layer == 0
    level = Slab(torch.zeros_like(scene.slab.height_um), scene.slab.layer_um, scene.slab.shares)
    light = scene.light if thin else _focus(scene, torch.zeros(1), level)
    return acquisition.quantise(_develop(light, scene.parameters))


def _develop(light: Tensor, parameters: Parameters) -> Tensor:
    """The colour processing that every image of the scanner shares: white balance, sRGB curve, gamma."""
    image = linear_to_srgb(acquisition.white_balance(light, gains=parameters.white_balance).clamp(0, 1))
    return acquisition.gamma(image, exponent=parameters.gamma) if parameters.gamma != 1 else image


def _expose(light: Tensor, parameters: Parameters, generator: torch.Generator) -> Tensor:
    """Photon and read noise, and the colour filter array. The standard deviation is set in grey levels of sRGB at half intensity."""
    # d sRGB / d linear at 0.5
    slope = 1.055 / 2.4 * 0.5 ** (1 / 2.4 - 1)
    variance = (parameters.noise_levels / 255 / slope) ** 2
    shot, read = variance * (1 - parameters.read_share), variance * parameters.read_share
    if shot > 0:
        light = acquisition.shot_noise(light, photons=0.5 / shot, generator=generator)
    if read > 0:
        light = acquisition.read_noise(light, deviation=math.sqrt(read), generator=generator)
    return acquisition.demosaic(light, phase=parameters.demosaic_phase) if parameters.demosaic_phase >= 0 else light


def _veil(light: Tensor, defocus_um: float, parameters: Parameters) -> Tensor:
    """Loss of contrast and saturation, growing with defocus."""
    strength = 0.5 + 0.5 * min(abs(defocus_um) / _VEIL_UM, 1)
    light = acquisition.glare(light, share=parameters.glare * strength) if parameters.glare else light
    return acquisition.desaturate(light, share=parameters.saturation_loss * strength) if parameters.saturation_loss else light


def _store(image: Tensor, parameters: Parameters, generator: torch.Generator) -> Tensor:
    """Sharpening, 8 bit, file compression at a random position of its block grid."""
    if parameters.sharpening > 0:
        image = acquisition.unsharp(image, amount=parameters.sharpening, sigma_px=parameters.sharpening_px)
    image = acquisition.quantise(image)
    if parameters.quality == 0:
        return image
    shift = torch.randint(0, 16, (2,), generator=generator).tolist()
    rolled = acquisition.compress(image.roll(shift, (-2, -1)), quality=parameters.quality, codec=parameters.codec)
    return rolled.roll([-step for step in shift], (-2, -1))


def _degrade(scene: _Scene, focus_um: float, defocus_um: float, generator: torch.Generator) -> Tensor:
    parameters = scene.parameters
    light = _focus(scene, torch.tensor([focus_um]), scene.slab)
    if parameters.motion_blur_px > 0:
        angle = math.pi * torch.rand((), generator=generator).item()
        light = acquisition.motion_blur(light, length_px=parameters.motion_blur_px, angle=angle)
    if parameters.residual_blur_px > 0:
        light = acquisition.gaussian_blur(light, sigma_px=parameters.residual_blur_px)
    light = _expose(_veil(light, defocus_um, parameters), parameters, generator)
    return _store(_develop(light, parameters), parameters, generator)


def _labels(defocus_um: Tensor, optics: list[Optics]) -> Tensor:
    """C(|d|) b of the drawn objectives without their aberrations, so that it is a function of the distance alone."""
    plain = [replace(one, spherical_waves=0.0) for one in optics]
    if len(set(plain)) == 1:
        return band_mtf(defocus_um.abs(), plain[0])
    return torch.cat([band_mtf(distance, one) for distance, one in zip(defocus_um.abs()[:, None], plain, strict=True)])


def _second_tissue(light: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Another tissue 1 3 h w made of a light field: mirrored, shifted at random, thinned to `strength` of its density."""
    if strength == 0:
        return light
    height, width = light.shape[-2:]
    rows, columns = (int(torch.randint(0, side, (), generator=generator)) for side in (height, width))
    # beside its mirror images a field has no seams, wherever it is shifted
    wide = torch.cat([light.flip(-1), light], -1).roll(columns, -1)[..., :width]
    return torch.cat([wide, wide.flip(-2)], -2).roll(rows, -2)[..., :height, :].clamp(1e-4, 1) ** strength


def degrade(
    sharp: Tensor,
    z_um: Tensor | None,
    *,
    setting: Setting | Sequence[Setting],
    generator: torch.Generator | Sequence[torch.Generator],
    margin_px: int = 0,
) -> Degraded:
    """Defocus and photograph each sharp sRGB image b 3 h w at focus positions `z_um` b (drawn when None), with its own draw of the setting.

    margin_px: so many extra pixels on each side were supplied and are cropped from every output; with 0 the image is reflected outwards
    inside. `defocus_um` is z minus the mean height over the crop; `ctf` is c(|defocus|) of the drawn objective. `clean` is what the same
    camera sees in focus, 8 bit, without noise and compression; with `Setting.ideal()` the sharp input itself. setting, generator: one for
    all or one an image; CPU generators. With a generator of its own an image's result does not depend on the rest of the batch.
    Raises ValueError if z_um, setting or generator do not have one entry per image or the margin leaves no image.
    """
    count = len(sharp)
    settings = [setting] * count if isinstance(setting, Setting) else list(setting)
    generators = [generator] * count if isinstance(generator, torch.Generator) else list(generator)
    if len(settings) != count or len(generators) != count:
        raise ValueError(
            f"got {len(settings)} settings and {len(generators)} generators for {count} images; give one for all or one an image"
        )
    if z_um is not None and z_um.shape != (count,):
        raise ValueError(f"z_um has shape {tuple(z_um.shape)}; expected ({count},), one focus position per image")
    if min(sharp.shape[-2:]) <= 2 * margin_px:
        raise ValueError(f"margin_px={margin_px} on both sides leaves nothing of {tuple(sharp.shape[-2:])} px; supply a larger crop")
    margin = margin_px or _HALO_PX
    light = srgb_to_linear(sharp if margin_px else pad_around(sharp, margin))
    size = (light.shape[-2], light.shape[-1])
    draws: list[tuple[Tensor, Tensor, Tensor, Parameters]] = []
    for i, (own, stream) in enumerate(zip(settings, generators, strict=True)):
        parameters = own.sample(stream)
        fraction = 2 * torch.rand((), generator=stream) - 1
        focus = z_um[i].detach().cpu().float() if z_um is not None else parameters.max_defocus_um * fraction
        height = _height_map(size, parameters, stream)
        second = _second_tissue(light[i : i + 1], parameters.second_layer, stream)
        scene = _Scene(light[i : i + 1], _slab(height, parameters, stream), second, parameters, own.from_scan)
        defocus = _mean_defocus(focus, height, margin)
        degraded = _degrade(scene, focus.item(), defocus.item(), stream)
        draws.append((_crop(degraded, margin), _crop(_clean(scene), margin), defocus, parameters))
    images, targets, distances, chosen = zip(*draws, strict=True)
    defocus_um = torch.stack(distances)
    ctf = _labels(defocus_um, [parameters.optics for parameters in chosen])
    return Degraded(torch.cat(images), torch.cat(targets), defocus_um.to(sharp.device), ctf.to(sharp.device), list(chosen))


def simulate_stack(
    sharp: Tensor, z_um: Tensor, *, setting: Setting, generator: torch.Generator, depth_um: Tensor | None = None
) -> FocalStack:
    """A focal stack of one sharp sRGB image 1 3 h w at focus positions `z_um` n, all planes with one draw of the setting.

    depth_um: height of the section, 1 1 h w in um; drawn from the setting when None. Noise differs from plane to plane.
    Raises ValueError for another number of images or another size of the height map.
    """
    height, width = sharp.shape[-2:]
    if len(sharp) != 1 or (depth_um is not None and depth_um.shape != (1, 1, height, width)):
        given = None if depth_um is None else tuple(depth_um.shape)
        raise ValueError(f"sharp {tuple(sharp.shape)} and depth_um {given} do not fit; expected (1, 3, h, w) and (1, 1, h, w)")
    light = srgb_to_linear(pad_around(sharp, _HALO_PX))
    parameters = setting.sample(generator)
    size = (light.shape[-2], light.shape[-1])
    relief = _height_map(size, parameters, generator) if depth_um is None else pad_around(depth_um.cpu().float(), _HALO_PX)[0, 0]
    second = _second_tissue(light, parameters.second_layer, generator)
    scene = _Scene(light, _slab(relief, parameters, generator), second, parameters, setting.from_scan)
    depth = _crop(relief, _HALO_PX)
    defocus = _mean_defocus(z_um.detach().cpu().float(), relief, _HALO_PX)
    planes = [_degrade(scene, z, d, generator) for z, d in zip(z_um.tolist(), defocus.tolist(), strict=True)]
    ctf = _labels(defocus, [parameters.optics] * len(defocus)).to(sharp.device)
    return FocalStack(
        planes=_crop(torch.cat(planes), _HALO_PX),
        clean=_crop(_clean(scene), _HALO_PX),
        defocus_um=defocus.to(sharp.device),
        ctf=ctf,
        depth_um=depth[None, None].to(sharp.device),
        parameters=parameters,
    )
