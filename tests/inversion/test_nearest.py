"""`nearest`: closed forms of linear classifiers, bounds, grids, flat regions, and what cannot be found."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import interpkit
from interpkit import nearest, wrap
from interpkit.inversion.nearest import _Search
from interpkit.runtime import at_once


def linear(weight: list[list[float]], bias: list[float]) -> interpkit.Target:
    net = nn.Linear(len(weight[0]), len(weight))
    net.load_state_dict({"weight": torch.tensor(weight), "bias": torch.tensor(bias)})
    return wrap(net, input_shape=(len(weight[0]),), class_names=[f"class {k}" for k in range(len(weight))])


def curved(seed: int = 0) -> interpkit.Target:
    torch.manual_seed(seed)
    return wrap(nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)), input_shape=(4,))


def margin(target: interpkit.Target, points: Tensor) -> Tensor:
    with torch.no_grad():
        largest = target(points).topk(2).values
    return largest[:, 0] - largest[:, 1]


def test_the_boundary_of_a_linear_classifier_is_met_at_a_right_angle() -> None:
    target = linear([[3.0, 4.0], [0.0, 0.0]], [-2.5, 0.0])
    result = nearest(target, torch.tensor([[0.9, 0.9], [0.1, 0.1]]))
    assert isinstance(result, interpkit.Nearest)
    away = torch.tensor([3.8 / 5, 1.8 / 5])
    assert torch.allclose(result.distances, away, rtol=1e-3)
    assert torch.allclose(result.normals, torch.tensor([[-0.6, -0.8], [0.6, 0.8]]), atol=1e-5)
    assert result.before.tolist() == [0, 1] and result.answers.tolist() == [1, 0] and not result.reasons


def test_within_bounds_the_other_inputs_make_up_for_the_ones_at_a_bound() -> None:
    target = linear([[4.0, 1.0], [0.0, 0.0]], [-2.3, 0.0])
    result = nearest(target, torch.tensor([[0.1, 0.1]]), high=torch.tensor([0.4, 1.0]))
    assert torch.allclose(result.boundary, torch.tensor([[0.4, 0.7]]), atol=5e-3)


def test_fixed_inputs_keep_their_values() -> None:
    target = linear([[4.0, 1.0], [0.0, 0.0]], [-2.3, 0.0])
    result = nearest(target, torch.tensor([[0.4, 0.1]]), fixed=torch.tensor([True, False]))
    assert torch.allclose(result.boundary, torch.tensor([[0.4, 0.7]]), atol=1e-4)


def test_every_answer_changes_and_boundary_points_have_no_margin() -> None:
    target, given = curved(), torch.rand(50, 4)
    result = nearest(target, given)
    with torch.no_grad():
        assert (target(result.images).argmax(1) != result.before).all()
    assert result.found.all() and margin(target, result.boundary).max() < 1e-4
    assert result.images.min() >= 0 and result.images.max() <= 1
    assert torch.allclose(result.distances, (result.images - given).norm(dim=1))


def test_no_point_of_a_fine_grid_of_directions_is_nearer() -> None:
    torch.manual_seed(1)
    target = wrap(nn.Sequential(nn.Linear(2, 12), nn.Tanh(), nn.Linear(12, 3)), input_shape=(2,))
    given = torch.rand(10, 2)
    result = nearest(target, given, starts=3)
    angles = torch.linspace(0, 2 * torch.pi, 361)
    ring = torch.stack([angles.cos(), angles.sin()], 1)
    for row in range(10):
        around = given[row] + 0.97 * result.distances[row] * ring
        inside = around[((around >= 0) & (around <= 1)).all(1)]
        with torch.no_grad():
            assert (target(inside).argmax(1) == result.before[row]).all()


def test_random_starts_differ_by_row_and_batch_and_not_by_the_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Tensor] = []
    real = _Search.approach

    def approach(search: _Search, start: Tensor) -> tuple[Tensor, Tensor]:
        begun.append(start)
        return real(search, start)

    monkeypatch.setattr(_Search, "approach", approach)
    monkeypatch.setattr(at_once, "MOST", 3)
    given = torch.full((6, 4), 0.5)
    nearest(curved(), given, starts=2, iterations=1)
    first, second = begun[1:3], begun[4:6]
    starts = torch.cat([*first, *second])
    assert len(starts.unique(dim=0)) == 12
    begun.clear()
    nearest(curved(), given[:2], starts=2, iterations=1)
    assert all(torch.equal(few, all_[:2]) for few, all_ in zip(begun[1:3], first, strict=True))


def test_each_row_gets_the_class_that_it_asks_for_by_name_or_number() -> None:
    target = linear([[1.0, 0.0], [0.0, 1.0], [0.6, 0.6]], [0.0, 0.0, 0.0])
    result = nearest(target, torch.tensor([[0.9, 0.1], [0.9, 0.1]]), to=["class 1", 2])
    assert result.answers.tolist() == [1, 2]


def test_changes_are_multiples_of_the_steps() -> None:
    given = torch.rand(30, 4)
    result = nearest(curved(), given, steps=torch.tensor([0.05, 0.1, 0.0, 0.05]))
    counts = (result.images - given)[:, [0, 1, 3]] / torch.tensor([0.05, 0.1, 0.05])
    assert result.found.all() and (counts - counts.round()).abs().max() < 1e-4
    assert (result.images >= 0).all() and (result.images <= 1).all()


def test_a_flat_region_is_left_from_random_points() -> None:
    first = nn.Linear(2, 1)
    first.load_state_dict({"weight": torch.ones(1, 2), "bias": torch.tensor([-1.2])})
    last = nn.Linear(1, 2)
    last.load_state_dict({"weight": torch.tensor([[-8.0], [8.0]]), "bias": torch.tensor([1.0, 0.0])})
    target = wrap(nn.Sequential(first, nn.ReLU(), last), input_shape=(2,))
    result = nearest(target, torch.tensor([[0.2, 0.2]]), starts=2)  # where no ReLU is active
    assert torch.allclose(result.distances, torch.tensor([(1.2625 - 0.4) / 2**0.5]), atol=2e-3)


def test_what_cannot_be_found_has_a_reason() -> None:
    target = linear([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], [0.0, 0.0, -9.0])
    given = torch.tensor([[0.9, 0.1], [1.5, 0.1], [0.1, 0.9]])
    result = nearest(target, given, to=[2, 1, 1])
    assert result.reasons == {
        0: "no input of the class 'class 2' was found within the bounds",
        1: "its value 0 is 1.5, outside the bounds 0 to 1",
        2: "the target classifies it as 'class 1' already",
    }
    assert not result.found.any() and torch.equal(result.images, given) and result.distances.isinf().all()


def test_a_point_whose_answer_is_not_another_is_not_a_result() -> None:
    target = linear([[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]], [0.0, 0.0, 0.0])
    black = torch.zeros(1, 2)  # all of whose logits are 0
    found = nearest(target, black)
    assert found.reasons or found.answers[0] != found.before[0]
    asked = nearest(target, black, to=2)
    assert asked.reasons or asked.answers[0] == 2


def test_an_input_that_cannot_be_changed_is_not_searched_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The search would try every starting point, which takes minutes."""
    monkeypatch.setattr("interpkit.inversion.nearest._Search", None)
    target = linear([[1.0, 0.0], [0.0, 1.0]], [0.0, 0.0])
    result = nearest(target, torch.tensor([[0.9, 1e30], [-1.0, 0.1]]))
    assert list(result.reasons) == [0, 1] and result.normals.eq(0).all()


