"""Evaluators of other image sizes, or with other class names, are adapted to the target, and that is said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import interpkit
from interpkit import ModelError, UsageError, wrap
from interpkit.errors import in_shell
from interpkit.evaluation.judges import adapted, load_judges


def identity(*names: str, **facts: object) -> interpkit.Target:
    """Return a classifier whose logits are its inputs."""
    return wrap(nn.Identity(), (len(names),), class_names=names, **facts)  # type: ignore[arg-type]


class Reads(nn.Module):
    """A classifier of vectors whose logits are their first numbers."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.count]


def reader(*names: str, of: int) -> interpkit.Target:
    return wrap(Reads(len(names)), (of,), name="judge", class_names=names)


@pytest.mark.parametrize("size", [(8, 10), (20, 24)])
def test_images_are_resized_for_an_evaluator_of_another_size(
    run_copy: Path, size: tuple[int, int], caplog: pytest.LogCaptureFixture
) -> None:
    received = []

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            received.append(x)
            return x.mean((2, 3)) * torch.tensor([1.0, 2.0, -1.0])

    other = wrap(Net(), (1, *size), name="other")
    received.clear()
    metrics = interpkit.evaluate(run_copy, evaluators=[other], metrics=["agreement"])
    stored = safetensors.torch.load_file(run_copy / "samples.safetensors")["images"] / 255
    expected = nn.functional.interpolate(stored, size, mode="bicubic", antialias=True).clamp(0, 1)
    assert torch.equal(torch.cat([x for x in received if len(x) > 1]), expected)  # one alone is for the memory it takes
    resizing = f"from 12 x 12 to {size[1]} x {size[0]} pixels, bicubic, antialiased"
    assert metrics["measured_on"]["resized_for"] == {"other": resizing}
    assert f"images are resized for the evaluator other {resizing}" in caplog.text
    assert metrics["evaluators"][0]["name"] == "other"


def test_classes_in_another_order_are_matched_by_name(caplog: pytest.LogCaptureFixture) -> None:
    judge = adapted(reader("Blue_tit", "cat", "dog", of=3), identity("cat", "dog", "blue tit"))
    assert judge(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[2.0, 3.0, 1.0]]
    assert judge.respond(torch.tensor([[1.0, 2.0, 3.0]])).logits.tolist() == [[2.0, 3.0, 1.0]]
    assert judge.class_names == ["cat", "dog", "blue tit"]
    assert "the evaluator judge is matched in 3 of 3 classes by name." in caplog.text


def test_numbers_as_names_in_another_order_are_matched_too(caplog: pytest.LogCaptureFixture) -> None:
    judge = adapted(reader("0", "1", "10", "2", of=4), identity("0", "1", "2", "10"))  # as folders are sorted
    assert judge(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).tolist() == [[1.0, 2.0, 4.0, 3.0]]
    assert "the evaluator judge is matched in 4 of 4 classes by name." in caplog.text


def test_more_classes_stay_in_the_choice_and_missing_ones_have_no_logit(caplog: pytest.LogCaptureFixture) -> None:
    judge = adapted(reader("owl", "cat", "cow", "fox", of=4), identity("cat", "dog", "owl", "ape"))
    (logits,) = judge(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).tolist()
    assert logits == [2.0, -torch.inf, 1.0, -torch.inf, 3.0, 4.0]
    assert judge.lacks == {1, 3}
    assert judge.class_names == ["cat", "dog", "owl", "ape", "cow", "fox"] and judge.num_classes == 6
    assert "2 of 4 classes by name; it does not evaluate samples of dog (1), ape (3)." in caplog.text


def test_two_classes_of_one_name_are_matched_by_position_or_not_at_all(caplog: pytest.LogCaptureFixture) -> None:
    birds = ("crane", "cat", "crane")
    same = reader(*birds, of=3)
    assert adapted(same, identity(*birds)) is same and not caplog.records
    judge = adapted(reader("cat", "crane", "crane", "dog", of=4), reader("crane", "dog", "cat", of=4))
    assert judge(torch.tensor([[1.0, 2.0, 3.0, 4.0]])).tolist() == [[-torch.inf, 4.0, 1.0, 2.0, 3.0]]
    judge = adapted(reader("crane", "cat", of=3), identity(*birds))
    assert judge(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[-torch.inf, 2.0, -torch.inf, 1.0]]
    assert "samples of crane (0), crane (2)." in caplog.text


