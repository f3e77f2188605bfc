"""Snapshots: the same weights and config come back, with stable bytes; anything altered is refused by name."""

import hashlib
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.data.files import file_sha256
from pipeline.data.snapshots import load_snapshot, save_snapshot

CONFIG = {"dim": 3, "widths": [4, 5], "rnn": "gru", "augmented": True}


def network(seed: int = 0) -> nn.Sequential:
    """Make a small network whose weights lie in channels_last order and whose buffers are not the initial ones."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
        module(torch.randn(2, 3, 8, 8))
    return module.to(memory_format=torch.channels_last)


def refusal(folder: Path, path: Path) -> str:
    with pytest.raises(ValueError) as refused:
        load_snapshot(folder, "net")
    message = str(refused.value)
    assert str(path) in message
    return message


def rewrite_manifest(folder: Path, **changes: object) -> None:
    path = folder / "net.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_weights_buffers_and_config_come_back(tmp_path: Path) -> None:
    module = network()
    save_snapshot(tmp_path / "new", "net", module, CONFIG)
    snapshot = load_snapshot(tmp_path / "new", "net")
    assert snapshot.config == CONFIG
    assert snapshot.state.keys() == module.state_dict().keys()
    for key, value in module.state_dict().items():
        assert torch.equal(snapshot.state[key], value) and snapshot.state[key].dtype == value.dtype, key
    assert snapshot.sha256 == hashlib.sha256((tmp_path / "new" / "net.safetensors").read_bytes()).hexdigest()


def test_a_rebuilt_network_gives_identical_output(tmp_path: Path) -> None:
    module = network().eval()
    save_snapshot(tmp_path, "net", module, CONFIG)
    rebuilt = network(seed=1).eval()
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert not torch.equal(rebuilt(x), module(x))
    rebuilt.load_state_dict(load_snapshot(tmp_path, "net").state)
    assert torch.equal(rebuilt(x), module(x))


def test_loaded_weights_are_independent_of_the_file(tmp_path: Path) -> None:
    save_snapshot(tmp_path, "net", network(), CONFIG)
    first = load_snapshot(tmp_path, "net").state
    for value in first.values():
        value.zero_()
    assert torch.equal(load_snapshot(tmp_path, "net").state["0.weight"], network().state_dict()["0.weight"])


def test_saving_again_writes_the_same_bytes(tmp_path: Path) -> None:
    save_snapshot(tmp_path / "one", "net", network(), CONFIG)
    save_snapshot(tmp_path / "two", "net", network(), dict(reversed(CONFIG.items())))
    for name in ("net.safetensors", "net.json"):
        assert file_sha256(tmp_path / "one" / name) == file_sha256(tmp_path / "two" / name)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["net.json", "net.safetensors"]


def test_two_snapshots_share_a_folder(tmp_path: Path) -> None:
    save_snapshot(tmp_path, "generator", network(0), {"dim": 1})
    save_snapshot(tmp_path, "discriminator", network(1), {"dim": 2})
    assert load_snapshot(tmp_path, "generator").config == {"dim": 1}
    assert load_snapshot(tmp_path, "discriminator").config == {"dim": 2}


@pytest.mark.parametrize("name", ["net.json", "net.safetensors"])
def test_a_missing_file_is_refused_with_the_way_to_make_it(name: str, tmp_path: Path) -> None:
    save_snapshot(tmp_path, "net", network(), CONFIG)
    (tmp_path / name).unlink()
    message = refusal(tmp_path, tmp_path / name)
    assert "is missing" in message and "dvc repro" in message


@pytest.mark.parametrize("contract", ["snapshot/v0", "checkpoint/v1", None])
def test_another_contract_is_refused(contract: str | None, tmp_path: Path) -> None:
    save_snapshot(tmp_path, "net", network(), CONFIG)
    rewrite_manifest(tmp_path, contract=contract)
    message = refusal(tmp_path, tmp_path / "net.json")
    assert f"{contract!r} is not 'snapshot/v1'" in message and "dvc repro" in message


@pytest.mark.parametrize("place", [0, 9, -1])
def test_one_altered_bit_of_the_weights_is_refused(place: int, tmp_path: Path) -> None:
    save_snapshot(tmp_path, "net", network(), CONFIG)
    path = tmp_path / "net.safetensors"
    altered = bytearray(path.read_bytes())
    altered[place] ^= 1
    path.write_bytes(altered)
    assert "sha256" in refusal(tmp_path, path)


def test_torn_weights_are_refused(tmp_path: Path) -> None:
    save_snapshot(tmp_path, "net", network(), CONFIG)
    path = tmp_path / "net.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "dvc repro" in refusal(tmp_path, path)


def test_new_weights_beside_the_config_of_old_ones_are_refused(tmp_path: Path) -> None:
    """A process that died between the two files leaves this."""
    save_snapshot(tmp_path, "net", network(0), CONFIG)
    old_manifest = (tmp_path / "net.json").read_bytes()
    save_snapshot(tmp_path, "net", network(1), CONFIG)
    (tmp_path / "net.json").write_bytes(old_manifest)
    refusal(tmp_path, tmp_path / "net.safetensors")


def test_a_pickle_is_never_loaded_even_with_the_right_hash(tmp_path: Path) -> None:
    save_snapshot(tmp_path, "net", network(), CONFIG)
    path = tmp_path / "net.safetensors"
    path.write_bytes(pickle.dumps(Alarm()))
    rewrite_manifest(tmp_path, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
    assert "is not a safetensors file" in refusal(tmp_path, path)


class Alarm:
    """Raises when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemError('a pickle was loaded')",))


@pytest.mark.parametrize(
    "manifest",
    ["", '{"contract": "snapshot/v1", "sha', "[]", '{"contract": "snapshot/v1"}'],
    ids=["empty", "torn", "list", "no_keys"],
)
def test_a_torn_manifest_is_refused_by_name(manifest: str, tmp_path: Path) -> None:
    save_snapshot(tmp_path, "net", network(), CONFIG)
    (tmp_path / "net.json").write_text(manifest)
    refusal(tmp_path, tmp_path / "net.json")


def test_the_weights_are_as_readable_as_their_manifest(tmp_path: Path) -> None:
    save_snapshot(tmp_path, "net", network(), CONFIG)
    modes = {(tmp_path / name).stat().st_mode for name in ("net.json", "net.safetensors")}
    assert len(modes) == 1
