"""benchmarks/: every one says what it measures, and the baselines compute what ours does."""

import importlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.embed import OneHotCharCnnRnn, demo_captions, embed_one_hot, embed_ours, one_hot
from benchmarks.measure import best_rate, tell
from pipeline.text.char_cnn_rnn import CharCnnRnn, character_codes
from pipeline.text.encoders import load_text_encoder, save_text_encoder

NAMES = sorted(path.stem for path in (Path(__file__).parent.parent / "benchmarks").glob("*.py"))
CAPTIONS = [*demo_captions(30), "x", "A Bird with caf\u00e9 colours - and more! " * 8, "x"]


@pytest.mark.parametrize("name", sorted({*NAMES} - {"__init__", "measure"}))
def test_a_benchmark_says_what_it_measures_and_has_a_main(name: str) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    assert module.__doc__ and "against" in module.__doc__
    assert callable(module.main)


def test_one_hot_rows_are_the_codes() -> None:
    x = one_hot(CAPTIONS)
    assert x.dtype == torch.float32 and x.shape == (33, 70, 201)
    codes = torch.cat([1 - x.sum(dim=1, keepdim=True), x], dim=1).argmax(dim=1)
    assert torch.equal(codes, character_codes(CAPTIONS))


@pytest.mark.parametrize("batch_size", [7, 64])
def test_the_one_hot_baseline_embeds_as_ours_does(batch_size: int, tmp_path: Path) -> None:
    network = CharCnnRnn(conv_dims=(24, 20, 16), embedding_dim=12)
    network.initialise(torch.Generator().manual_seed(0))
    save_text_encoder(tmp_path, network)
    ours = embed_ours(tmp_path, load_text_encoder(tmp_path).sha256, CAPTIONS, batch_size)
    plain = embed_one_hot(OneHotCharCnnRnn(network), CAPTIONS, 10)
    assert np.abs(plain).max() > 0.01
    np.testing.assert_allclose(ours, plain, rtol=0, atol=1e-5)


def test_demo_captions_are_the_same_each_time_and_as_many_as_asked_for() -> None:
    assert demo_captions(25) == demo_captions(40)[:25]
    assert len(set(demo_captions(40))) > 35


def test_the_rate_is_the_best_of_the_measurements() -> None:
    counts = iter([1, 10**9, 1])
    assert best_rate(lambda: next(counts), 3) > 10**6


def test_the_last_line_is_json_that_keeps_small_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    tell("Title", ["", "a second"], [["ours", "7"]], {"speedup": 4.56789, "max_abs_difference": 4.768e-7})
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"speedup": 4.568, "max_abs_difference": 4.768e-7}
