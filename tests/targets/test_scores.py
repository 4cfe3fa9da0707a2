"""What a classifier's numbers are: how that is found, what it becomes, and what remains in doubt."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import interpkit
from interpkit import ModelError, UsageError, wrap

Make = Callable[[Tensor], Tensor]


class Answers(nn.Module):
    """Returns a function of n numbers that are linear in the image."""

    def __init__(self, make: Make, n: int) -> None:
        super().__init__()
        self.fc, self.make = nn.Linear(64, n), make

    def forward(self, x: Tensor) -> Tensor:
        return self.make(self.fc(x.flatten(1)))


def answers(make: Make, n: int) -> Answers:
    torch.manual_seed(0)
    return Answers(make, n)


def both(p: Tensor) -> Tensor:
    return torch.cat([1 - p, p], 1)


EXCLUSIVE: list[tuple[str, Make, int, str, Make]] = [
    ("logits", lambda z: z, 4, "logits", lambda z: z.softmax(1)),
    ("logits between 0 and 1 for plain images", lambda z: 0.5 + z / 20, 4, "logits", lambda z: (z / 20).softmax(1)),
    ("a softmax", lambda z: z.softmax(1), 4, "probs", lambda z: z.softmax(1)),
    ("its logarithm", lambda z: z.log_softmax(1), 4, "log_probs", lambda z: z.softmax(1)),
    ("a softmax in percent", lambda z: 100 * z.softmax(1), 4, "probs", lambda z: z.softmax(1)),
    ("minus its logarithm", lambda z: -z.log_softmax(1), 4, "neg_log_probs", lambda z: z.softmax(1)),
    ("the same, all below 1", lambda z: -(z / 9).log_softmax(1), 2, "neg_log_probs", lambda z: (z / 9).softmax(1)),
    ("a column of a softmax", lambda z: z.softmax(1)[:, 1], 2, "probs", lambda z: z.softmax(1)),
    ("one logit", lambda z: z, 1, "logits", lambda z: both(z.sigmoid())),
    ("one logit, likewise", lambda z: 0.5 + z / 20, 1, "logits", lambda z: both((0.5 + z / 20).sigmoid())),
    ("one probability", lambda z: z.sigmoid()[:, 0], 1, "probs", lambda z: both(z.sigmoid())),
    ("both of one sigmoid", lambda z: both(z.sigmoid()), 1, "probs", lambda z: both(z.sigmoid())),
    ("the logarithm of a sigmoid", F.logsigmoid, 1, "log_probs", lambda z: both(z.sigmoid())),
]  # fmt: skip


@pytest.mark.parametrize(("make", "n", "output", "true"), [row[1:] for row in EXCLUSIVE], ids=[r[0] for r in EXCLUSIVE])
def test_classes_that_exclude_each_other_get_the_probabilities_that_the_classifier_means(
    make: Make, n: int, output: str, true: Make
) -> None:
    net, images = answers(make, n), torch.rand(5, 1, 8, 8)
    target = wrap(net, (1, 8, 8))
    assert (target.description.output, target.multi_label) == (output, False)
    assert target.sources["output"].startswith("found")
    torch.testing.assert_close(target.probabilities(target(images)), true(net.fc(images.flatten(1))))


@pytest.mark.parametrize(
    ("make", "n"), [(torch.sigmoid, 5), (lambda z: torch.sigmoid(z / 1000), 2), (F.hardsigmoid, 3)]
)
def test_sigmoids_are_found_to_be_labels_of_their_own(make: Make, n: int) -> None:
    net, images = answers(make, n), torch.rand(5, 1, 8, 8)
    target = wrap(net, (1, 8, 8))
    assert (target.description.output, target.multi_label, target.num_classes) == ("sigmoid", True, n)
    torch.testing.assert_close(target.probabilities(target(images)), net(images), rtol=1e-4, atol=1e-5)


def test_logits_of_labels_are_taken_as_such_where_that_is_said() -> None:
    net, images = answers(lambda z: z, 4), torch.rand(5, 1, 8, 8)
    target = wrap(net, (1, 8, 8), output="sigmoid_logits")
    assert target.multi_label and target.sources["output"] == "given"
    torch.testing.assert_close(target.probabilities(target(images)), net(images).sigmoid())


@pytest.mark.parametrize(("said", "meant"), [("sigmoid", "probs"), ("sigmoid_logits", "logits")])
def test_one_label_and_its_absence_exclude_each_other(said: interpkit.config.recipe.Output, meant: str) -> None:
    target = wrap(answers(torch.sigmoid, 1), (1, 8, 8), output=said)
    assert (target.description.output, target.multi_label, target.num_classes) == (meant, False, 2)


@pytest.mark.parametrize(("n", "output"), [(1, "probs"), (5, "sigmoid")])
def test_numbers_between_0_and_1_of_no_known_origin_are_doubted(
    n: int, output: str, caplog: pytest.LogCaptureFixture
) -> None:
    target = wrap(answers(lambda z: 0.5 + 0.5 * torch.tanh(z), n), (1, 8, 8), name="odd")
    assert target.description.output == output and target.sources["output"].startswith("assumed")
    assert "odd: its output is between 0 and 1 for all probes" in caplog.text and f"output='{output}'" in caplog.text


def test_a_linear_layer_behind_a_normalization_stays_within_0_and_1_and_still_returns_logits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net = nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 3))
    nn.init.constant_(net[2].weight, 0.001)
    nn.init.constant_(net[2].bias, 0.5)
    assert wrap(net, (1, 8, 8)).description.output == "logits"
    assert "between 0 and 1 for all probes" in caplog.text


def test_an_output_that_never_changes_is_read_as_logits() -> None:
    assert wrap(answers(lambda z: 0 * z, 3), (1, 8, 8)).description.output == "logits"


@pytest.mark.parametrize("output", ["probs", "sigmoid"])
def test_numbers_that_cannot_be_what_is_stated_are_refused(output: interpkit.config.recipe.Output) -> None:
    with pytest.raises(ModelError, match=f"does not return what output='{output}' states.*are between -"):
        wrap(answers(lambda z: z, 3), (1, 8, 8), output=output)


@pytest.mark.parametrize(
    "make",
    [
        F.logsigmoid,
        lambda z: z.sigmoid().log(),
        lambda z: (z.sigmoid() + 1e-7).log(),
        lambda z: z.sigmoid().clamp(1e-7).log(),
    ],
)
def test_logarithms_of_several_sigmoids_are_refused_with_what_to_return_instead(make: Make) -> None:
    with pytest.raises(ModelError, match=r"logarithms of sigmoids.*model\(x\)\.exp\(\)"):
        wrap(answers(make, 3), (1, 8, 8))


@pytest.mark.parametrize(
    ("make", "factor", "base"),
    [
        (lambda z: z.softmax(1).log2(), 0.6931, 2),
        (lambda z: -z.softmax(1).log2(), -0.6931, 2),
        (lambda z: z.softmax(1).log10(), 2.3026, 10),
    ],
)
def test_logarithms_to_another_base_are_refused_with_the_factor(make: Make, factor: float, base: int) -> None:
    with pytest.raises(ModelError, match=rf"to base {base}\..*returns {factor} \* model\(x\)"):
        wrap(answers(make, 3), (1, 8, 8))
    net, images = answers(lambda z: factor * make(z), 3), torch.rand(5, 1, 8, 8)
    target = wrap(net, (1, 8, 8))
    true = net.fc(images.flatten(1)).softmax(1)
    torch.testing.assert_close(target.probabilities(target(images)), true, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "stated", "found"),
    [
        (lambda z: z.softmax(1), "logits", "probs"),
        (torch.sigmoid, "logits", "sigmoid"),
        (torch.sigmoid, "sigmoid_logits", "sigmoid"),
        (lambda z: -z.log_softmax(1), "logits", "neg_log_probs"),
        (lambda z: z.log_softmax(1), "sigmoid_logits", "log_probs"),
        (lambda z: z.softmax(1), "log_probs", "probs"),
    ],
)
def test_what_is_stated_against_the_evidence_is_followed_with_a_warning(
    make: Make, stated: interpkit.config.recipe.Output, found: str, caplog: pytest.LogCaptureFixture
) -> None:
    target = wrap(answers(make, 3), (1, 8, 8), name="odd", output=stated)
    assert (target.description.output, target.sources["output"]) == (stated, "given")
    assert f"odd: output='{stated}' is stated, but its numbers look like {found} (found: " in caplog.text


def test_logits_that_are_stated_to_be_negative_logarithms_are_followed_with_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net, images = answers(lambda z: z, 3), torch.rand(5, 1, 8, 8)
    target = wrap(net, (1, 8, 8), name="odd", output="neg_log_probs")
    assert "odd: output='neg_log_probs' is stated, but its numbers look like logits" in caplog.text
    assert torch.equal(target(images).argmax(1), net(images).argmin(1))  # it turns the order around


@pytest.mark.parametrize(
    ("make", "n", "stated"),
    [
        (lambda z: z.log_softmax(1), 3, "logits"),
        (torch.sigmoid, 3, "probs"),
        (lambda z: z, 3, "sigmoid_logits"),
        (lambda z: 0.5 + z / 20, 3, "logits"),
        (lambda z: 0.5 + 0.5 * torch.tanh(z), 3, "logits"),
        (lambda z: z.softmax(1).log2(), 3, "logits"),
        (torch.sigmoid, 1, "sigmoid"),
        (lambda z: z**2, 3, "neg_log_probs"),
    ],
)
def test_what_may_well_be_stated_is_not_doubted(
    make: Make, n: int, stated: interpkit.config.recipe.Output, caplog: pytest.LogCaptureFixture
) -> None:
    wrap(answers(make, n), (1, 8, 8), output=stated)
    assert not caplog.records


@pytest.mark.parametrize(
    "make", [lambda z: torch.cat([z[:, :2].softmax(1), z[:, 2:].softmax(1)], 1), lambda z: 1 - z.softmax(1)]
)
def test_several_distributions_side_by_side_are_not_taken_for_one(make: Make) -> None:
    with pytest.raises(ModelError, match=r"sum to [23], as several distributions"):
        wrap(answers(make, 4), (1, 8, 8))


@pytest.mark.parametrize(("make", "doubted"), [(torch.Tensor.clone, True), (torch.Tensor.neg, False)])
def test_distances_of_which_the_smallest_counts_are_doubted(
    make: Make, doubted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    points = torch.rand(3, 4)
    wrap(answers(lambda z: make(torch.cdist(z, points)), 4), (1, 8, 8))
    assert ("returns distances" in caplog.text) == doubted


def test_logarithms_of_several_distributions_side_by_side_are_not_taken_for_one() -> None:
    net = answers(lambda z: torch.cat([z[:, :2].log_softmax(1), z[:, 2:].log_softmax(1)], 1), 4)
    with pytest.raises(ModelError, match=r"logarithms of numbers that sum to 2, as several distributions"):
        wrap(net, (1, 8, 8))
    assert wrap(net, (1, 8, 8), output="logits").description.output == "logits"


@pytest.mark.parametrize(
    ("make", "n", "words"),
    [
        (lambda z: F.softplus(z) + 1, 4, "it ends in softplus, as evidence"),
        (F.relu, 4, "it ends in relu, as evidence"),
        (lambda z: 2 * z.exp()[:, 1:] + 3, 4, "it ends in exp, as evidence"),
        (torch.tanh, 3, "it ends in tanh, as evidence"),
        (lambda z: (z[:, None] - torch.arange(8.0).view(2, 4)).pow(2).sum(2), 4, "it returns distances"),
        (lambda z: (z[:, None] - torch.arange(8.0).view(2, 4)).abs().mean(2), 4, "it returns distances"),
        (lambda z: z.pow(2).sum(1, keepdim=True) - 2 * z @ torch.eye(4) + 1, 4, "it returns distances"),
        (torch.sigmoid, 4, "it returns 4 sigmoids, which are read as labels"),
        (torch.sigmoid, 2, "it returns 2 sigmoids, which are read as labels"),
    ],
)
def test_numbers_that_may_be_no_scores_of_classes_are_doubted_until_the_output_is_stated(
    make: Make, n: int, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    net = answers(make, n)
    output = wrap(net, (1, 8, 8), name="odd").description.output
    assert f"odd: {words}" in caplog.text and f"output='{output}' confirms" in caplog.text
    caplog.clear()
    assert wrap(net, (1, 8, 8), output=output).description.output == output
    assert not caplog.records


@pytest.mark.parametrize(
    ("make", "n"),
    [
        (lambda z: 100 + z, 4),
        (F.relu6, 4),
        (F.leaky_relu, 4),
        (lambda z: F.relu(z).view(-1, 4, 2).mean(2), 8),
        (lambda z: -(z[:, None] - torch.arange(8.0).view(2, 4)).pow(2).sum(2), 4),
        (lambda z: z.exp() * F.normalize(z), 4),
        (torch.sigmoid, 5),
    ],
    ids=["shifted", "relu6", "leaky relu", "mean of relu", "minus distances", "scaled cosines", "five labels"],
)
def test_usual_scores_are_not_doubted(make: Make, n: int, caplog: pytest.LogCaptureFixture) -> None:
    wrap(answers(make, n), (1, 8, 8))
    assert not caplog.records


def test_four_sigmoids_with_names_are_labels(caplog: pytest.LogCaptureFixture) -> None:
    wrap(answers(torch.sigmoid, 4), (1, 8, 8), class_names=["edema", "fracture", "nodule", "effusion"])
    assert not caplog.records


@pytest.mark.parametrize("make", [lambda z: z, torch.sigmoid])
def test_outputs_of_ordinal_regression_are_noticed(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    wrap(answers(lambda z: make(z - torch.arange(4.0)), 1), (1, 8, 8), name="ages")
    assert "ages: the differences between its logits are the same for all probes" in caplog.text
    caplog.clear()

    def classes(z: Tensor) -> Tensor:
        p = torch.sigmoid(z - torch.arange(4.0))
        return torch.cat([1 - p[:, :1], p[:, :-1] - p[:, 1:], p[:, -1:]], 1)

    assert wrap(answers(classes, 1), (1, 8, 8)).description.output == "probs"
    assert not caplog.records


def test_an_output_that_is_not_finite_for_some_images_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 3, bias=False), _OverItsSum())
    wrap(net, (1, 8, 8), name="odd")
    assert "odd returns NaN or infinite logits for 1 of 6 probes" in caplog.text


class _OverItsSum(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x / x.abs().sum(1, keepdim=True)


def test_both_classes_of_one_logit_have_a_gradient() -> None:
    target, images = wrap(answers(lambda z: z, 1), (1, 8, 8)), torch.rand(1, 1, 8, 8, requires_grad=True)
    no, yes = (torch.autograd.grad(target(images)[0, k], images)[0] for k in (0, 1))
    torch.testing.assert_close(no, -yes)
    assert yes.any()


def test_one_number_may_be_a_quantity(caplog: pytest.LogCaptureFixture) -> None:
    net = answers(lambda z: 30 + z, 1)
    wrap(net, (1, 8, 8), name="age")
    assert "age: it returns one number per image" in caplog.text and "output='logits'" in caplog.text
    caplog.clear()
    wrap(net, (1, 8, 8), output="logits")
    wrap(net, (1, 8, 8), class_names=["cat", "dog"])
    assert not caplog.records


def test_one_name_for_one_output_also_names_its_absence() -> None:
    assert wrap(answers(torch.sigmoid, 1), (1, 8, 8), class_names=["tumor"]).class_names == ["not tumor", "tumor"]
    with pytest.raises(UsageError, match="3 classes, but 1 names"):
        wrap(answers(lambda z: z, 3), (1, 8, 8), class_names=["tumor"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda z: (1e-6 * z).softmax(1), "its logits differ by at most"),
        (lambda z: 1e6 * z, "its logits differ by at most"),
        (lambda z: (1e6 * z).softmax(1), "its probabilities are exactly 0 or 1 for all probes"),
    ],
)
def test_a_scale_that_leaves_no_gradient_is_noticed(make: Make, words: str, caplog: pytest.LogCaptureFixture) -> None:
    wrap(answers(make, 4), (1, 8, 8), name="scaled")
    assert f"scaled: {words}" in caplog.text


# ------------------------------------------------------------------------------ what a target says of its logits


@pytest.fixture
def labels_target() -> interpkit.Target:
    """Return a target of three labels whose logits are its inputs."""
    return wrap(nn.Identity(), (3,), output="sigmoid_logits")


def test_a_label_is_accepted_by_its_own_probability(labels_target: interpkit.Target) -> None:
    logits, asked = torch.tensor([[1.0, 5.0, -1.0], [-1.0, -2.0, -3.0]]), torch.tensor([0, 0])
    assert labels_target.accepts(logits, asked).tolist() == [True, False]
    assert labels_target.predictions(logits, asked).tolist() == [0, 1]
    exclusive = wrap(nn.Identity(), (3,))
    assert exclusive.accepts(logits, asked).tolist() == [False, True]
    assert exclusive.predictions(logits, asked).tolist() == [1, 0]


def test_cross_entropy_and_divergence_of_labels_are_those_of_their_own_probabilities(
    labels_target: interpkit.Target,
) -> None:
    q, p = torch.tensor([[0.2, 0.9, 0.5]]), torch.tensor([[0.7, 0.3, 0.0]])
    logits = q.logit()
    torch.testing.assert_close(labels_target.cross_entropy(logits, torch.tensor([1])), -q[:, 1].log())
    pairs = [torch.distributions.Bernoulli(probs=probs) for probs in (p, q)]
    expected = torch.distributions.kl_divergence(*pairs).sum(1)
    torch.testing.assert_close(labels_target.divergence(logits, p), expected)


def test_a_packed_classifier_of_labels_stays_one(tmp_path: Path) -> None:
    pytest.importorskip("onnx2torch")
    target, images = wrap(answers(torch.sigmoid, 3), (1, 8, 8)), torch.rand(4, 1, 8, 8)
    packed = interpkit.load_target(interpkit.pack_target(target, tmp_path / "labels.safetensors"))
    assert packed.multi_label
    torch.testing.assert_close(packed.probabilities(packed(images)), target.probabilities(target(images)))


def test_an_inversion_of_labels_is_judged_label_by_label(tmp_path: Path) -> None:
    """Each label is present where its pixel is bright, so the target is certain of several labels at once."""
    target = wrap(answers(lambda z: torch.sigmoid(z), 3), (1, 8, 8))
    images, labels = torch.rand(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2])
    images = (images * 255).round() / 255
    inversion = interpkit.ImageInversion(target, interpkit.Recipe(), [], images, labels)
    true = target.module(images)[torch.arange(6), labels]  # type: ignore[operator]
    metrics = interpkit.evaluate(inversion, metrics=[])
    assert metrics["confidence"] == pytest.approx(true.mean().item(), abs=1e-5)
    assert metrics["inversion_accuracy"] == pytest.approx((true > 0.5).double().mean().item())


def test_the_history_and_the_report_of_labels_speak_of_presence(tmp_path: Path) -> None:
    target = wrap(answers(lambda z: torch.sigmoid(z + 9), 3), (1, 8, 8))  # all labels are present
    inversion = interpkit.invert(target, ["pixels"], steps=2, out=tmp_path / "run")
    assert inversion.history[-1].inversion_accuracy == 1.0
    page = interpkit.write_report(tmp_path / "run", target=target).read_text("utf-8")
    assert "Asked for, and present" in page and "labels, each on its own" in page and "classified as" not in page
