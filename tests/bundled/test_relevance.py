"""The plugin relevance: relevances, attention, random masks and evidence with known answers, and what is refused."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

import interpkit
from interpkit import Explainer, Target, UsageError, attribute, wrap
from interpkit.attribution import faithfulness


def explain(target: Target, images: Tensor, classes: list[int], method: str, **options: Any) -> Tensor:
    return Explainer(target, method, options=options, device="cpu").maps(images, torch.tensor(classes))


class Patch(nn.Module):
    """Class 0 has the mean of one patch of 8 x 8 images as its score, class 1 its negative."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x[:, 0, 2:4, 4:8].mean((1, 2))
        return torch.stack([4 * mean, -4 * mean], 1)


@pytest.fixture
def in_patch() -> Tensor:
    where = torch.zeros(1, 1, 8, 8, dtype=torch.bool)
    where[:, :, 2:4, 4:8] = True
    return where


# --------------------------------------------------------------------------------- relevance propagation


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.4, 0.5)])
def test_relevance_in_a_linear_target_is_weight_times_input(mean: float, std: float) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    target, images = wrap(net, (3, 2, 2), mean=mean, std=std), torch.rand(2, 3, 2, 2)
    shares = net[1].weight.detach().view(3, 3, 2, 2) * ((images - mean) / std)[:, None]
    torch.testing.assert_close(explain(target, images, [0, 2], "lrp"), shares[[0, 1], [0, 2]], rtol=1e-3, atol=1e-3)
    against = attribute(target, images, target_class=(0, 2), method="lrp", device="cpu")
    torch.testing.assert_close(against, shares[:, 0] - shares[:, 2], rtol=1e-3, atol=1e-3)


class Mixed(nn.Module):
    """Everything that has a rule: residuals, a gate, a concatenation, functional pooling, an activation in place."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(4)  # defined before the convolution whose output it normalizes
        self.first = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.second = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.gate = nn.Conv2d(4, 4, 1, bias=False)
        self.head = nn.Linear(8, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.first(x)))
        skipped = x
        x = self.second(x) * torch.sigmoid(self.gate(F.adaptive_avg_pool2d(x, 1)))
        x += skipped
        x = torch.cat([x, F.hardswish(2 * x, inplace=True)], 1)
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("rule", ["plus", "epsilon"])
def test_relevance_is_conserved_through_whatever_has_a_rule(
    rule: str, module_state: Callable[[nn.Module], dict[str, Any]]
) -> None:
    net = Mixed().eval()
    net.norm.running_var.fill_(0.5)  # running mean and bias are zero, so no bias takes relevance
    target, images = wrap(net, (1, 10, 10)), torch.rand(3, 1, 10, 10)
    before, classes = module_state(net), torch.tensor([0, 1, 2])
    explainer = Explainer(target, "lrp", options={"rule": rule}, device="cpu")
    relevance = explainer.maps(images, classes).flatten(1).sum(1)
    torch.testing.assert_close(relevance, explainer.scores(images, classes), rtol=0.01, atol=1e-3)
    assert module_state(net) == before and explainer.notes == []


def test_relevance_of_networks_of_rectifiers_is_input_times_gradient() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2))
    net = nn.Sequential(net, nn.Flatten(), nn.Linear(36, 2)).eval()
    target, images = wrap(net, (1, 8, 8)), torch.rand(2, 1, 8, 8)
    theirs = explain(target, images, [0, 1], "input-x-gradient")
    found = explain(target, images, [0, 1], "lrp", rule="epsilon")
    torch.testing.assert_close(found, theirs, rtol=0.01, atol=1e-4)


def test_relevance_of_a_single_logit_passes_its_negation() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 1, bias=False))
    images = torch.rand(2, 3, 2, 2)
    shares = net[1].weight.detach().view(3, 2, 2) * images / 2
    found = explain(wrap(net, (3, 2, 2), output="logits"), images, [0, 1], "lrp")
    torch.testing.assert_close(found, torch.stack([-shares[0], shares[1]]), rtol=1e-3, atol=1e-4)


class Called(nn.Sequential):
    """The same layers as in `nn.Sequential`, but its activations are functions."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self:
            x = F.relu(x, inplace=True) if isinstance(layer, nn.ReLU) else layer(x)
        return x


def test_a_function_passes_relevance_as_its_layer_does() -> None:
    layers = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
    images = torch.rand(2, 1, 8, 8)
    one, other = (explain(wrap(kind(*layers), (1, 8, 8)), images, [0, 1], "lrp") for kind in (nn.Sequential, Called))
    torch.testing.assert_close(one, other)