def test_a_label_of_a_multi_label_target_is_accepted_afterwards() -> None:
    net = nn.Linear(2, 2)
    net.load_state_dict({"weight": torch.eye(2), "bias": torch.tensor([-0.5, -0.5])})
    target = wrap(net, input_shape=(2,), output="sigmoid_logits")
    result = nearest(target, torch.tensor([[0.9, 0.2]]), to=1)
    assert torch.allclose(result.boundary, torch.tensor([[0.9, 0.5]]), atol=1e-4)
    with pytest.raises(interpkit.UsageError, match="do not exclude each other"):
        nearest(target, torch.rand(1, 2))


def test_only_the_classes_named_count_as_another_one() -> None:
    target = wrap(nn.Identity(), input_shape=(3,))  # its logits are its inputs
    given = torch.tensor([[0.9, 0.8, 0.1], [0.1, 0.9, 0.3]])
    assert nearest(target, given).answers.tolist() == [1, 2]
    result = nearest(target, given, among=[2])
    assert result.answers.tolist() == [2, 2] and result.found.all()
    # from (0.9, 0.8, 0.1), all three are equal where 2 is the largest
    assert torch.allclose(result.distances[0], torch.tensor([0.3, 0.2, 0.5]).norm(), atol=0.02)
    assert nearest(target, given, among=[0]).reasons == {0: "no other class was named"}


def test_a_smooth_change_has_less_contrast_between_neighbors() -> None:
    target = wrap(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), input_shape=(1, 8, 8))
    given = torch.full((4, 1, 8, 8), 0.5)
    rough, smooth = nearest(target, given), nearest(target, given, smooth=1.5)
    contrasts = [
        (result.images - given).diff(dim=3).square().sum() / (result.images - given).square().sum()
        for result in (rough, smooth)
    ]
    assert smooth.found.all() and contrasts[1] < contrasts[0] / 2
    assert nearest(target, given, smooth=20.0).found.all()  # wider than the image
    with pytest.raises(interpkit.UsageError, match="only a change of images can be smooth"):
        nearest(curved(), torch.rand(1, 4), smooth=1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": 0.8, "high": 0.2}, "a lower bound is above the upper bound"),
        ({"to": [0, 1, 2]}, "3 classes were asked for, but there are 2 inputs"),
        ({"to": "dog"}, "no class called 'dog'"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(interpkit.UsageError, match=message):
        nearest(curved(), torch.rand(2, 4), **arguments)  # type: ignore[arg-type]


def test_inputs_of_another_shape_and_targets_without_a_gradient_are_refused() -> None:
    with pytest.raises(interpkit.UsageError, match=r"expected inputs of shape \(N, 4\), not \(2, 3\)"):
        nearest(curved(), torch.rand(2, 3))
    target = curved()
    target.no_gradient = "it rounds"
    with pytest.raises(interpkit.UsageError, match="no gradient passes from the logits"):
        nearest(target, torch.rand(2, 4))
