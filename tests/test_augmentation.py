"""DiffAugment: what it does to known pictures, and that gradients come through."""

import torch

from pipeline.gan.augmentation import _cut_at_once, _cut_one_by_one, shifted_and_cut


def test_the_middle_draw_shifts_nothing_and_the_square_is_blank() -> None:
    images = torch.ones(1, 3, 64, 64)
    seen = shifted_and_cut(images, torch.tensor([[0.5, 0.5, 0.5, 0.5]]))
    assert (seen[:, :, 17:48, 17:48] == 0).all()
    assert seen.sum() == 3 * (64 * 64 - 31 * 31)


def test_the_extreme_draws_shift_by_an_eighth() -> None:
    images = torch.zeros(2, 3, 64, 64)
    images[:, :, 30, 40] = 1
    seen = shifted_and_cut(images, torch.tensor([[0.0, 0.0, 0.0, 0.999], [0.999, 0.999, 0.0, 0.0]]))
    assert seen[0, 0].nonzero().tolist() == [[38, 48]]
    assert seen[1, 0].nonzero().tolist() == [[22, 32]]


def test_each_picture_has_its_own_draws() -> None:
    images = torch.rand(3, 3, 64, 64)
    draws = torch.rand(3, 4)
    together = shifted_and_cut(images, draws)
    alone = torch.cat([shifted_and_cut(images[i : i + 1], draws[i : i + 1]) for i in range(3)])
    assert torch.equal(together, alone)


def test_gradients_reach_what_is_seen_and_nothing_else() -> None:
    images = torch.rand(1, 3, 64, 64, requires_grad=True)
    shifted_and_cut(images, torch.tensor([[0.0, 0.5, 0.0, 0.0]])).sum().backward()
    assert images.grad is not None
    # Shifted down by 8: the last 8 rows left the picture; the cut corner, 16 wide, saw the rows before the shift.
    assert (images.grad[:, :, 56:] == 0).all() and (images.grad[:, :, :8, :16] == 0).all()
    assert (images.grad[:, :, 8:56] == 1).all()


def test_a_gpu_would_shift_what_a_processor_shifts_gradients_included() -> None:
    generator = torch.Generator().manual_seed(0)
    offsets = torch.randint(0, 17, (20, 2), generator=generator)
    weights = torch.rand(20, 3, 64, 64, generator=generator)
    found: list[torch.Tensor] = []
    for cut in (_cut_one_by_one, _cut_at_once):
        padded = torch.rand(20, 3, 80, 80, generator=generator.manual_seed(1), requires_grad=True)
        windows = cut(padded, offsets, 64)
        (windows * weights).sum().backward()
        assert padded.grad is not None
        found += [windows.detach(), padded.grad]
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])