class Twice(nn.Module):
    """A classifier that runs one layer twice."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.head = layer, nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.layer(x)).flatten(1))


class Calls(nn.Module):
    """A linear classifier that calls a function first."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.head = function, nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(x).flatten(1))


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (Calls(lambda x: x.exp()), "lrp has no rule for what Calls computes: exp. Use another method"),
        (Calls(lambda x: x * x.flip(2)), "mul of two features"),
        (nn.Sequential(nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 2)), "these layers of Sequential: LayerNorm"),
        (Patch(), "lrp cannot explain Patch: it has no layers with weights"),
        (Twice(nn.Conv2d(1, 1, 1)), "lrp cannot explain Twice: these layers run more than once: layer. Use another"),
        (Twice(nn.AvgPool2d(3, 1, 1)), "more than once: layer"),
    ],
)
def test_what_relevance_has_no_rule_for_is_refused_by_name(net: nn.Module, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        explain(wrap(net, (1, 8, 8)), torch.rand(1, 1, 8, 8), [0], "lrp")


def test_relevance_of_biases_of_convolutions_is_spread_over_their_inputs() -> None:
    blocks = [nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, eps=0.1), nn.ReLU()) for _ in range(5)]
    for block in blocks:  # an eps that a merge must not leave behind, as it adds up over the layers
        nn.init.constant_(block[1].bias, 2.0)
    net = nn.Sequential(*blocks, nn.Flatten(), nn.Linear(4 * 36, 2, bias=False)).eval()
    target, images = wrap(net, (4, 6, 6)), torch.rand(2, 4, 6, 6)
    explainer = Explainer(target, "lrp", device="cpu")
    relevance = explainer.maps(images, torch.tensor([0, 1]))
    scores = explainer.scores(images, torch.tensor([0, 1]))
    torch.testing.assert_close(relevance.flatten(1).sum(1), scores, rtol=0.01, atol=1e-3)
    assert explainer.notes == []
    epsilon = Explainer(target, "lrp", options={"rule": "epsilon"}, device="cpu").maps(images, torch.tensor([0, 1]))
    assert epsilon.abs().sum() < relevance.abs().sum()


@pytest.mark.parametrize(("bias", "mean", "gap"), [(100.0, 0.0, "99%"), (0.0, 0.9, "900%")])
def test_relevance_that_biases_take_or_add_is_noted(bias: float, mean: float, gap: str) -> None:
    net = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 2)).eval()
    nn.init.constant_(net[0].running_mean, mean)
    nn.init.constant_(net[2].weight, 1 / 64)
    nn.init.constant_(net[2].bias, bias)
    explainer = Explainer(wrap(net, (1, 8, 8)), "lrp", device="cpu")
    explainer.maps(torch.ones(2, 1, 8, 8), torch.tensor([0, 1]))
    assert f"do not add up to the scores: the difference is {gap} of these" in explainer.notes[0]


def test_a_missing_zennit_is_reported_with_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, tiny_target: Target
) -> None:
    monkeypatch.setitem(sys.modules, "zennit.composites", None)
    with pytest.raises(UsageError, match=r"lrp requires the package zennit: pip install .*\[zennit\]"):
        explain(tiny_target, torch.rand(1, 1, 12, 12), [0], "lrp")


# --------------------------------------------------------------------------------------------- attention


class Attends(nn.Module):
    """Tokens are the means of 2 x 2 patches; a given attention moves them, and the scores are their weighted sum."""

    def __init__(self, attention: Tensor, windows: int = 1) -> None:
        super().__init__()
        self.logits, self.windows = attention.log(), windows

    def forward(self, x: Tensor) -> Tensor:
        tokens = F.avg_pool2d(x, 4).flatten(2).transpose(1, 2)
        logits = self.logits.expand(len(x) * self.windows, 1, -1, -1) + 0 * x.sum()
        moved = logits.softmax(-1)[: len(x), 0] @ tokens
        return torch.cat([moved.mean(1), -moved.mean(1)], 1)


WITH_CLASS = torch.softmax(torch.arange(25.0).view(5, 5).sin(), 1)
ATTENTION = torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.4, 0.4, 0.1, 0.1], [0.4, 0.1, 0.4, 0.1], [0.25] * 4])


