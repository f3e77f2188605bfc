"""Captions a second on one core: embed_captions' jobs against a plain one-hot char-CNN-RNN with the same weights.

`one-hot`  as the paper's network is usually written: dense one-hot characters (N, 70, 201), three nn.Conv1d over every
           position, a Linear for each gate of the GRU, 18 steps, a batch after the other
`ours`     the work of embed_captions' tasks: distinct windows of characters, batches of the same size, equal captions
           once

Both embed the same captions, from strings to float32 numbers on one thread, which is what a Ray task has. Widths are
the published ones, weights random. `at its best` is one-hot at the batch size at which it is fastest.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.measure import best_rate, real_cub, tell
from pipeline.data.demo_captions import ACTIVITY_SCENES, COLOURS, SHAPES, Plumage, View, write_captions
from pipeline.text.char_cnn_rnn import ALPHABET, MAX_CHARS, CharCnnRnn, GatedRnn
from pipeline.text.embedding import Vectors, embed_job, plan_jobs
from pipeline.text.encoders import load_text_encoder, save_text_encoder

BATCH_SIZE = 512
SMALL_BATCH_SIZES = (64, 128)
NUM_CAPTIONS = 1024
REPEATS = 5


class OneHotCharCnnRnn(nn.Module):
    """The network as published, with the weights of ours."""

    def __init__(self, network: CharCnnRnn):
        super().__init__()
        assert isinstance(network.rnn, GatedRnn)
        self.conv1, self.conv2, self.conv3 = network.conv1, network.conv2, network.conv3
        self.update_x, self.reset_x, self.candidate_x = linears(network.rnn.input_terms, 3)
        self.update_h, self.reset_h = linears(network.rnn.recurrent_gates, 2)
        self.candidate_h, self.project = network.rnn.recurrent_candidate, network.project

    def forward(self, x: Tensor) -> Tensor:
        """(N, 70, 201) float32 of 0 and 1 -> (N, embedding_dim)."""
        x = F.max_pool1d(F.threshold(self.conv1(x), 1e-6, 0.0), 3)
        x = F.max_pool1d(F.threshold(self.conv2(x), 1e-6, 0.0), 3)
        x = F.threshold(self.conv3(x), 1e-6, 0.0).permute(2, 0, 1).contiguous()  # (18, N, hidden_dim)
        h = total = torch.tanh(self.candidate_x(x[0]))
        for at in x[1:]:
            update = torch.sigmoid(self.update_x(at) + self.update_h(h))
            reset = torch.sigmoid(self.reset_x(at) + self.reset_h(h))
            candidate = torch.tanh(self.candidate_x(at) + self.candidate_h(reset * h))
            h = update * candidate + (1 - update) * h
            total = total + h
        return self.project(total / len(x))


def linears(stacked: nn.Linear, count: int) -> Iterator[nn.Linear]:
    """Take a Linear apart into `count` that each give a part of its outputs."""
    for weight, bias in zip(stacked.weight.chunk(count), stacked.bias.chunk(count), strict=True):
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.load_state_dict({"weight": weight, "bias": bias})
        yield linear


def one_hot(captions: list[str]) -> Tensor:
    """Return (N, 70, 201) float32, a 1 for each character of the alphabet."""
    place = {symbol: number for number, symbol in enumerate(ALPHABET)}
    unknown = len(ALPHABET)
    codes = np.full((len(captions), MAX_CHARS), unknown)
    for row, caption in zip(codes, captions, strict=True):
        found = [place.get(symbol, unknown) for symbol in caption.lower()[:MAX_CHARS]]
        row[: len(found)] = found
    return F.one_hot(torch.from_numpy(codes), unknown + 1)[..., :unknown].float().transpose(1, 2)


def embed_one_hot(network: OneHotCharCnnRnn, captions: list[str], batch_size: int) -> Vectors:
    """Embed a batch after the other."""
    with torch.inference_mode():
        starts = range(0, len(captions), batch_size)
        return torch.cat([network(one_hot(captions[start : start + batch_size])) for start in starts]).numpy()


def embed_ours(encoder_dir: Path, sha256: str, captions: list[str], batch_size: int) -> Vectors:
    """Embed as embed_captions does on one worker."""
    jobs = plan_jobs(captions, encoder_dir, sha256, batch_size=batch_size, device="cpu")
    return np.concatenate([embed_job(job) for job in jobs])


def some_captions(count: int) -> tuple[str, list[str]]:
    """Return what they are, and captions of real birds, or of the demo's where there are none here."""
    try:
        paths = sorted((real_cub() / "text_c10").rglob("*.txt"))
    except SystemExit:
        return "the demo's", demo_captions(count)
    lines = [line.strip() for path in paths for line in path.read_text(encoding="utf-8").split("\n")]
    return "real", [line for line in lines if line][:count]


