"""The losses of StackGAN as pure functions of logits and of the conditioning code's statistics.

Zhang et al., ICCV 2017, equations 3 to 6, as the published code weighs them. All are means over the batch, so averaging
the gradients of equal shares of a batch is the gradient of the whole. Half-precision input is widened to float32 first.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch.nn import functional as F


class Logits(NamedTuple):
    """What D says of a batch, (N,) each.

    Attributes:
        real: real images with their own text.
        wrong: pairs that do not belong together.
        fake: generated images with the text they were made from.
        real_alone: real images without a text; None where D has no unconditional head.
        fake_alone: generated ones.
    """

    real: torch.Tensor
    wrong: torch.Tensor
    fake: torch.Tensor
    real_alone: torch.Tensor | None = None
    fake_alone: torch.Tensor | None = None


def discriminator_loss(logits: Logits, form: Literal["bce", "hinge"] = "bce") -> torch.Tensor:
    """Return real + (wrong + fake) / 2, a scalar: matching real pairs on one side, what is to be refused on the other.

    With an unconditional head, as the PyTorch release weighs it: (real + real_alone) / 2 + (wrong + fake +
    fake_alone) / 3.

    Args:
        logits: of D.
        form: of each term: bce, -log D and -log(1 - D); or hinge, max(0, 1 - logit) and max(0, 1 + logit).
    """
    real, refused = (_bce_one, _bce_zero) if form == "bce" else (_hinge_one, _hinge_zero)
    if logits.real_alone is None or logits.fake_alone is None:
        return real(logits.real) + 0.5 * (refused(logits.wrong) + refused(logits.fake))
    accepted = 0.5 * (real(logits.real) + real(logits.real_alone))
    return accepted + (refused(logits.wrong) + refused(logits.fake) + refused(logits.fake_alone)) / 3


def generator_loss(
    fake: torch.Tensor, fake_alone: torch.Tensor | None = None, form: Literal["bce", "hinge"] = "bce"
) -> torch.Tensor:
    """Return G's loss, a scalar: -log D(fake), the non-saturating form of the published code; for hinge, -logit.

    The paper prints log(1 - D(G(z))), whose gradient vanishes just where D is sure that the image is fake.

    Args:
        fake: (N,) D's logits of generated images with their text.
        fake_alone: (N,) without; the two terms are added, as in the PyTorch release.
        form: as D's.
    """
    term: Callable[[torch.Tensor], torch.Tensor] = _bce_one if form == "bce" else lambda logits: -_widen(logits).mean()
    return term(fake) if fake_alone is None else term(fake) + term(fake_alone)


def kl_divergence(mu: torch.Tensor, logvar: torch.Tensor, form: Literal["mean", "sum"] = "mean") -> torch.Tensor:
    """KL(N(mu, diag exp(logvar)) || N(0, I)), averaged over the batch, a scalar.

    The published codes average over the condition_dim dimensions and weigh this by 2.0. The paper's equation sums over
    them: a weight w of the mean is w / condition_dim of the sum, so the published 2.0 is 2/128 = 0.0156 where the
    paper says 1.

    Args:
        mu: (N, condition_dim).
        logvar: (N, condition_dim), log of the variance.
        form: over the dimensions.
    """
    mu, logvar = _widen(mu), _widen(logvar)
    each = -0.5 * (1.0 + logvar - mu.square() - logvar.exp())
    return each.mean() if form == "mean" else each.sum(dim=1).mean()


def gradient_penalty(
    judge: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    images: torch.Tensor,
    text: torch.Tensor,
    form: Literal["r1", "matching_aware"],
) -> torch.Tensor:
    """Return the penalty on D's gradient at real images with their own text, a scalar to be weighed.

    r1: half of the squared norm over the image (Mescheder et al., ICML 2018). matching_aware: the sixth power of the
    norm over image and text (Tao et al., CVPR 2022: DF-GAN, with a weight of 2 there).

    Args:
        judge: D: images and text to logits (N,).
        images: (N, 3, S, S).
        text: (N, D).
        form: which of the two.
    """
    images, text = images.detach().requires_grad_(), text.detach().requires_grad_()
    logits = judge(images, text)
    inputs = (images,) if form == "r1" else (images, text)
    gradients = torch.autograd.grad(logits.sum(), inputs, create_graph=True)
    squared = torch.cat([gradient.flatten(1) for gradient in gradients], dim=1).square().sum(dim=1)
    return 0.5 * squared.mean() if form == "r1" else squared.pow(3).mean()


def _bce_one(logits: torch.Tensor) -> torch.Tensor:
    return -F.logsigmoid(_widen(logits)).mean()


def _bce_zero(logits: torch.Tensor) -> torch.Tensor:
    return -F.logsigmoid(-_widen(logits)).mean()


def _hinge_one(logits: torch.Tensor) -> torch.Tensor:
    return F.relu(1.0 - _widen(logits)).mean()


def _hinge_zero(logits: torch.Tensor) -> torch.Tensor:
    return F.relu(1.0 + _widen(logits)).mean()


def _widen(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