def test_rollout_of_one_layer_is_its_attention_by_hand() -> None:
    image = torch.zeros(1, 1, 8, 8)
    image[:, :, :4, 4:] = 1  # only the second token is lit: the gradient of the score is 1/4 for it, from every token
    target = wrap(Attends(ATTENTION), (1, 8, 8))
    by_hand = torch.zeros(1, 1, 2, 2)
    by_hand[0, 0, 0, 1] = ATTENTION[:, 1].mean() / 4
    enlarged = F.interpolate(by_hand, (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(explain(target, image, [0], "attention-rollout"), enlarged)
    assert not explain(target, image, [1], "attention-rollout").any()  # it speaks against the other class
    plain = explain(target, image, [0], "attention-rollout", gradients=False)
    by_hand = ((ATTENTION + torch.eye(4)) / 2).mean(0).view(1, 1, 2, 2)
    torch.testing.assert_close(plain, F.interpolate(by_hand, (8, 8), mode="bilinear", align_corners=False))


@pytest.mark.parametrize("pooled", [slice(0, 1), slice(1, None)], ids=["class token", "patches"])
def test_rollout_starts_at_the_tokens_that_the_score_comes_from(pooled: slice) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            patches = F.avg_pool2d(x, 4).flatten(2).transpose(1, 2)
            tokens = torch.cat([patches.mean(1, keepdim=True), patches], 1)
            moved = (WITH_CLASS.log() + 0 * x.sum()).expand(len(x), 1, 5, 5).softmax(-1)[:, 0] @ tokens
            score = moved[:, pooled].mean(1)
            return torch.cat([score, -score], 1)

    found = explain(wrap(Net(), (1, 8, 8)), torch.rand(2, 1, 8, 8), [0, 0], "attention-rollout", gradients=False)
    by_hand = ((WITH_CLASS + torch.eye(5)) / 2)[pooled, 1:].mean(0).view(1, 1, 2, 2)
    enlarged = F.interpolate(by_hand, (8, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, enlarged.expand_as(found))


@pytest.mark.parametrize("need_weights", [False, True])
def test_rollout_reads_what_multi_head_attention_computes(need_weights: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 3)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x).flatten(2).transpose(1, 2)
            x, self.weights = self.attention(x, x, x, need_weights=need_weights, average_attn_weights=False)
            return self.head(x.mean(1))

    net, images = Net().eval(), torch.rand(2, 3, 12, 8)
    found = explain(wrap(net, (3, 12, 8)), images, [0, 1], "attention-rollout", gradients=False)
    tokens = net.patches(images).flatten(2).transpose(1, 2)
    _, weights = net.attention(tokens, tokens, tokens, average_attn_weights=False)
    by_hand = ((weights.mean(1) + torch.eye(6)) / 2).mean(1).view(2, 1, 3, 2)
    enlarged = F.interpolate(by_hand, (12, 8), mode="bilinear", align_corners=False).expand(2, 3, 12, 8).detach()
    torch.testing.assert_close(found, enlarged)


def test_attention_within_windows_and_no_attention_are_refused() -> None:
    image = torch.rand(1, 1, 8, 8)
    with pytest.raises(UsageError, match=r"within windows of the image, or tokens are merged .* 4 tokens"):
        explain(wrap(Attends(ATTENTION, windows=2), (1, 8, 8)), image, [0], "attention-rollout")
    with pytest.raises(UsageError, match=r"no attention over tokens .* Use another method, such as grad-cam"):
        explain(wrap(Patch(), (1, 8, 8)), image, [0], "attention-rollout")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        swin = torchvision.models.SwinTransformer([2, 2], 8, [2, 2], [2, 2], [4, 4], num_classes=3)
    with pytest.raises(UsageError, match="within windows"):
        explain(wrap(swin.eval(), (3, 32, 32)), torch.rand(1, 3, 32, 32), [0], "attention-rollout")


def test_patches_may_be_pooled_from_a_convolution() -> None:
    class Compact(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = nn.Conv2d(1, 4, 3, 1, 1), nn.Linear(4, 2)
            self.attention = nn.MultiheadAttention(4, 1, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            x = F.max_pool2d(self.stem(x), 4).flatten(2).transpose(1, 2)
            return self.head(self.attention(x, x, x)[0].mean(1))

    target = wrap(Compact().eval(), (1, 8, 8))
    assert explain(target, torch.rand(2, 1, 8, 8), [0, 1], "attention-rollout").shape == (2, 1, 8, 8)


def test_attention_between_channels_is_refused() -> None:
    class OverChannels(nn.Module):  # as in XCiT: 4 patches of 2 x 2 pixels would be the 4 channels of a head
        def __init__(self) -> None:
            super().__init__()
            self.patches, self.head = nn.Conv2d(1, 4, 2, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.patches(x).flatten(2)
            x = (x @ x.transpose(1, 2))[:, None].softmax(-1)[:, 0] @ x
            return self.head(x.mean(2))

    with pytest.raises(UsageError, match=r"its 4 tokens are not a grid .* \(attention between channels"):
        explain(wrap(OverChannels().eval(), (1, 8, 8)), torch.rand(1, 1, 8, 8), [0], "attention-rollout")


# ------------------------------------------------------------------------------------- masks and evidence


def test_rise_finds_the_patch_that_counts_and_the_sign(in_patch: Tensor) -> None:
    image, target = torch.ones(1, 1, 8, 8), wrap(Patch(), (1, 8, 8))
    for label, sign in ((0, 1), (1, -1)):
        maps = sign * explain(target, image, [label], "rise", masks=2000, cells=8)
        assert maps[in_patch].mean() > 5 * maps[~in_patch].abs().mean()
    assert explain(target, 0 * image, [0], "rise", masks=100).abs().max() < 1e-6  # nothing to remove


@pytest.mark.parametrize("rows", [2, 3])
def test_rise_does_not_depend_on_the_rows_of_a_pass(rows: int) -> None:
    target, images = wrap(Patch(), (1, 8, 8)), torch.rand(3, 1, 8, 8)
    one, other = (attribute(target, images, [0, 1, 0], method="rise", rows=some, device="cpu") for some in (rows, 64))
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["rise", "kernel-shap"])
def test_one_image_is_checked_as_several_are(method: str) -> None:
    explainer = Explainer(wrap(Patch(), (1, 8, 8)), method, device="cpu")
    images, classes = torch.rand(1, 1, 8, 8), torch.tensor([1])
    assert 0 < faithfulness.sensitivity(explainer, images, classes) < 1


def test_minimal_evidence_lies_in_the_patch_and_suffices(in_patch: Tensor) -> None:
    target, image = wrap(Patch(), (1, 8, 8)), torch.ones(2, 1, 8, 8)
    explainer = Explainer(target, "minimal-evidence", options={"keep": 0.7}, device="cpu")
    kept = explainer.maps(image, torch.tensor([0, 1])) > 0
    assert not kept[0][~in_patch[0]].any() and 0.7 <= kept[0][in_patch[0]].double().mean() < 1
    assert explainer.scores(image * kept, torch.tensor([0, 1]))[0] >= 0.7 * 4
    assert "hold 70% of the score in 1 of 2 images; the others do not support the class" in explainer.notes[0]


def test_the_share_of_pixels_that_suffice_is_of_the_images_in_which_some_do(in_patch: Tensor) -> None:
    explainer = Explainer(wrap(Patch(), (1, 8, 8)), "minimal-evidence", options={"keep": 0.7}, device="cpu")
    kept = explainer.maps(torch.ones(2, 1, 8, 8), torch.tensor([0, 1])) > 0
    assert kept[0].double().mean() != kept.double().mean()
    share = interpkit.percent(kept[0].double().mean().item())
    assert explainer.notes[0].startswith(f"minimal-evidence: {share} of the pixels hold 70% of the score in 1 of 2")
    explainer.notes.clear()
    explainer.maps(torch.ones(1, 1, 8, 8), torch.tensor([1]))
    assert explainer.notes[0].startswith("minimal-evidence: no pixels hold 70% of the score in 0 of 1 images; ")


def test_minimal_evidence_may_be_a_single_value() -> None:
    linear = nn.Linear(1000, 2, bias=False)
    linear.weight.data = torch.zeros(2, 1000)
    linear.weight.data[0, 3] = 1.0
    maps = explain(wrap(linear, (1000,)), torch.ones(1, 1000), [0], "minimal-evidence")
    assert maps.nonzero().tolist() == [[0, 3]]


def test_minimal_evidence_needs_gradients() -> None:
    target = wrap(Calls(lambda x: x.detach().round()), (1, 8, 8))
    with pytest.raises(UsageError, match="cannot explain Calls: it needs gradients, but none reach the image"):
        explain(target, torch.rand(1, 1, 8, 8), [0], "minimal-evidence")
