"""The generators produce images of any size in [0, 1] for any conditioner, and can warp them by the latent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interpkit_vecmat.conditioners import (
    LabelConditioner,
    MatrixConditioner,
    VectorConditioner,
    VectorMatrixConditioner,
)
from interpkit_vecmat.pyramid import PyramidGenerator
from interpkit_vecmat.upconv import MAX_GROWTH, UpConvGenerator, plan_axis
from interpkit_vecmat.warp import WarpGenerator
from torch import Tensor, nn

import interpkit
from interpkit import Condition, Conditioner, ConditionSpec, UsageError

Rng = Callable[[int], torch.Generator]

CONDITIONERS: list[Any] = [VectorConditioner, VectorMatrixConditioner, MatrixConditioner, LabelConditioner]


upsamplings = pytest.mark.parametrize("upsample", ["transposed", "bilinear"])


def small(
    spec: ConditionSpec, shape: tuple[int, ...], cls: type[UpConvGenerator] = UpConvGenerator, **options: Any
) -> UpConvGenerator:
    settings_ = {"width": 8, "min_width": 4, "latent": 6, "hidden": 5, "dropout": 0.0} | options
    return cls(spec, shape, cls.Options(**settings_))


def drawn(conditioner: Conditioner, generator: UpConvGenerator, batch: int, seed: int = 0) -> Tensor:
    source = torch.Generator().manual_seed(seed)
    condition = conditioner.sample(batch, rng=source)
    images: Tensor = generator(torch.randn(batch, generator.latent_dim, generator=source), condition)
    return images


# -------------------------------------------------------------------------------------------------- sizes


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    channels=st.integers(1, 5),
    height=st.integers(8, 48),
    width=st.integers(8, 48),
    n=st.integers(2, 1000),
    cls=st.sampled_from(CONDITIONERS),
    dropout=st.sampled_from([0.0, 0.5]),
    upsample=st.sampled_from(["transposed", "bilinear"]),
    made_by=st.sampled_from([UpConvGenerator, WarpGenerator, PyramidGenerator]),
)
def test_images_of_any_size_are_generated_and_every_parameter_learns(
    channels: int, height: int, width: int, n: int, cls: Any, dropout: float, upsample: str, made_by: Any
) -> None:
    shape = (channels, height, width)
    torch.manual_seed(0)
    conditioner = cls(n, shape)
    generator = small(conditioner.spec, shape, made_by, dropout=dropout, upsample=upsample)
    images = drawn(conditioner, generator, 4)
    assert images.shape == (4, *shape)
    assert images.isfinite().all() and images.min() >= 0 and images.max() <= 1
    images.square().sum().backward()
    untouched = []
    for name, parameter in generator.named_parameters():
        gradient = parameter.grad
        if gradient is None or not gradient.isfinite().all() or (dropout == 0 and not gradient.abs().sum() > 0):
            untouched.append(name)
    assert untouched == []


@upsamplings
@pytest.mark.parametrize("n", [10, 1000])
@pytest.mark.parametrize(
    "shape", [(1, 28, 28), (3, 32, 32), (5, 17, 40), (1, 8, 8), (3, 224, 224), (3, 8, 224), (3, 224, 8)], ids=str
)
def test_common_image_sizes_are_generated_exactly(shape: tuple[int, int, int], n: int, upsample: str) -> None:
    conditioner = VectorMatrixConditioner(n, shape)
    images = drawn(conditioner, small(conditioner.spec, shape, upsample=upsample), 2)
    assert images.shape == (2, *shape) and images.isfinite().all()


@upsamplings
@pytest.mark.parametrize("cls", [UpConvGenerator, WarpGenerator, PyramidGenerator], ids=lambda cls: cls.name)
@pytest.mark.parametrize("shape", [(1, 1, 5), (1, 5, 1), (1, 1, 1), (2, 3, 7)], ids=str)
def test_single_pixel_images_are_generated_if_the_condition_has_no_maps(
    shape: tuple[int, int, int], cls: Any, upsample: str
) -> None:
    conditioner = VectorConditioner(3, shape)
    images = drawn(conditioner, small(conditioner.spec, shape, cls, upsample=upsample), 4)
    assert images.shape == (4, *shape) and images.isfinite().all()


def test_bilinear_doubling_reaches_every_size_exactly() -> None:
    spec, wrong = ConditionSpec(2), []
    for height in range(1, 41):
        width = 1 + 17 * height % 41  # every width once, in another order
        generator = small(spec, (1, height, width), upsample="bilinear", width=1, min_width=1).to("meta")
        condition = Condition(*(torch.zeros(2, *size, device="meta") for size in ((), (2,), (2,))))
        if generator(torch.zeros(2, 6, device="meta"), condition).shape != (2, 1, height, width):
            wrong.append((height, width))
    assert wrong == []


def test_bilinear_doubling_has_no_strided_layers_and_transposed_no_other_upsampling() -> None:
    for upsample in ("transposed", "bilinear"):
        parts = list(small(ConditionSpec(10, 1, 10), (1, 33, 40), upsample=upsample).modules())
        striding = [part for part in parts if isinstance(part, nn.ConvTranspose2d) and max(part.stride) > 1]
        doubling = [part for part in parts if isinstance(part, nn.Upsample)]
        # To 10 x 10: 4, 5, 10. To 33 x 40: 17 x 20, 33 x 40, from 10 twice the pace of both.
        assert (len(striding), len(doubling)) == ((3, 0) if upsample == "transposed" else (0, 3))


def test_the_planned_steps_end_at_the_exact_size_and_respect_the_growth_limit() -> None:
    wrong = []
    for start in range(1, 301):
        for end in range(start, 301):
            growths, doublings = plan_axis(start, end)
            size = start
            for step in (*growths, *doublings):
                size = (size - 1) * step.stride - 2 * step.padding + step.kernel
            small_enough = all(step.stride == 1 and 0 < step.kernel - 1 <= MAX_GROWTH for step in growths)
            if size != end or not small_enough or any(step.stride != 2 for step in doublings):
                wrong.append((start, end, size))
    assert wrong == []


def test_the_matrix_is_concatenated_to_the_features_at_its_own_size() -> None:
    conditioner = VectorMatrixConditioner(10, (1, 28, 28))
    generator = small(conditioner.spec, (1, 28, 28))
    condition = conditioner.sample(3, labels=torch.tensor([0, 4, 9]))
    seen: list[Tensor] = []
    generator.to_image.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    generator(torch.zeros(3, generator.latent_dim), condition)
    assert seen[0].shape == (3, 8 + 1, 10, 10)
    assert torch.equal(seen[0][:, -1:], condition.maps(10, 10))


@pytest.mark.parametrize(
    ("shape", "width"),
    [((1, 28, 28), 64), ((3, 32, 32), 64), ((3, 63, 40), 64), ((3, 64, 64), 128), ((3, 64, 224), 256)],
)
def test_large_images_have_more_channels_at_the_matrix_and_as_many_at_the_image(
    shape: tuple[int, int, int], width: int
) -> None:
    generator = UpConvGenerator(VectorMatrixConditioner(10, shape).spec, shape)
    assert generator.width == width
    assert isinstance(last := generator.to_image[-2], nn.Conv2d) and last.in_channels == 32


# -------------------------------------------------------------------------------------------- conditions


@pytest.mark.parametrize("cls", CONDITIONERS, ids=lambda cls: cls.name)
def test_another_label_changes_the_image_of_a_latent(cls: Any, rng: Rng) -> None:
    conditioner = cls(10, (1, 16, 16))
    generator = small(conditioner.spec, (1, 16, 16))
    latent = torch.randn(1, generator.latent_dim, generator=rng(0)).expand(2, -1)
    images = generator(latent, conditioner.sample(2, labels=torch.tensor([3, 7]), rng=rng(1)))
    assert (images[0] - images[1]).abs().max() > 1e-3


@pytest.mark.parametrize("part", ["vector", "maps"])
def test_the_vector_and_the_maps_each_change_the_image(part: str, rng: Rng) -> None:
    conditioner = VectorMatrixConditioner(10, (1, 16, 16))
    generator = small(conditioner.spec, (1, 16, 16))
    labels = torch.tensor([3, 3, 7])
    vector = conditioner.sample(1, rng=rng(0)).vector.expand(3, -1)
    maps = conditioner.sample(3, labels=labels if part == "maps" else labels[:1].expand(3)).draw_maps
    if part == "vector":
        vector = torch.cat([vector[:2], vector[:1].roll(5, 1)])
    latent = torch.randn(1, generator.latent_dim, generator=rng(1)).expand(3, -1)
    one, same, other = generator(latent, Condition(labels, vector, vector, maps))
    assert torch.allclose(one, same, atol=1e-6)
    assert (one - other).abs().max() > 1e-3


def test_another_latent_changes_the_image_of_a_condition(rng: Rng) -> None:
    conditioner = VectorMatrixConditioner(10, (1, 16, 16))
    generator = small(conditioner.spec, (1, 16, 16))
    condition = conditioner.sample(2, rng=rng(0))
    one, other = (generator(torch.randn(2, generator.latent_dim, generator=rng(seed)), condition) for seed in (1, 2))
    assert (one - other).abs().max() > 1e-3


def test_without_a_vector_there_is_no_layer_to_map_it() -> None:
    assert small(ConditionSpec(0, 1, 10), (1, 28, 28)).embed is None
    embed = small(ConditionSpec(10), (1, 28, 28)).embed
    assert embed is not None and (embed.in_features, embed.out_features) == (10, 5)


def test_dropout_varies_the_images_only_while_it_is_on(rng: Rng) -> None:
    conditioner = VectorMatrixConditioner(10, (1, 16, 16))
    generator = small(conditioner.spec, (1, 16, 16), dropout=0.3)
    condition, latent = conditioner.sample(8, rng=rng(0)), torch.randn(8, generator.latent_dim, generator=rng(1))
    assert not torch.equal(generator(latent, condition), generator(latent, condition))
    generator.eval()
    assert torch.equal(generator(latent, condition), generator(latent, condition))


# ---------------------------------------------------------------------------------------------------- warp


def warping(shape: tuple[int, ...] = (1, 8, 8), **options: Any) -> WarpGenerator:
    generator = small(ConditionSpec(3), shape, WarpGenerator, **options)
    assert isinstance(generator, WarpGenerator)
    return generator


def picture_and_image(generator: WarpGenerator, numbers: Tensor | None = None, batch: int = 3) -> tuple[Tensor, Tensor]:
    """Return pictures before and after the warp, whose parameters, before the bounds, may be passed as ``numbers``."""
    if numbers is not None:
        last = generator.pose[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        last.bias.data = numbers.atanh()
    condition = Condition(torch.arange(batch), torch.eye(batch, 3), torch.eye(batch, 3))
    latent = torch.randn(batch, generator.latent_dim, generator=torch.Generator().manual_seed(0))
    generator.eval()
    with torch.no_grad():
        return UpConvGenerator.forward(generator, latent, condition), generator(latent, condition)


def pose(generator: WarpGenerator, **numbers: float) -> Tensor:
    """Return the parameters of a warp as shares of the bounds: affine xx, xy, x, yx, yy, y, then all displacements."""
    affine = torch.tensor([numbers.get(name, 0.0) for name in ("xx", "xy", "x", "yx", "yy", "y")])
    side = generator.options.grid
    moves = torch.tensor([numbers.get("dx", 0.0), numbers.get("dy", 0.0)])[:, None].expand(2, side * side)
    return torch.cat([affine, moves.flatten()])


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 14)], ids=str)
def test_a_warp_with_zero_bounds_is_the_identity(shape: tuple[int, ...]) -> None:
    picture, image = picture_and_image(warping(shape, affine=0.0, shift=0.0, elastic=0.0))
    assert torch.allclose(image, picture, atol=1e-5)
    picture, image = picture_and_image(warping(shape))
    assert not torch.allclose(image, picture, atol=1e-3)


@pytest.mark.parametrize("kind", ["shift", "elastic"])
def test_a_warp_samples_each_pixel_from_where_it_points(kind: str) -> None:
    # A pixel of 8 is 2 / 8 of the picture's [-1, 1]; of 16, 2 / 16.
    generator = warping((2, 8, 16), affine=0.0, shift=0.5, elastic=0.5)
    right = {"shift": {"x": 0.25}, "elastic": {"dx": 0.25}}[kind]
    picture, image = picture_and_image(generator, pose(generator, **right))
    assert torch.allclose(image[..., :-1], picture[..., 1:], atol=1e-5)
    assert torch.allclose(image[..., -1], picture[..., -1], atol=1e-5)  # outside is the mirrored picture
    down = {"shift": {"y": 0.5}, "elastic": {"dy": 0.5}}[kind]
    picture, image = picture_and_image(generator, pose(generator, **down))
    assert torch.allclose(image[:, :, :-1], picture[:, :, 1:], atol=1e-5)


def test_an_affine_warp_rotates_a_square_picture_by_90_degrees() -> None:
    generator = warping(affine=1.0, shift=0.0, elastic=0.0)
    near_one = 1 - 1e-7
    turned = pose(generator, xx=-near_one, xy=near_one, yx=-near_one, yy=-near_one)  # x from y, y from -x
    picture, image = picture_and_image(generator, turned)
    assert torch.allclose(image, picture.transpose(2, 3).flip(3), atol=1e-4)


def test_the_first_latents_alone_choose_the_warp_which_changes_the_image(rng: Rng) -> None:
    generator = warping(pose=2).eval()
    seen: list[Tensor] = []
    generator.pose.register_forward_hook(lambda _, inputs, output: seen.append(output))
    latent = torch.randn(1, 6, generator=rng(0)).repeat(3, 1)
    latent[1, 2:] += 1
    latent[2, :2] += 1
    condition = Condition(torch.zeros(3, dtype=torch.int64), torch.eye(3)[[0] * 3], torch.eye(3)[[0] * 3])
    images = generator(latent, condition)
    numbers = seen[0]
    assert torch.allclose(numbers[0], numbers[1], atol=1e-6)
    assert (numbers[0] - numbers[2]).abs().max() > 1e-2
    assert (images[0] - images[1]).abs().max() > 1e-4
    assert warping(pose=100).read == 6  # all there are


def test_drawn_warps_are_uniform_and_have_latents_of_their_own(rng: Rng, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = warping(drawn=True, elastic=0.0, affine=0.3, shift=0.2).eval()
    assert (generator.latent_dim, generator.poses) == (6 + 38, 38)  # a fit to images leaves them out
    count = 2000
    latent = torch.randn(count, generator.latent_dim, generator=rng(0))
    latent[:, :6] = latent[0, :6]  # one picture
    condition = Condition(torch.zeros(count, dtype=torch.int64), *[torch.eye(3)[[0] * count]] * 2)
    grids: list[Tensor] = []
    affine_grid = torch.nn.functional.affine_grid
    monkeypatch.setattr(torch.nn.functional, "affine_grid", lambda *a: grids.append(a[0]) or affine_grid(*a))
    images = generator(latent, condition)
    moved = grids[0] - torch.eye(2, 3)
    for column, bound in ((moved[:, :, :2], 0.3), (moved[:, :, 2], 0.2)):
        assert column.abs().max() <= bound
        assert column.std() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert abs(float(column.mean())) < 0.02
    assert images.std(0).max() > 1e-4
    latent[:, 6:] = 0
    plain = generator(latent, condition)
    assert torch.equal(plain[0], plain[1])
    assert torch.equal(grids[-1], torch.eye(2, 3).expand(count, 2, 3))  # where it begins


@pytest.mark.parametrize("bound", [1.0, 0.2])
def test_a_warp_does_not_exceed_the_brightness_of_the_picture(bound: float) -> None:
    picture, image = picture_and_image(warping((2, 7, 10), affine=bound, shift=bound, elastic=bound), batch=20)
    assert (image.amin((2, 3)) >= picture.amin((2, 3)) - 1e-5).all()
    assert (image.amax((2, 3)) <= picture.amax((2, 3)) + 1e-5).all()


def test_positions_are_computed_in_full_precision_under_bf16() -> None:
    generator = warping((1, 32, 32)).eval()
    seen: list[Tensor] = []
    generator.pose.register_forward_hook(lambda _, inputs, output: seen.append(output))
    condition = Condition(torch.arange(3), torch.eye(3), torch.eye(3))
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            images = generator(torch.ones(3, 6), condition)
        assert images.dtype == torch.float32
    assert seen[1].dtype == torch.float32 and torch.equal(*seen)


def test_a_start_brightness_also_applies_to_warped_pictures() -> None:
    generator = warping()
    generator.start_at(0.02)
    nn.init.zeros_(generator.to_image[-2].weight)  # type: ignore[arg-type]
    assert torch.allclose(picture_and_image(generator)[1], torch.tensor(0.02), atol=1e-5)


def test_an_inversion_with_warped_pictures_is_saved_and_loaded(
    tmp_path: Path, tiny_model: Path, quick: Callable[..., dict[str, Any]]
) -> None:
    small_ = {f"warp.{name}": value for name, value in (("width", 8), ("min_width", 4), ("latent", 8), ("hidden", 8))}
    settings_ = quick(steps=2) | {"generator": "warp", "options": {**small_, "warp.upsample": "bilinear"}}
    inversion = interpkit.invert(tiny_model, out=tmp_path, **settings_)
    assert isinstance(inversion, interpkit.GeneratorInversion) and isinstance(inversion.generator, WarpGenerator)
    again = interpkit.load_inversion(tmp_path)
    assert torch.equal(again.sample(count=6)[0], inversion.sample(count=6)[0])


# ----------------------------------------------------------------------------------- the generator of photographs


def pictures(generator: UpConvGenerator, latent: Tensor, label: int) -> Tensor:
    """Return images of one class, of a vector that is one-hot, so that they depend on the latents alone."""
    vector = torch.eye(3)[[label] * len(latent)]
    made: Tensor = generator.eval()(latent, Condition(vector.argmax(1), vector, vector))
    return made.detach()


def test_the_first_latents_choose_among_the_learned_pictures_of_a_class(rng: Rng) -> None:
    generator = small(ConditionSpec(3), (1, 16, 16), PyramidGenerator, modes=2)
    assert isinstance(generator, PyramidGenerator) and generator.memory.in_features == 6  # of three classes
    first, second = torch.zeros(2, 1, 6)
    first[0, 0], second[0, 1] = 3.0, 3.0
    for layer in (generator.memory, *generator.pictures):
        before = [pictures(generator, z, label) for label in (0, 1) for z in (first, second)]
        layer.weight.data[:, 3] += 0.1  # the second of the second class
        after = [pictures(generator, z, label) for label in (0, 1) for z in (first, second)]
        changes = [float((a - b).abs().max()) for a, b in zip(after, before, strict=True)]
        assert changes[3] > 1e-4 and max(changes[:3]) < changes[3] / 100


def test_few_samples_blend_learned_pictures(rng: Rng) -> None:
    generator = small(ConditionSpec(3), (1, 16, 16), PyramidGenerator, modes=10, latent=10)
    assert isinstance(generator, PyramidGenerator)
    for parameter in generator.parameters():
        nn.init.zeros_(parameter)
    finest = generator.pictures[-1]
    assert isinstance(finest, nn.Linear)
    finest.weight.data[:64, :10] = 0.1 * torch.eye(64, 10)  # each of the first class lights its own pixel
    z = torch.randn(500, 10, generator=rng(0))
    lit, alone = (pictures(generator, latent, 0).logit().flatten(1).amax(1) for latent in (z, torch.eye(10)))
    share = lit / alone[z.argmax(1)]
    assert (share > 0.8).float().mean() > 0.8


def test_poses_show_a_part_of_a_picture_or_mirror_it_and_zero_leaves_it_as_it_is(rng: Rng) -> None:
    still = small(ConditionSpec(3), (1, 16, 16), PyramidGenerator)
    posing = small(ConditionSpec(3), (1, 16, 16), PyramidGenerator, zoom=0.5, flip=True)
    posing.load_state_dict(still.state_dict())
    assert (still.poses, posing.poses, posing.latent_dim) == (0, 4, still.latent_dim + 4)
    z = torch.randn(1, still.latent_dim, generator=rng(0))
    own = pictures(still, z, 0)

    def posed(size: float, across: float, down: float, mirrored: float) -> Tensor:
        return pictures(posing, torch.cat([z, torch.tensor([[size, across, down, mirrored]])], 1), 0)

    assert torch.allclose(posed(0, 0, 0, 0), own, atol=1e-6)
    assert torch.allclose(posed(0, 2, -2, 0), own, atol=1e-6)  # the whole has one place
    assert torch.allclose(posed(0, 0, 0, 1), own.flip(3), atol=1e-6)
    quarter = nn.functional.interpolate(own[:, :, 8:, :8], scale_factor=2, mode="bilinear")
    inner = slice(2, -2)  # the rim of the part blends with what lies beyond
    assert torch.allclose(posed(9, -9, 9, 0)[..., inner, inner], quarter[..., inner, inner], atol=1e-5)


def test_a_coarse_layer_reaches_the_image_past_the_finer_ones() -> None:
    generator = small(ConditionSpec(3), (1, 32, 32), PyramidGenerator)
    assert isinstance(generator, PyramidGenerator) and len(generator.coarse) == len(generator.blocks) - 1
    before = pictures(generator, torch.zeros(1, 6), 0)
    first = generator.coarse[0]
    assert isinstance(first, nn.Conv2d) and first.bias is not None
    first.bias.data += 1.0
    change = pictures(generator, torch.zeros(1, 6), 0).logit() - before.logit()
    assert torch.allclose(change, torch.ones(1, 1, 32, 32), atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((3, 224, 224), [(7, 7), (14, 14), (28, 28), (56, 56), (112, 112)]),
        ((1, 30, 100), [(8, 25), (15, 50)]),
        ((1, 3, 2), [(3, 2)]),
    ],
    ids=str,
)
def test_learned_pictures_have_every_size_from_half_the_image_down_to_eight_pixels(
    shape: tuple[int, int, int], sizes: list[tuple[int, int]]
) -> None:
    assert small(ConditionSpec(3), shape, PyramidGenerator).sizes == sizes


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 11, 14)], ids=str)
def test_pyramids_start_at_a_gray_of_any_brightness(shape: tuple[int, int, int]) -> None:
    generator = small(ConditionSpec(3), shape, PyramidGenerator)
    assert isinstance(generator, PyramidGenerator)
    generator.start_at(0.2)
    for layer in (generator.finest, *generator.pictures):
        nn.init.zeros_(layer.weight)
    assert torch.allclose(pictures(generator, torch.zeros(1, 6), 1), torch.tensor(0.2), atol=1e-5)


def test_the_preset_for_photographs_trains_a_pyramid_over_the_papers_recipe(
    tmp_path: Path, tiny_model: Path, quick: Callable[..., dict[str, Any]]
) -> None:
    settings_ = quick(steps=2) | {"plugins": [], "presets": ["vecmat", "photo-generator"]}
    settings_["options"] = {"pyramid.width": 8, "pyramid.latent": 8, "pyramid.modes": 2}
    inversion = interpkit.invert(tiny_model, out=tmp_path, **settings_)
    assert set(inversion.history[-1].terms) == {"ce", "statistics", "tv", "chroma"}
    assert isinstance(inversion, interpkit.GeneratorInversion) and isinstance(inversion.generator, PyramidGenerator)
    assert torch.equal(interpkit.load_inversion(tmp_path).sample(count=6)[0], inversion.sample(count=6)[0])


# ------------------------------------------------------------------------------------------------ refusals


def test_a_classifier_of_vectors_is_refused() -> None:
    for cls in (UpConvGenerator, WarpGenerator, PyramidGenerator):
        with pytest.raises(UsageError, match=f"'{cls.name}' makes images .*--generator dense"):
            cls(ConditionSpec(10), (20,))


def test_more_learned_pictures_than_memory_holds_are_refused() -> None:
    with pytest.raises(UsageError, match=r"8 pictures of each class, .* 8,000 of 50,127 values"):
        PyramidGenerator(ConditionSpec(1000, 1, 16), (3, 224, 224))


def test_maps_larger_than_the_image_are_refused() -> None:
    with pytest.raises(UsageError, match="20"):
        UpConvGenerator(ConditionSpec(10, 1, 20), (1, 28, 16))


@pytest.mark.parametrize(
    "options",
    [
        {"dropout": 1.0},
        {"dropout": -0.1},
        {"slope": 1.0},
        {"latent": 0},
        {"hidden": 0},
        {"width": 0},
        {"min_width": 0},
        {"dropout": float("nan")},
        {"depth": 3},
        {"upsample": "nearest"},
        {"pose": 0},
        {"affine": 1.1},
        {"affine": -0.1},
        {"shift": 1.1},
        {"elastic": float("nan")},
        {"grid": 1},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(options: dict[str, Any]) -> None:
    for cls in (UpConvGenerator, WarpGenerator, PyramidGenerator):
        with pytest.raises(pydantic.ValidationError, match=next(iter(options))):
            cls.Options(**options)


def test_one_channel_is_wide_enough() -> None:
    conditioner = VectorMatrixConditioner(10, (1, 32, 32))
    assert drawn(conditioner, small(conditioner.spec, (1, 32, 32), width=1), 2).shape == (2, 1, 32, 32)