def demo_captions(count: int) -> list[str]:
    """Return captions of made-up birds, ten each."""
    rng = np.random.default_rng(0)
    captions: list[str] = []
    while len(captions) < count:
        shape = SHAPES[rng.integers(len(SHAPES))]
        body, wing, belly, cap, beak, leg = (str(name) for name in rng.choice(list(COLOURS), 6, replace=False))
        activity = shape.activities[rng.integers(len(shape.activities))]
        plumage = Plumage(
            shape=shape, body=body, wing=wing, belly=belly, cap=cap, cap_part="crown", beak=beak, leg=leg,
            wing_bars=bool(rng.integers(2)),
        )  # fmt: skip
        view = View(
            activity=activity, scene=ACTIVITY_SCENES[activity][0], facing="left", tilt=0, beak_pitch=0, wing_lift=0,
            width=500, height=400, area_share=0.3,
        )  # fmt: skip
        captions += write_captions(plumage, view, 10, rng)
    return captions[:count]


def rates_of(works: dict[str, Callable[[], Vectors]]) -> dict[str, float]:
    """Return the captions a second of each, the best of REPEATS; they take turns, so that all meet the same load."""
    rates = dict.fromkeys(works, 0.0)
    for _ in range(REPEATS):
        for name, work in works.items():
            rates[name] = max(rates[name], best_rate(lambda work=work: len(work()), 1))
    return rates


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    kind, captions = some_captions(NUM_CAPTIONS)
    network = CharCnnRnn()
    network.initialise(torch.Generator().manual_seed(0))
    plain = OneHotCharCnnRnn(network.requires_grad_(False))
    with tempfile.TemporaryDirectory() as name:
        encoder_dir = Path(name)
        save_text_encoder(encoder_dir, network)
        sha256 = load_text_encoder(encoder_dir).sha256
        theirs, found = (
            embed_one_hot(plain, captions, BATCH_SIZE),
            embed_ours(encoder_dir, sha256, captions, BATCH_SIZE),
        )
        works: dict[str, Callable[[], Vectors]] = {
            "ours": lambda: embed_ours(encoder_dir, sha256, captions, BATCH_SIZE)
        }
        for size in (*SMALL_BATCH_SIZES, BATCH_SIZE):
            works[f"one-hot, batches of {size}"] = lambda size=size: embed_one_hot(plain, captions, size)
        rates = rates_of(works)
    same_size = rates[f"one-hot, batches of {BATCH_SIZE}"]
    at_its_best = max(rate for what, rate in rates.items() if what != "ours")
    rows = [[what, f"{rate:,.0f}", f"{rates['ours'] / rate:.2f}x"] for what, rate in rates.items()]
    rows[0][0] = f"ours, batches of {BATCH_SIZE}"
    results = {
        "speedup_vs_one_hot": rates["ours"] / same_size,
        "speedup_vs_one_hot_at_its_best": rates["ours"] / at_its_best,
        "max_abs_difference": float(np.abs(found - theirs).max()),
    }
    title = f"{len(captions)} captions ({kind}, {len(set(captions))} distinct) by the char-CNN-RNN, one thread"
    tell(title, ["", "captions a second", "ours is"], rows, results)


if __name__ == "__main__":
    main()
