"""Char-CNN-RNN text encoder and its joint embedding loss (Reed et al., CVPR 2016 and ICML 2016).

A caption is 201 characters of a 70-symbol alphabet. Three temporal convolutions shorten it 201 -> 66 -> 21 -> 18, a
recurrent network reads what is left, the mean of its states goes through one Linear. Two published forms: `gru` (CUB,
18 steps) and `relu` (Oxford-102, one more max pooling, 8 steps).

Two things are done differently from a plain one-hot implementation, both equal in value:
- the first convolution adds up gathered kernel taps; nothing is multiplied by the zeros of a one-hot matrix;
- what a layer gives at a position depends on the window of characters that reaches it alone (6, 21 and 48 of them), and
  captions share many windows, the padding among them: each distinct one is computed once for all captions of a call.
"""

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
READS_AT_MOST = f"{MAX_CHARS} characters"  # of a caption

KERNEL_WIDTH, POOL_WIDTH = 4, 3
POOLED_WIDTH = POOL_WIDTH + KERNEL_WIDTH - 1  # a position behind convolution and pooling sees as many before them
CONV3_LENGTH = 18  # positions behind the third convolution; 66 and 21 behind the others and their poolings
NUM_RNN_STEPS: dict[Rnn, int] = {"gru": CONV3_LENGTH, "relu": 8}

_ACTIVATION_THRESHOLD = 1e-6  # the published activation passes x where x > 1e-6
_INITIAL_RANGE = 0.08
_ROWS_A_PASS = 256  # captions that the GRU reads together: their states stay in a processor's cache


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


def num_cut(captions: Sequence[str]) -> int:
    """Count the captions that `character_codes` cuts; folded, a dotted capital I is two characters."""
    return sum(len(caption.lower()) > MAX_CHARS for caption in captions)


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
        self.rnn = GatedRnn(hidden_dim) if rnn == "gru" else ReluRnn(hidden_dim)
        self.project = nn.Linear(hidden_dim, embedding_dim)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw every weight and bias from uniform(-0.08, 0.08), as published."""
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.uniform_(-_INITIAL_RANGE, _INITIAL_RANGE, generator=generator)

    def forward(self, codes: Tensor) -> Tensor:
        """Embed captions: (N, 201) int64 ids in [0, 70] -> (N, embedding_dim)."""
        x, places = self.convolve(codes)
        return self.project(self.rnn(x, places))

    def convolve(self, codes: Tensor) -> tuple[Tensor, Tensor]:
        """The three convolutions of every distinct window of characters.

        Args:
            codes: (N, 201) int64 ids in [0, 70].

        Returns:
            (U, hidden_dim) what they give for each of U windows, and (N, 18) int64 which of those stands at a position.
        """
        characters, places = _distinct_windows(codes, POOLED_WIDTH, stride=POOL_WIDTH)  # (U1, 6), (N, 66)
        taps = F.pad(self.conv1.weight.permute(1, 2, 0), (0, 0, 0, 0, 1, 0))  # (71, 4, conv1_dim), id 0 adds nothing
        x = _sums_of_taps(taps.flatten(0, 1), characters.unfold(1, KERNEL_WIDTH, 1))  # (U1, 3, conv1_dim)
        x = _activated(x.amax(dim=1), self.conv1)  # max pooling first: the threshold only ever rises
        windows, places = _distinct_windows(places, POOLED_WIDTH, stride=POOL_WIDTH)  # (U2, 6), (N, 21)
        x = _sums_of_taps(_taps_of(x, self.conv2), windows.unfold(1, KERNEL_WIDTH, 1))  # (U2, 3, conv2_dim)
        x = _activated(x.amax(dim=1), self.conv2)
        windows, places = _distinct_windows(places, KERNEL_WIDTH, stride=1)  # (U3, 4), (N, 18)
        return _activated(_sums_of_taps(_taps_of(x, self.conv3), windows), self.conv3), places


class GatedRnn(nn.Module):
    """The published GRU: the reset gate acts before the recurrent Linear, all Linears have biases, step 1 has no gates.

        h_1 = tanh(W x_1)
        h_t = z * tanh(W x_t + U (r * h)) + (1 - z) * h,   z, r = sigmoid(V x_t + S h),   h = h_{t-1}

    torch.nn.GRU resets after the recurrent Linear, so it cannot hold these weights. Linears of one input are stacked.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.input_terms = nn.Linear(hidden_dim, 3 * hidden_dim)  # update gate, reset gate, candidate
        self.recurrent_gates = nn.Linear(hidden_dim, 2 * hidden_dim)  # update gate, reset gate
        self.recurrent_candidate = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        """Mean state: (U, hidden_dim) distinct inputs, (N, T) int64 rows of them, one a step -> (N, hidden_dim)."""
        sizes = (2 * self.hidden_dim, self.hidden_dim)
        (gate_weight, weight), (gate_bias, bias) = (
            parameter.split(sizes) for parameter in (self.input_terms.weight, self.input_terms.bias)
        )
        gate_terms = F.linear(x, gate_weight, gate_bias + self.recurrent_gates.bias)
        first_terms = F.linear(x, weight, bias)
        candidate_terms = first_terms + self.recurrent_candidate.bias.to(first_terms.dtype)
        first = torch.tanh(first_terms)
        means = [self._mean_state(first, gate_terms, candidate_terms, rows) for rows in places.split(_ROWS_A_PASS)]
        return torch.cat(means)

    def _mean_state(self, first: Tensor, gate_terms: Tensor, candidate_terms: Tensor, places: Tensor) -> Tensor:
        """As forward, from what an input gives as the first, (U, hidden_dim), and adds to gates and candidate later."""
        gate_weight, candidate_weight = (
            linear.weight.T.to(first.dtype) for linear in (self.recurrent_gates, self.recurrent_candidate)
        )
        steps = places.T.contiguous()
        h = total = first.index_select(0, steps[0])
        for at in steps[1:]:
            # In place on what was just gathered: a tenth of the time of a pass.
            gates = gate_terms.index_select(0, at).addmm_(h, gate_weight).sigmoid_()
            update, reset = gates.chunk(2, dim=1)
            candidate = candidate_terms.index_select(0, at).addmm_(reset * h, candidate_weight).tanh_()
            h = torch.lerp(h, candidate, update)
            total = total + h
        return total / len(steps)


