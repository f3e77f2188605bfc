"""Char-CNN-RNN text encoder and its joint embedding loss (Reed et al., CVPR 2016 and ICML 2016).

A caption is 201 characters of a 70-symbol alphabet. Three temporal convolutions shorten it 201 -> 66 -> 21 -> 18, a
recurrent network reads what is left, the mean of its states goes through one Linear. Two published forms: `gru` (CUB,
18 steps) and `relu` (Oxford-102, one more max pooling, 8 steps).

Two things are done differently from a plain one-hot implementation, both exactly equal in value:
- the first convolution adds up gathered kernel taps; nothing is multiplied by the zeros of a one-hot matrix;
- padding is zero rows, so all positions behind the longest caption hold one vector: it is computed once, then repeated.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

Rnn = Literal["gru", "relu"]

# "-" stands in it twice (ids 37 and 60). The published table was filled in order: the later wins, id 37 is never seen.
ALPHABET = "abcdefghijklmnopqrstuvwxyz0123456789-,;.!?:'\"/\\|_@#$%^&*~`+-=<>()[]{} "
MAX_CHARS = 201

KERNEL_WIDTH = 4
# Positions behind each convolution, the first two with their max pooling.
CONV1_LENGTH, CONV2_LENGTH, CONV3_LENGTH = 66, 21, 18
NUM_RNN_STEPS: dict[Rnn, int] = {"gru": CONV3_LENGTH, "relu": 8}

_ACTIVATION_THRESHOLD = 1e-6  # the published activation passes x where x > 1e-6
_INITIAL_RANGE = 0.08


def character_codes(captions: Sequence[str], lower_case: bool = True) -> Tensor:
    """Character ids of captions, equal to the published code files.

    Args:
        captions: N captions; characters behind the 201st are cut.
        lower_case: fold capitals first. The published Lua demos did not, so their capitals became unknown characters.

    Returns:
        (N, 201) int64; 1 to 70 is a place in `ALPHABET`, 0 is padding or a character outside it.
    """
    folded = (caption.lower() if lower_case else caption for caption in captions)
    text = "".join(caption[:MAX_CHARS].ljust(MAX_CHARS, "\0") for caption in folded)
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").reshape(len(captions), MAX_CHARS)
    table = _code_of_ascii()
    return torch.from_numpy(table[np.minimum(points, len(table) - 1)])


def _code_of_ascii() -> NDArray[np.int64]:
    table = np.zeros(129, dtype=np.int64)  # the last entry stands for everything that is not ASCII
    for code, symbol in enumerate(ALPHABET, start=1):
        table[ord(symbol)] = code
    return table


class CharCnnRnn(nn.Module):
    """The network, from character ids to a text embedding.

    Args:
        conv_dims: channels of the convolutions, the last is the recurrent network's width too. Published 384, 512, 512.
        rnn: `gru` for the CUB form, `relu` for the Oxford-102 form.
        embedding_dim: length of the text embedding. Published: 1024.
    """

    def __init__(
        self, *, conv_dims: tuple[int, int, int] = (384, 512, 512), rnn: Rnn = "gru", embedding_dim: int = 1024
    ) -> None:
        super().__init__()
        if rnn not in NUM_RNN_STEPS:
            raise ValueError(f"fit_text_encoder.rnn: {rnn!r} is not one of {', '.join(NUM_RNN_STEPS)}")
        self.conv_dims, self.rnn_kind, self.embedding_dim = conv_dims, rnn, embedding_dim
        conv1_dim, conv2_dim, hidden_dim = conv_dims
        self.conv1 = nn.Conv1d(len(ALPHABET), conv1_dim, KERNEL_WIDTH)
        self.conv2 = nn.Conv1d(conv1_dim, conv2_dim, KERNEL_WIDTH)
        self.conv3 = nn.Conv1d(conv2_dim, hidden_dim, KERNEL_WIDTH)
        num_steps = NUM_RNN_STEPS[rnn]
        self.rnn = GatedRnn(hidden_dim, num_steps) if rnn == "gru" else ReluRnn(hidden_dim, num_steps)
        self.project = nn.Linear(hidden_dim, embedding_dim)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw every weight and bias from uniform(-0.08, 0.08), as published."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-_INITIAL_RANGE, _INITIAL_RANGE, generator=generator)

    def forward(self, codes: Tensor) -> Tensor:
        """Embed captions: (N, 201) int64 ids in [0, 70] -> (N, embedding_dim)."""
        x = self.convolve(codes)  # (N, hidden_dim, <= 18)
        if self.rnn_kind == "relu":
            x = F.max_pool1d(_repeat_last(x, CONV3_LENGTH), kernel_size=3, stride=2)  # (N, hidden_dim, 8)
        return self.project(self.rnn(x.transpose(1, 2)))

    def convolve(self, codes: Tensor) -> Tensor:
        """The three convolutions, as far as captions reach.

        Args:
            codes: (N, 201) int64 ids in [0, 70].

        Returns:
            (N, hidden_dim, L), L <= 18: all positions L, L + 1, ... 17 would equal position L - 1.
        """
        reach = int(codes.any(dim=0).nonzero().amax()) + 1 if codes.any() else 0  # characters before the common padding
        reach, length = _pooled_reach(reach, CONV1_LENGTH)
        x = self._gathered_conv1(codes[:, : 3 * length + KERNEL_WIDTH - 1])  # (N, 3 * length, conv1_dim)
        x = _activated(x.unflatten(1, (length, 3)).amax(dim=2)).transpose(1, 2)  # (N, conv1_dim, length)
        reach, length = _pooled_reach(reach, CONV2_LENGTH)
        x = self.conv2(_repeat_last(x, 3 * length + KERNEL_WIDTH - 1))
        x = _activated(F.max_pool1d(x, kernel_size=3))  # (N, conv2_dim, length)
        length = min(reach + 1, CONV3_LENGTH)
        return _activated(self.conv3(_repeat_last(x, length + KERNEL_WIDTH - 1)))

    def _gathered_conv1(self, codes: Tensor) -> Tensor:
        """conv1 of the one-hot matrix of (N, L) ids as a sum of 4 table rows: (N, L - 3, conv1_dim)."""
        taps = F.pad(self.conv1.weight.permute(2, 1, 0), (0, 0, 1, 0))  # (4, 71, conv1_dim); id 0 gathers zeros
        first_rows = torch.arange(KERNEL_WIDTH, device=codes.device) * taps.shape[1]
        rows = codes.unfold(1, KERNEL_WIDTH, 1) + first_rows  # (N, L - 3, 4)
        summed = F.embedding_bag(rows.reshape(-1, KERNEL_WIDTH), taps.flatten(0, 1), mode="sum")
        bias = self.conv1.bias
        assert bias is not None
        return (summed + bias).unflatten(0, rows.shape[:2])


class GatedRnn(nn.Module):
    """The published GRU: the reset gate acts before the recurrent Linear, all Linears have biases, step 1 has no gates.

        h_1 = tanh(W x_1)
        h_t = z * tanh(W x_t + U (r * h)) + (1 - z) * h,   z, r = sigmoid(V x_t + S h),   h = h_{t-1}

    torch.nn.GRU resets after the recurrent Linear, so it cannot hold these weights. Linears of one input are stacked.
    """

    def __init__(self, hidden_dim: int, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.input_terms = nn.Linear(hidden_dim, 3 * hidden_dim)  # update gate, reset gate, candidate
        self.recurrent_gates = nn.Linear(hidden_dim, 2 * hidden_dim)  # update gate, reset gate
        self.recurrent_candidate = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mean state over `num_steps` steps of (N, L, hidden_dim); the last position is repeated if L < num_steps."""
        hidden_dim = x.shape[2]
        gate_terms, candidate_terms = (
            terms.unbind(dim=1) for terms in self.input_terms(x).split((2 * hidden_dim, hidden_dim), dim=2)
        )
        states = [torch.tanh(candidate_terms[0])]
        for step in range(1, self.num_steps):
            h, at = states[-1], min(step, x.shape[1] - 1)
            update, reset = torch.sigmoid(gate_terms[at] + self.recurrent_gates(h)).chunk(2, dim=1)
            candidate = torch.tanh(candidate_terms[at] + self.recurrent_candidate(reset * h))
            states.append(h + update * (candidate - h))
        return torch.stack(states).mean(dim=0)


