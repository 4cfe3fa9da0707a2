"""`reconstruct`: decodes answers of a classifier into pictures, with a decoder trained on such answers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpkit.api.outputs import result_file
from interpkit.attribution.explainer import checked_images
from interpkit.attribution.export import load_images
from interpkit.errors import UsageError, percent, setting
from interpkit.interfaces import contracts
from interpkit.interfaces.generation import Conditioner
from interpkit.interfaces.inversions import Inversion
from interpkit.interfaces.targets import Target
from interpkit.inversion.results import GeneratorInversion, moved, sampling_mode
from interpkit.io.atomic import write_tensors
from interpkit.io.images import is_picture, save_panel, to_picture
from interpkit.io.picture_files import PICTURE_ENDINGS
from interpkit.io.predictions import load_predictions, log_probabilities
from interpkit.io.unlabeled import load_unlabeled
from interpkit.plugins.discovery import installed
from interpkit.runtime.autograd import with_autograd
from interpkit.runtime.devices import choose_device


@dataclass(frozen=True)
class Reconstruction:
    """Answers of a classifier, and the pictures decoded from them, in the order of the input; all on the CPU.

    Attributes:
        target: the classifier.
        predictions: (N, n), the probabilities of the answers.
        images: (N, *input_shape) in [0, 1].
        kept: (N,) bool, whether the target assigns each picture to the class of its answer.
        originals: (N, *input_shape), the images that the target answered; None if only the answers were given.
    """

    target: Target
    predictions: Tensor
    images: Tensor
    kept: Tensor
    originals: Tensor | None = None

    @property
    def errors(self) -> Tensor | None:
        """(N,), the mean squared error of each picture; None without originals."""
        return None if self.originals is None else (self.images - self.originals).square().flatten(1).mean(1)

    def rows(self) -> list[dict[str, Any]]:
        """Return a record for each answer: class, confidence, whether the picture keeps the class, and error."""
        confidence, label = self.predictions.max(1)
        records: list[dict[str, Any]] = [
            {
                "row": row,
                "predicted": self.target.class_names[int(label[row])],
                "confidence": round(float(confidence[row]), 6),
                "kept": bool(self.kept[row]),
            }
            for row in range(len(self.images))
        ]
        for record, error in zip(records, [] if self.errors is None else self.errors.tolist(), strict=False):
            record["error"] = round(error, 6)
        return records

    def save(self, path: Path) -> list[Path]:
        """Write the tensors, and for images also a ``.png`` of the first 50, each beside its original if there is one.

        Args:
            path: a ``.safetensors`` file; it holds ``images`` (and ``originals``) as uint8, or as float32 in the units
                of a classifier of vectors, ``predictions`` and ``kept``.

        Returns:
            the files written.
        """
        images = {"images": self.images} | ({} if self.originals is None else {"originals": self.originals})
        stored = {name: self._stored(tensor) for name, tensor in images.items()}
        tensors = {name: tensor.contiguous() for name, tensor in stored.items()}
        pictures = is_picture(self.target.input_shape)
        file, picture = result_files(path, pictures)
        write_tensors(file, {**tensors, "predictions": self.predictions, "kept": self.kept}, {"format": "pt"})
        if not pictures:
            return [path]
        pairs = zip(*(tensors[name] for name in ("originals", "images") if name in tensors), strict=True)
        names = [f"{row['row']}: {row['predicted']} {percent(row['confidence'])}" for row in self.rows()]
        panel = [(name, [to_picture(each) for each in pair]) for name, pair in zip(names, pairs, strict=True)]
        save_panel(panel, "the original, and what goes with its answer" if self.originals is not None else "", picture)
        return [path, path.with_suffix(".png")]

    def _stored(self, images: Tensor) -> Tensor:
        return self.target.from_unit(images) if images.dim() == 2 else (images * 255).round().to(torch.uint8)


def result_files(path: Path, pictures: bool = True) -> tuple[Path, Path]:
    """Return the files that `Reconstruction.save` writes for a path; see `result_file`.

    Raises:
        UsageError: neither file can be written, or the picture is not one of an earlier call.
    """
    picture = path.with_suffix(".png")
    if pictures and picture.exists() and not path.exists():
        raise UsageError(f"{picture} would be replaced by the picture of {path}: name another file.")
    return result_file(path), result_file(picture)


@with_autograd
def reconstruct(
    inversion: Inversion,
    images: Tensor | str | Path | None = None,
    *,
    predictions: Tensor | str | Path | None = None,
    logits: bool = False,
    device: str = "auto",
) -> Reconstruction:
    """Decode answers of a classifier into pictures: its answers to ``images``, or those in ``predictions``.

    Args:
        inversion: an inversion with a generator whose conditioner accepts answers; see `Conditioner.of_answers`.
        images: (N, *input_shape) in [0, 1], or a picture, a folder of pictures, or a file of images; the target
            answers each of them once.
        predictions: (N, n) probabilities, or a file of them (``.npy``, ``.npz``, ``.safetensors``, ``.csv``).
        logits: whether ``predictions`` are logits or log-probabilities.
        device: device to compute on.

    Raises:
        UsageError: the inversion has no such generator, or the images or predictions do not fit the classifier.

    Example:
        >>> import numpy, torch
        >>> from interpkit import invert, reconstruct, wrap
        >>> numpy.savez("public.npz", images=numpy.random.rand(40, 2).astype("float32"))
        >>> target = wrap(torch.nn.Identity(), input_shape=(2,))
        >>> inversion = invert(target, inverter="alignment", data="public.npz", steps=20, batch_size=16)
        >>> found = reconstruct(inversion, predictions=torch.tensor([[0.7, 0.3]]))
        >>> found.images.shape, found.rows()[0]["predicted"]
        (torch.Size([1, 2]), '0')
    """
    if (images is None) == (predictions is None):
        raise UsageError(
            f"name either the images that the classifier answers by {setting('images', 'FILE')}, or its answers by "
            f"{setting('predictions', 'FILE')}."
        )
    conditioner: Any = getattr(inversion, "conditioner", None)
    own = type(getattr(conditioner, "responsible", conditioner))
    if not isinstance(inversion, GeneratorInversion) or not _accepts_answers(own):
        those = [e.name for e in installed().registry.entries("conditioner") if _accepts_answers(e.item)]
        raise UsageError(
            f"this inversion by {inversion.recipe.inverter.name!r} makes pictures of classes, not of answers. Train a "
            f"decoder of answers: an inverter with {' or '.join(setting('conditioner', name) for name in those)}."
        )
    target, place = inversion.target, choose_device(device)
    if target.multi_label:
        raise UsageError(
            f"an answer is decoded as one distribution over the classes, and those of {target.name} do not exclude "
            f"each other."
        )
    size = inversion.recipe.sampling.chunk
    originals = None if images is None else _images(images, target)
    with moved(inversion, place), target.frozen(place), torch.no_grad():

        def answered(given: Tensor) -> Tensor:
            return torch.cat([target(part.to(place)).cpu() for part in given.split(size)])

        if originals is not None:
            answers = answered(originals)
        else:
            assert predictions is not None  # as checked above
            given, what = predictions, "predictions"
            if not isinstance(given, Tensor):
                given, what = load_predictions(Path(given), target.class_names), str(given)
            answers = log_probabilities(given, target.num_classes, what, logits=logits)
        made = torch.cat([_decoded(inversion, part.to(place)).cpu() for part in answers.split(size)])
        kept = answered(made).argmax(1) == answers.argmax(1)
    return Reconstruction(target, answers.softmax(1), made, kept, originals)


def _decoded(inversion: GeneratorInversion, answers: Tensor) -> Tensor:
    """Return the pictures decoded from answers, (B, n), with a latent of zeros."""
    generator, conditioner = inversion.generator, inversion.conditioner
    with sampling_mode(generator, dropout=False), sampling_mode(conditioner, dropout=False):
        condition = contracts.condition_of(conditioner, answers)
        latent = answers.new_zeros(len(answers), generator.latent_dim)
        return contracts.images(generator, latent, condition, torch.zeros_like(condition.labels))


def _images(given: Tensor | str | Path, target: Target) -> Tensor:
    """Return images, (N, *input_shape) in [0, 1]; any labels are ignored."""
    if isinstance(given, Tensor):
        return checked_images(target, given).clone()
    if Path(given).suffix.lower() in (*PICTURE_ENDINGS, ".safetensors"):
        return load_images(str(given), target)[0]
    facts = target.description
    shape = facts.input_shape or target.input_shape
    return target.to_unit(load_unlabeled(str(given), shape, resize=True, crop_pct=facts.crop_pct))


def _accepts_answers(conditioner: type[Conditioner]) -> bool:
    """Return whether conditioners of a class use more of an answer than its most probable class."""
    return conditioner.of_answers is not Conditioner.of_answers