@pytest.mark.parametrize("names", [("0", "1", "2"), ("cat", "dog", "eagle owl")])
def test_the_order_is_trusted_where_names_are_unknown_or_mostly_in_place(names: tuple[str, ...]) -> None:
    judge = reader(*names, of=3)
    assert adapted(judge, identity("cat", "dog", "owl")) is judge


@pytest.mark.parametrize("names", [("tree", "house", "car"), ("0", "1"), ("tree", "house")])
def test_an_evaluator_without_a_common_class_is_refused(names: tuple[str, ...]) -> None:
    words = f"judge has {len(names)} classes, {', '.join(names)}; .* has 3, cat, dog, owl. .*in common"
    with pytest.raises(UsageError, match=words):
        adapted(reader(*names, of=3), identity("cat", "dog", "owl"))


def test_an_evaluator_of_the_classes_knows_no_units_nor_the_reverse() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    plain, same = wrap(net, (4,), name="plain"), interpkit.units(wrap(net, (4,), name="read"), ["0:0,1,2"])
    for judge, target in ((plain, same), (same, plain)):
        with pytest.raises(UsageError, match=f"of read are units, which an evaluator .*: leave {judge.name} out"):
            adapted(judge, target)
    other = interpkit.units(wrap(net, (4,)), ["0:0,1,3"])
    with pytest.raises(UsageError, match="are units, which an evaluator with other classes does not know"):
        adapted(other, same)
    assert adapted(again := interpkit.units(wrap(net, (4,)), ["0:0,1,2"]), same) is again


def test_an_evaluator_whose_file_needs_options_is_to_be_packed_with_them(tmp_path: Path) -> None:
    place = tmp_path / "judge.pth"
    torch.save(nn.Linear(4, 2).state_dict(), place)
    with pytest.raises(ModelError, match=r"pack it with those that it needs: interpkit\.pack_target\(.*judge\.pth'\)"):
        load_judges([place], identity("a", "b"))
    with in_shell(), pytest.raises(ModelError, match=rf": interpkit pack {place} --out FILE\.safetensors\. Then name"):
        load_judges([place], identity("a", "b"))
    with pytest.raises(ModelError, match=r"there is no file nothing\.pth\.$"):
        load_judges(["nothing.pth"], identity("a", "b"))


def test_an_evaluator_of_vectors_is_to_be_packed_for_images() -> None:
    images = wrap(nn.Sequential(nn.Flatten(), Reads(2)), (1, 2, 3), class_names=["a", "b"])
    with in_shell(), pytest.raises(UsageError, match=r"interpkit pack MODEL --input-shape 1,2,3 --out FILE"):
        adapted(reader("a", "b", of=6), images)
    with pytest.raises(UsageError, match=r"not converted to other channels.*pack_target\(.*load_target\(MODEL\)"):
        adapted(wrap(nn.Sequential(nn.Flatten(), Reads(2)), (2, 2, 3), class_names=["a", "b"]), images)


def test_signals_of_another_shape_are_refused_though_they_have_as_many_numbers() -> None:
    target, judge = (wrap(nn.Sequential(nn.Flatten(), nn.Linear(100, 3)), shape) for shape in ((2, 50), (50, 2)))
    with pytest.raises(UsageError, match=r"takes inputs of \(50, 2\); Sequential takes \(2, 50\)"):
        adapted(judge, target)
    for good in (wrap(nn.Linear(100, 3), (100,)), wrap(nn.Sequential(nn.Flatten(), nn.Linear(100, 3)), (2, 50))):
        assert adapted(good, target) is good


def test_samples_of_classes_that_an_evaluator_lacks_do_not_count(run_copy: Path) -> None:
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3] * 0 + torch.tensor([1.0, 0.0, 2.0])

    names = ["class 2", "a cat", "a dog"]  # it answers "a dog", which the target does not have
    judge = wrap(Constant(), (1, 12, 12), name="judge", class_names=names)
    metrics = interpkit.evaluate(run_copy, evaluators=[judge], metrics=["agreement"])
    (row,) = metrics["evaluators"]
    assert row["agreement"] == 0 and row["agreement_interval"][1] < 0.05  # of the 100 samples of class 2
    assert [len(each["evaluators"][0]) for each in metrics["per_class"]] == [1, 1, 3]
    words = metrics["measured_on"]["classes_matched_for"]["judge"]
    assert re.fullmatch(r"1 of 3 classes by name; it does not evaluate samples of class 0 \(0\), class 1 \(1\)", words)