class ReluRnn(nn.Module):
    """The published plain recurrent network: h_1 = relu(W x_1), h_t = relu(W x_t + U h_{t-1}), both with bias.

    Before it, in this form, stands one more max pooling: 3 positions wide, 2 apart.
    """

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.input_terms = nn.Linear(hidden_dim, hidden_dim)
        self.recurrent_terms = nn.Linear(hidden_dim, hidden_dim)

    def forward(self, x: Tensor, places: Tensor) -> Tensor:
        """Mean state: (U, hidden_dim) distinct features, (N, 18) int64 rows of them -> (N, hidden_dim), of 8 steps."""
        windows, places = _distinct_windows(places, POOL_WIDTH, stride=2)
        terms = self.input_terms(x[windows].amax(dim=1))
        h = total = torch.relu(terms[places[:, 0]])
        for at in places.T[1:]:
            h = torch.relu(terms[at] + self.recurrent_terms(h))
            total = total + h
        return total / places.shape[1]


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


def _distinct_windows(ids: Tensor, width: int, *, stride: int) -> tuple[Tensor, Tensor]:
    """Find the distinct windows over rows of ids.

    Args:
        ids: (N, L) int64, 0 or more.
        width: ids in a window.
        stride: from a window to the next.

    Returns:
        (U, width) int64 the distinct windows, and (N, (L - width) // stride + 1) int64 which of them stands where.
    """
    rows = ids.unfold(1, width, stride)  # (N, num_places, width)
    num_ids = int(ids.max()) + 1 if len(ids) else 1
    keys, num_keys = rows[..., 0], num_ids  # a window's ids are the digits of its key
    for digit in rows[..., 1:].unbind(dim=2):
        if num_keys * num_ids >= 2**63:  # no room for the next digit: number the keys anew
            found, keys = torch.unique(keys, return_inverse=True)
            num_keys = len(found)
        keys, num_keys = keys * num_ids + digit, num_keys * num_ids
    found, places = torch.unique(keys, return_inverse=True)
    every_place = torch.arange(places.numel(), device=ids.device)
    a_place = torch.empty_like(found).scatter_(0, places.flatten(), every_place)  # of each window, one of those
    return rows.flatten(0, 1)[a_place], places


def _taps_of(x: Tensor, conv: nn.Conv1d) -> Tensor:
    """The products of a convolution, each on its own: (U, in) distinct inputs -> (U * 4, out), row 4 u + k of tap k."""
    return (x @ conv.weight.permute(1, 2, 0).flatten(1)).view(-1, conv.out_channels)


def _sums_of_taps(taps: Tensor, windows: Tensor) -> Tensor:
    """(U * 4, C) taps and (..., 4) int64 inputs in [0, U), which the four taps act on -> (..., C), their sums."""
    rows = windows * KERNEL_WIDTH + torch.arange(KERNEL_WIDTH, device=windows.device)
    return F.embedding_bag(rows.flatten(0, -2), taps, mode="sum").unflatten(0, windows.shape[:-1])


def _activated(x: Tensor, conv: nn.Conv1d) -> Tensor:
    bias = conv.bias
    assert bias is not None
    return F.threshold(x + bias, _ACTIVATION_THRESHOLD, 0.0)