class ReluRnn(nn.Module):
    """The published plain recurrent network: h_1 = relu(W x_1), h_t = relu(W x_t + U h_{t-1}), both with bias."""

    def __init__(self, hidden_dim: int, num_steps: int) -> None:
        super().__init__()
        self.num_steps = num_steps
        self.input_terms = nn.Linear(hidden_dim, hidden_dim)
        self.recurrent_terms = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Mean state over `num_steps` steps of (N, num_steps, hidden_dim)."""
        terms = self.input_terms(x).unbind(dim=1)
        states = [torch.relu(terms[0])]
        for step in range(1, self.num_steps):
            states.append(torch.relu(terms[step] + self.recurrent_terms(states[-1])))
        return torch.stack(states).mean(dim=0)


def joint_embedding_loss(image_features: Tensor, text_features: Tensor) -> Tensor:
    """Symmetric structured joint embedding loss (Reed et al., CVPR 2016; both directions, as in their code).

    With s_ij = <image_i, text_j>:  1 / B^2 * sum over i, j != i of max(0, 1 + s_ij - s_ii) + max(0, 1 + s_ji - s_ii).

    Args:
        image_features: (B, D), one image a class.
        text_features: (B, D), row i describes the class of image i; no two rows share a class.

    Returns:
        Scalar, >= 0.
    """
    scores = image_features @ text_features.T
    matched = scores.diagonal()
    penalties = (1 + scores - matched[:, None]).clamp_min(0) + (1 + scores - matched[None, :]).clamp_min(0)
    itself = torch.eye(len(scores), dtype=torch.bool, device=scores.device)
    return penalties.masked_fill(itself, 0).sum() / len(scores) ** 2


def _pooled_reach(reach: int, full_length: int) -> tuple[int, int]:
    """Positions behind a convolution and a pooling by 3 that saw a character, and positions to compute: one more."""
    reach = min(math.ceil(reach / 3), full_length)
    return reach, min(reach + 1, full_length)


def _repeat_last(x: Tensor, length: int) -> Tensor:
    """Lengthen (N, C, L) to `length` positions, all new ones copies of the last."""
    return F.pad(x, (0, length - x.shape[2]), mode="replicate")


def _activated(x: Tensor) -> Tensor:
    return F.threshold(x, _ACTIVATION_THRESHOLD, 0.0)
