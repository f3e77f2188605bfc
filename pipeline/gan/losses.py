"""The losses of StackGAN as pure functions of logits and of the conditioning code's statistics.

Zhang et al., ICCV 2017, equations 3 to 6, as the published code weighs them. All are means over the batch, so averaging
the gradients of equal shares of a batch is the gradient of the whole. Half-precision input is widened to float32 first.
"""

import torch
from torch.nn import functional as F


def discriminator_loss(
    real_logits: torch.Tensor, wrong_logits: torch.Tensor, fake_logits: torch.Tensor
) -> torch.Tensor:
    """BCE(real, 1) + (BCE(wrong, 0) + BCE(fake, 0)) / 2, a scalar.

    Matching real pairs on one side, the two kinds of pairs to be refused on the other; each side has weight one.

    Args:
        real_logits: (N,) D's logits of real images with their own text.
        wrong_logits: (M,) D's logits of real images with the text of another class.
        fake_logits: (K,) D's logits of generated images with the text they were made from.
    """
    return _bce_one(real_logits) + 0.5 * (_bce_zero(wrong_logits) + _bce_zero(fake_logits))


def generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """BCE(fake, 1), a scalar: the non-saturating form of the published code.

    The paper prints log(1 - D(G(z))), whose gradient vanishes just where D is sure that the image is fake.

    Args:
        fake_logits: (N,) D's logits of generated images.
    """
    return _bce_one(fake_logits)


def kl_divergence(mu: torch.Tensor, logvar: torch.Tensor) -> torch.Tensor:
    """KL(N(mu, diag exp(logvar)) || N(0, I)) averaged over the batch and over the dimensions, a scalar.

    The published code weighs this mean by 2.0. The paper's equation sums over the condition_dim dimensions instead:
    weight w of the mean is weight w / condition_dim of the sum, so the published 2.0 is 2/128 = 0.0156 where the paper
    says 1.

    Args:
        mu: (N, condition_dim).
        logvar: (N, condition_dim), log of the variance.
    """
    mu, logvar = _widen(mu), _widen(logvar)
    return -0.5 * torch.mean(1.0 + logvar - mu.square() - logvar.exp())


def _bce_one(logits: torch.Tensor) -> torch.Tensor:
    return -F.logsigmoid(_widen(logits)).mean()


def _bce_zero(logits: torch.Tensor) -> torch.Tensor:
    return -F.logsigmoid(-_widen(logits)).mean()


def _widen(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
