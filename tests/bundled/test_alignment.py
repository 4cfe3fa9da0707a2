"""The inverter `alignment`: answers become conditions, a decoder learns their pictures, and each query is counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from interpkit_alignment import Alignment, Decoder, PredictionConditioner
from torch import Tensor, nn

import interpkit
from interpkit import ConditionSpec, GeneratorInversion, RunError, UsageError

PROBABILITIES = torch.tensor([[0.7, 0.2, 0.1], [0.05, 0.15, 0.8]])
SHAPE = (1, 8, 8)


def conditioner_of(**options: Any) -> PredictionConditioner:
    return PredictionConditioner(3, SHAPE, PredictionConditioner.Options(**options))


@pytest.fixture
def public(tmp_path: Path) -> Path:
    """Pictures that are bright in one of three parts, more or less."""
    rng = np.random.default_rng(0)
    images = rng.random((90, 8, 8)) * 0.2
    for row, image in enumerate(images):
        image[:, 3 * (row % 3) : 3 * (row % 3) + 2] += 0.8 * rng.random()
    np.savez(tmp_path / "public.npz", images=images.clip(0, 1).astype("float32"))
    return tmp_path / "public.npz"


class Parts(nn.Module):
    """Answers by the brightness of each of the three parts; counts its images, and can fail."""

    def __init__(self, fails_after: int | None = None) -> None:
        super().__init__()
        self.seen, self.fails_after = 0, fails_after

    def forward(self, x: Tensor) -> Tensor:
        if self.fails_after is not None and self.seen >= self.fails_after:
            raise ConnectionError("quota exceeded")
        self.seen += len(x)
        with torch.no_grad():  # as a service, which sends numbers
            return torch.stack([x[..., 3 * part : 3 * part + 2].mean((1, 2, 3)) for part in range(3)], 1) * 20


def target_of(net: nn.Module | None = None) -> interpkit.Target:
    return interpkit.wrap(net or Parts(), input_shape=SHAPE, num_classes=3, output="logits", name="parts")


def invert(public: Path, net: nn.Module | None = None, steps: int = 60, **settings: Any) -> GeneratorInversion:
    options = {"decoder.hidden": 32} | settings.pop("options", {})
    inversion = interpkit.invert(
        target_of(net), inverter="alignment", data=public, steps=steps, batch_size=32, device="cpu", options=options,
        **settings,
    )  # fmt: skip
    assert isinstance(inversion, GeneratorInversion)
    return inversion


# ------------------------------------------------------------------------------------------- conditions


def test_a_vector_has_the_log_odds_of_the_answer_standardized_over_what_was_learned() -> None:
    conditioner = conditioner_of()
    conditioner.learn_answers(PROBABILITIES.log())
    odds = PROBABILITIES.logit()
    expected = (odds - odds.mean(0)) / odds.std(0, correction=0)
    torch.testing.assert_close(conditioner.of_answers(PROBABILITIES.log()).vector, expected)
    torch.testing.assert_close(conditioner.of_answers(PROBABILITIES.log() + 5).vector, expected)  # logits


def test_truncation_keeps_the_largest_probabilities_and_says_where_they_are() -> None:
    conditioner = conditioner_of(truncation=2)
    conditioner.learn_answers(PROBABILITIES.log())
    condition = conditioner.of_answers(PROBABILITIES.log())
    assert condition.vector[:, 3:].tolist() == [[1, 1, 0], [0, 1, 1]]
    assert condition.vector[0, 2] == 0 and condition.vector[1, 0] == 0
    torch.testing.assert_close(condition.distribution, PROBABILITIES)  # what is left belongs to the third class
    one = conditioner_of(truncation=1).of_answers(PROBABILITIES.log())
    torch.testing.assert_close(one.distribution, torch.tensor([[0.7, 0.15, 0.15], [0.1, 0.1, 0.8]]))


def test_answers_that_are_sure_beyond_their_precision_stay_finite() -> None:
    conditioner = conditioner_of(c=30)
    answers = torch.tensor([[1000.0, 0, -1000], [0.0, 1, 2]])
    conditioner.learn_answers(answers)
    assert conditioner.of_answers(answers).vector.isfinite().all()
    assert conditioner.of_answers(torch.tensor([[0.0, -torch.inf, -torch.inf]])).vector.isfinite().all()


def test_answers_that_were_learned_are_drawn_again() -> None:
    conditioner = conditioner_of()
    answers = torch.tensor([[4.0, 1, 0], [3.0, 0, 1], [0.0, 5, 1]])
    conditioner.learn_answers(answers)
    drawn = conditioner.sample(50, labels=torch.tensor([0, 1, 2, 0, 0]).repeat(10))
    known = answers.softmax(1)
    apart = (drawn.distribution[:, None] - known).abs().sum(2).amin(1)
    assert apart[drawn.labels != 2].max() < 1e-6
    assert len(drawn.distribution[drawn.labels == 0].unique(dim=0)) == 2
    assert drawn.distribution[drawn.labels == 2].argmax(1).eq(2).all()  # which had none


def test_a_conditioner_that_knows_labels_alone_uses_the_most_probable_class() -> None:
    from interpkit.testing.toy_models import PlainConditioner

    condition = PlainConditioner(3, SHAPE).of_answers(PROBABILITIES.log())
    assert condition.vector.tolist() == [[1, 0, 0], [0, 0, 1]]


# ------------------------------------------------------------------------------------------- the decoder


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 70, 45), (12,)])
def test_pictures_of_any_size_are_decoded_and_the_latent_is_noise_on_the_vector(shape: tuple[int, ...]) -> None:
    conditioner = PredictionConditioner(5, shape)
    decoder = Decoder(conditioner.spec, shape, Decoder.Options(hidden=16, width=4, jitter=0.5)).eval()
    condition, zero = conditioner.sample(3), torch.zeros(3, decoder.latent_dim)
    images = decoder(zero, condition)
    assert images.shape == (3, *shape) and images.min() >= 0 and images.max() <= 1
    assert (len(decoder.doublings) > 0) == (len(shape) == 3 and shape[1] > 28)
    assert not torch.equal(images, decoder(zero + 1, condition))
    still = Decoder(conditioner.spec, shape, Decoder.Options(hidden=16, width=4, jitter=0)).eval()
    assert torch.equal(still(zero, condition), still(zero + 1, condition))


def test_a_condition_without_a_vector_is_refused() -> None:
    with pytest.raises(UsageError, match="decodes a vector"):
        Decoder(ConditionSpec(0, 1, 4), SHAPE)


# ------------------------------------------------------------------------------------------- the inverter


def test_the_decoder_beats_the_mean_picture_of_the_class(public: Path) -> None:
    inversion = invert(public, steps=300)
    images = torch.from_numpy(np.load(public)["images"])[:, None]
    found = interpkit.reconstruct(inversion, images, device="cpu")
    label = found.predictions.argmax(1)
    means = torch.stack([images[label == each].mean(0) for each in range(3)])
    assert found.errors is not None
    assert found.errors.mean() < 0.9 * (means[label] - images).square().mean()
    assert found.kept.float().mean() > 0.9


def test_each_picture_is_asked_about_once_and_no_gradient_is_used(public: Path, tmp_path: Path) -> None:
    net = Parts()
    inversion = invert(public, net, steps=30, out=tmp_path / "run")
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["queries"] == 90 + 16 * 4  # the reconstructions of the steps 1, 11, 21 and 30
    assert manifest["data"]["inverter.data"]["path"] == str(public)
    assert inversion.steps_done == 30 and not Alignment.needs_gradient


def test_a_budget_takes_some_of_the_pictures_and_is_not_exceeded(public: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    invert(public, steps=30, out=out, options={"alignment.budget": 70})
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["queries"] == 54 + 16
    with pytest.raises(UsageError, match=r"alignment\.budget is 20, and 10 pictures and the 16.*take 26 queries"):
        invert(public, options={"alignment.budget": 20})


def test_a_run_is_resumed_bit_for_bit(public: Path, tmp_path: Path) -> None:
    whole = invert(public, steps=24, checkpoint_every=12, out=tmp_path / "whole")
    target = target_of()
    settings: dict[str, Any] = {
        "inverter": "alignment", "data": public, "batch_size": 32, "device": "cpu", "options": {"decoder.hidden": 32},
    }  # fmt: skip
    from interpkit.api.invert import prepare

    job = prepare(target, steps=24, checkpoint_every=12, **settings)

    def stop(step: int) -> None:
        if step == 12:
            job.request_stop()

    job.run(out=tmp_path / "parts", on_step=stop)
    resumed = prepare(target, steps=24, checkpoint_every=12, **settings).run(out=tmp_path / "parts", resume=True)
    assert resumed.fingerprint() == whole.fingerprint()


def test_answers_are_kept_when_the_service_fails_and_the_run_resumes_with_them(public: Path, tmp_path: Path) -> None:
    net = Parts()
    target, out = target_of(net), tmp_path / "run"
    settings: dict[str, Any] = {"inverter": "alignment", "data": public, "steps": 10, "batch_size": 32, "device": "cpu"}
    net.fails_after = net.seen + 64
    with pytest.raises(RunError, match=r"failed at query 65: quota exceeded.*64 answers so far are kept"):
        interpkit.invert(target, out=out, **settings)
    net.fails_after, before = None, net.seen
    interpkit.invert(target, out=out, resume=True, **settings)
    assert json.loads((out / "manifest.json").read_text())["queries"] == 90 + 16 * 2
    assert net.seen - before < 90 + 2000  # the samples that are judged, and 26 pictures


def test_a_run_comes_back_from_its_folder_and_is_evaluated(public: Path, tmp_path: Path) -> None:
    inversion = invert(public, out=tmp_path / "run")
    again = interpkit.load_inversion(tmp_path / "run", target=target_of())
    assert torch.equal(inversion.sample(2)[0], again.sample(2)[0])
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["count"] > 0
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000


def test_a_class_that_no_picture_has_is_empty_with_the_reason(tmp_path: Path) -> None:
    images = np.zeros((40, 8, 8), "float32")
    images[::2, :, :2], images[1::2, :, 3:5] = 0.9, 0.8
    np.savez(tmp_path / "two.npz", images=images)
    inversion = invert(tmp_path / "two.npz", steps=5)
    assert inversion.empty == {2: "the classifier assigns none of the 40 pictures to it"} and inversion.classes == [
        0,
        1,
    ]


def test_what_it_cannot_use_is_refused(public: Path) -> None:
    several = interpkit.wrap(nn.Flatten(), input_shape=SHAPE, num_classes=64, output="sigmoid_logits")
    with pytest.raises(UsageError, match="decodes one distribution over the classes"):
        interpkit.invert(several, inverter="alignment", data=public, steps=2)
    with pytest.raises(UsageError, match=r"the option 'data' is not set: name pictures by .*alignment\.data"):
        interpkit.invert(target_of(), inverter="alignment", steps=2)


def test_a_subset_of_the_classes_is_drawn_from_a_decoder_of_all_answers(public: Path) -> None:
    inversion = invert(public, steps=5, labels=[2, 0])
    assert inversion.sample(2)[1].tolist() == [2, 2, 0, 0]
    assert inversion.draw(2).distribution[:, 1].gt(0).all()


def test_conditions_of_some_classes_are_refused_where_labels_are_named(public: Path) -> None:
    target = interpkit.wrap(Parts(), SHAPE)
    with pytest.raises(UsageError, match="alignment needs conditions = 'all'"):
        interpkit.invert(
            target, ["vecmat"], inverter="alignment", labels=[2, 0], options={"alignment.data": str(public)},
            conditions="requested", steps=2, batch_size=16, device="cpu",
        )  # fmt: skip
