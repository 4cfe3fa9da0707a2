"""How images are moved before a classifier sees them."""

from __future__ import annotations

import torch

from interpkit import PHOTOGRAPH_COLORS, shift_and_flip


def test_moved_images_are_shifted_by_at_most_a_share_of_each_side_and_mirrored_half_of_the_time() -> None:
    images = torch.arange(200.0).view(1, 1, 10, 20)
    rng = torch.Generator().manual_seed(0)
    places = set()
    for _ in range(300):
        found = int((shift_and_flip(images, 0.1, False, rng) == 0).flatten().nonzero())
        places.add(((found // 20 + 5) % 10 - 5, (found % 20 + 10) % 20 - 10))
    assert places == {(down, across) for down in range(-1, 2) for across in range(-2, 3)}
    flips = [torch.equal(shift_and_flip(images, None, True, rng), images.flip(3)) for _ in range(100)]
    assert 30 < sum(flips) < 70
    assert shift_and_flip(images, None, False, rng) is images


def test_a_shift_of_zero_draws_as_any_other_and_none_draws_nothing() -> None:
    def drawn_after(jitter: float | None) -> float:
        rng = torch.Generator().manual_seed(0)
        shift_and_flip(torch.zeros(1, 1, 4, 4), jitter, False, rng)
        return torch.rand((), generator=rng).item()

    assert drawn_after(0.0) == drawn_after(0.5) != drawn_after(None)
    assert drawn_after(None) == torch.rand((), generator=torch.Generator().manual_seed(0)).item()


def test_vectors_stay_as_they_are() -> None:
    vectors = torch.rand(3, 5)
    assert shift_and_flip(vectors, 0.5, True, torch.Generator()) is vectors


def test_the_colors_are_a_brightness_and_two_contrasts() -> None:
    brightness, *contrasts = torch.tensor(PHOTOGRAPH_COLORS).T
    assert brightness.std() < 0.1 * brightness.mean()
    for contrast in contrasts:
        assert abs(contrast.sum()) < 0.1 * contrast.norm()
        assert contrast.norm() < 0.3 * brightness.norm()
