"""Whether the stated preprocessing is right: a batch norm remembers what the layers before it returned in training.

The running mean and variance of the first batch norm are compared with those of its input when plausible images pass
with the stated preprocessing, and with the usual ones. Whatever the network does to its input itself is part of that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from interpkit.config.recipe import TargetOptions
from interpkit.errors import setting
from interpkit.interfaces.targets import Target
from interpkit.runtime.devices import device_of
from interpkit.targets.watch import first_of, watch

IMAGES = 32
"""The most images of each kind, which pass at once; fewer where they are large."""
MOST_NUMBERS = 6_000_000
FITS = 0.05
"""The largest distance at which a preprocessing fits; right ones were at 0.002 to 0.03 on classifiers of photos."""
CLEARLY_WORSE = 0.05
"""How much further away than the best the stated preprocessing must be for a warning."""
POSSIBLE_STD = (0.003, 4.0)
"""Shares of the range; 1/255 and 1 stand for scaling without a standard deviation."""
LEAST_STD, MOST_STD = 0.02, 0.7
"""Between these, as shares of the range, a stated standard deviation may be that of the images in training."""
USUAL: tuple[Mapping[str, Any], ...] = (
    {},
    {"mean": [0.5], "std": [0.5]},  # (x - 127) / 128 of 0..255 is almost the same
    {"input_range": (0.0, 255.0)},
)
USUAL_COLOR: tuple[Mapping[str, Any], ...] = (
    {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    {"mean": [103.939, 116.779, 123.68], "input_range": (0.0, 255.0), "channel_order": "bgr"},
)
USUAL_GRAY: tuple[Mapping[str, Any], ...] = ({"mean": [0.1307], "std": [0.3081]},)


def notes(target: Target) -> list[str]:
    """Return a note if nothing states the normalization of a classifier of images, signals or volumes."""
    if len(target.description.input_shape or target.input_shape) == 1 or _is_stated(target):
        return []
    flags = ", ".join(setting(fact, None) for fact in ("mean", "std", "input_range"))
    return [
        f"nothing states the normalization that {target.name} was trained with, so it receives inputs in [0, 1] as "
        f"they are. If it needs another one, add {flags}."
    ]


def doubts(target: Target, images: Tensor | None = None) -> list[str]:
    """Return a warning if the first batch norm shows that another preprocessing fits better, or none could be right.

    A mean or standard deviation in other units than the range is noticed without one. With one, a wrong range, mean or
    standard deviation shows. The order of the channels hardly does, because images look much
    the same to a batch norm with red and blue exchanged.

    Args:
        target: the classifier.
        images: (N, *input_shape) in [0, 1], of the kind that it was trained on; noise that resembles natural photos,
            and drawings on black and on white, if None.
    """
    shape, stated = target.input_shape, target.description
    if len(shape) != 3:
        return []
    units = _wrong_units(target)
    if not _batch_norms(target):
        return units
    if images is None:
        kinds = plausible(shape)
        natural, narrow, *drawings = kinds
        # Where somebody states a normalization, or images are gray, they may well be no photos.
        lenient = kinds if _is_stated(target) or shape[0] != 3 else [natural, narrow]
        strict = [natural] if shape[0] == 3 else [natural, *drawings]
        if LEAST_STD < 1 / _scale_and_shift(stated)[0].max() < MOST_STD:  # maybe those of other images than these
            whole = (0, 2, 3)
            standard = (natural - natural.mean(whole, keepdim=True)) / natural.std(whole, keepdim=True)
            lenient = [*lenient, _reaching(target, standard)]
    else:
        lenient = strict = [images[:: max(1, len(images) // (8 * IMAGES))]]
    distance = _nearest(target, stated, lenient)
    if distance is None or distance < CLEARLY_WORSE:
        return units
    guesses = [
        (found, guess) for guess in _guesses(target, images) if (found := _nearest(target, guess, strict)) is not None
    ]
    best, guess = min(guesses, key=lambda pair: pair[0])
    if best > max(FITS, distance / 3) or distance - best < CLEARLY_WORSE:
        return units
    order, stated_order = (facts.channel_order or "rgb" for facts in (guess, stated))
    facts = {
        "mean": guess.mean or [0.0],
        "std": guess.std or [1.0],
        "input_range": list(guess.ranges[0]),
        "channel_order": None if order == stated_order else order,
    }
    said = [setting(name, value) for name, value in facts.items() if value is not None]
    what = "the given images" if images is not None else "plausible images"
    return [
        f"the preprocessing of {target.name} is probably wrong: with it, {what} do not give what the first batch norm "
        f"received in training (distance {distance:.2f} of at most 1). With another one they do ({best:.2f}): "
        f"{' '.join(said)}. Check it, or leave it as it is if you know that it is right."
    ]


def _wrong_units(target: Target) -> list[str]:
    """Return a warning if no images in the stated range have the stated mean or standard deviation."""
    facts = target.description
    (low, high), mean, std = facts.ranges[0], facts.mean or [0.0], facts.std or [1.0]
    least, most = (share * (high - low) for share in POSSIBLE_STD)
    if all(low <= value <= high for value in mean) and all(least <= value <= most for value in std):
        return []
    return [
        f"{target.name} receives images in the range {low:g} to {high:g}, which cannot have the mean {mean} and the "
        f"standard deviation {std}. State {setting('mean', None)} and {setting('std', None)} in the units of "
        f"{setting('input_range', None)}, or the range that they are for, such as "
        f"{setting('input_range', (0, 1) if high > 1 else (0, 255))}."
    ]


def _is_stated(target: Target) -> bool:
    return any(target.sources.get(fact, "default") != "default" for fact in ("mean", "std", "input_range"))


def _guesses(target: Target, images: Tensor | None) -> Iterator[TargetOptions]:
    """Yield the usual ones, one by the statistics of the images, and the stated one with the channels reversed."""
    channels, stated = target.input_shape[0], target.description
    usual = USUAL + (USUAL_COLOR if channels == 3 else USUAL_GRAY if channels == 1 else ())
    for guess in usual:
        yield TargetOptions(input_shape=target.input_shape, **guess)
    if images is not None:
        std, mean = torch.std_mean(images, (0, 2, 3))
        own = {"mean": mean.tolist(), "std": std.clamp_min(1e-3).tolist()}
        yield TargetOptions(**{key: [round(value, 3) for value in values] for key, values in own.items()})
    if channels == 3:
        yield stated.model_copy(update={"channel_order": "rgb" if stated.channel_order == "bgr" else "bgr"})


def _batch_norms(target: Target) -> dict[str, Any]:
    """Return the batch norms with statistics, by the name of their input; none where the first is untrained."""
    norms = {
        f"{name}:in": layer
        for name, layer in target.layers().items()
        if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None and layer.running_var is not None
    }
    first: Any = next(iter(norms.values()), None)
    untrained = first is not None and not first.running_mean.any() and (first.running_var == 1).all()
    return {} if untrained else norms


class _ReceivedError(Exception):
    """Ends a forward pass at the first batch norm."""


def _nearest(target: Target, guess: TargetOptions, kinds: Sequence[Tensor]) -> float | None:
    """Return the distance, in [0, 1], of the kind of images that is nearest; None if no batch norm runs."""
    found = [_distance(target, _as_if(target, guess, images)) for images in kinds]
    return min((distance for distance in found if distance is not None), default=None)


def _as_if(target: Target, guess: TargetOptions, images: Tensor) -> Tensor:
    """Return images, some beyond [0, 1], that reach the module as ``images`` would with another preprocessing."""
    scale, shift = _scale_and_shift(guess)
    return _reaching(target, (images.flip(1) if guess.channel_order == "bgr" else images) * scale + shift)


def _reaching(target: Target, wanted: Tensor) -> Tensor:
    """Return the images of which the module receives what is wanted."""
    scale, shift = _scale_and_shift(target.description)
    images = (wanted - shift) / scale
    return images.flip(1) if target.description.channel_order == "bgr" else images


def _scale_and_shift(facts: TargetOptions) -> tuple[Tensor, Tensor]:
    low, high = facts.ranges[0]
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (facts.mean or [0.0], facts.std or [1.0]))
    return (high - low) / std, (low - mean) / std


@torch.no_grad()
def _distance(target: Target, images: Tensor) -> float | None:
    r"""Return the mean squared Hellinger distance, over channels, of the first batch norm's input and its memory.

    Both are taken for normal distributions: :math:`1 - \sqrt{2 s t / (s^2 + t^2)} \exp(-(m - n)^2 / 4 (s^2 + t^2))`.
    """
    norms = _batch_norms(target)
    received: list[Tensor] = []
    first = ""

    def note(name: str, inputs: Any) -> None:
        nonlocal first
        first = name
        received.append(first_of(inputs))
        raise _ReceivedError

    with target.frozen(), watch(norms, note):
        for part in images.to(device_of(target)).split(1 if getattr(target, "one_by_one", False) else IMAGES):
            try:
                target(part)
            except _ReceivedError:
                continue
            except Exception:  # whatever the user's module raises, say of values that it does not expect
                return None
    if not received:
        return None
    values, norm = torch.cat(received).cpu().double(), norms[first]
    variance, mean = torch.var_mean(values, (0, 2, 3))
    known = [each.cpu().double() for each in (norm.running_mean, norm.running_var)]
    variances = [each + norm.eps for each in (variance, known[1])]
    total = sum(variances)
    overlap = (2 * (variances[0] * variances[1]).sqrt() / total).sqrt()
    distances = 1 - overlap * (-((mean - known[0]) ** 2) / (4 * total)).exp()
    return float(distances.mean())


def plausible(shape: Sequence[int]) -> list[Tensor]:
    """Return images (N, C, H, W) of four kinds: photos, photos of half the contrast, drawings on black and on white.

    The photos are noise with amplitudes 1/f (Field 1987) and the mean, the contrast and the colors of ImageNet.
    """
    rng = torch.Generator().manual_seed(0)
    channels, height, width = shape
    images = max(4, min(IMAGES, MOST_NUMBERS // math.prod(shape)))

    def noise(count: int, power: float = 1.0) -> Any:
        spectrum = torch.fft.rfft2(torch.randn(images, count, height, width, generator=rng))
        vertical, horizontal = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
        frequency = (vertical**2 + horizontal**2).sqrt().clamp_min(1 / max(height, width))
        drawn = torch.fft.irfft2(spectrum / frequency**power, s=(height, width))
        drawn = drawn - drawn.mean((2, 3), keepdim=True)
        return drawn / drawn.std((1, 2, 3), keepdim=True).clamp_min(1e-6)

    def per_image(count: int) -> Tensor:
        return torch.randn(images, count, 1, 1, generator=rng)

    contrast = 0.8 + 0.4 * torch.rand(images, 1, 1, 1, generator=rng)
    photos = 0.2 * contrast * noise(1) + 0.14 * per_image(1)
    if channels == 3:
        opponents = torch.tensor([[1.0, 0.0, -1.0], [0.5, -1.0, 0.5]]) / 1.2  # red to blue, magenta to green
        tints = 0.05 * noise(2) + 0.07 * per_image(2)
        colors = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
        photos = photos + colors + torch.einsum("nkhw,kc->nchw", tints, opponents)
    else:
        photos = (photos + 0.45).expand(-1, channels, -1, -1)
    photos = photos.clamp(0, 1)
    strokes = noise(1, power=1.3)
    most = strokes.flatten(1).quantile(0.85, dim=1).view(-1, 1, 1, 1)
    drawings = ((strokes - most) * 4).clamp(0, 1).expand(-1, channels, -1, -1)
    return [photos, 0.45 + (photos - 0.45) / 2, drawings, 1 - drawings]
