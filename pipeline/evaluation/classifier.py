"""The classifier behind the scores: a torchvision network of the data set's own classes, frozen in a snapshot.

Published Inception scores on birds rest on an Inception-v3 fine-tuned on the 50 test classes that can no longer be had.
Here it is trained inside the DAG (see classifier_training), and every score names its hash and its accuracy.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import Inception3, Inception_V3_Weights, resnet18
from torchvision.models.inception import BasicConv2d

from pipeline.data.shards import LOAD_SIZES, Images
from pipeline.data.snapshots import load_snapshot

NetworkName = Literal["inception_v3", "resnet18"]
Classes = Literal["train", "test", "all", "imagenet"]  # of which splits; imagenet: none of the data set's

SNAPSHOT = "classifier"
IMAGENET_CLASSES = 1000


class Geometry(NamedTuple):
    """What a network is shown, in pixels."""

    crop_size: int  # what the GANs see of a stored picture
    input_size: int  # what the crop is resized to

    @property
    def load_size(self) -> int:
        """Return the side of the stored pictures that it is trained from."""
        return LOAD_SIZES[self.crop_size]


GEOMETRIES: dict[NetworkName, Geometry] = {
    "inception_v3": Geometry(crop_size=256, input_size=299),
    "resnet18": Geometry(crop_size=64, input_size=64),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Classifier:
    """A frozen classifier: how likely it finds each of `class_ids`, in their order."""

    network: nn.Module
    network_name: NetworkName
    classes: Classes
    class_ids: tuple[int, ...]  # empty where it knows ImageNet's classes
    input_size: int
    held_out_accuracy: float | None  # None where it knows ImageNet's classes
    sha256: str

    @property
    def num_classes(self) -> int:
        """Return the number of classes that it tells apart."""
        return self._last_layer.out_features

    @property
    def crop_size(self) -> int:
        """Return the side of the pictures that it was trained on, in pixels."""
        return GEOMETRIES[self.network_name].crop_size

    @property
    def feature_dim(self) -> int:
        """Return the number of features before the last layer."""
        return self._last_layer.in_features

    @property
    def _last_layer(self) -> nn.Linear:
        layer = self.network.get_submodule("fc")
        assert isinstance(layer, nn.Linear)
        return layer

    def features(self, images: Images, batch_size: int) -> Tensor:
        """Return what the last layer sees of (N, S, S, 3) uint8 pictures: (N, feature_dim) float32 on the CPU."""
        return self.judge(images, batch_size).features

    def log_probabilities(self, images: Images, batch_size: int) -> Tensor:
        """Return (N, num_classes) float64 log p(y|x) on the CPU."""
        return self.judge(images, batch_size).log_probabilities

    def judge(self, images: Images, batch_size: int) -> "Judgement":
        """Classify pictures, resized to the input size by antialiased bilinear interpolation, in float32.

        Args:
            images: (N, S, S, 3) uint8 of any S, memory-mapped or not.
            batch_size: pictures a forward pass; the result depends on it by float32 rounding only.

        Returns:
            What it says of them and sees in them, in one pass.
        """
        parts: list[Tensor] = []
        with self._last_layer.register_forward_pre_hook(lambda _, inputs: parts.append(inputs[0].float().cpu())):
            log_p = log_probabilities(self.network, images, input_size=self.input_size, batch_size=batch_size)
        return Judgement(log_p, torch.cat(parts))


class Judgement(NamedTuple):
    """What a classifier makes of N pictures, on the CPU."""

    log_probabilities: Tensor  # (N, num_classes) float64
    features: Tensor  # (N, feature_dim) float32, of the layer before the last


def log_probabilities(network: nn.Module, images: Images, *, input_size: int, batch_size: int) -> Tensor:
    """Classify (N, S, S, 3) uint8 pictures with a network in evaluation mode: (N, num_classes) float64 on the CPU."""
    assert not network.training and len(images), len(images)
    device = next(network.parameters()).device
    parts: list[Tensor] = []
    with torch.inference_mode():
        for start in range(0, len(images), batch_size):
            # Copied, for torch warns of arrays that cannot be written to, as a map cannot.
            pixels = torch.from_numpy(images[start : start + batch_size].copy()).to(device)
            x = pixels.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)
            parts.append(torch.log_softmax(network(resized(x, input_size)).double(), dim=1).cpu())
    return torch.cat(parts)


def resized(images: Tensor, size: int) -> Tensor:
    """Resize (N, 3, S, S) float to (N, 3, size, size): bilinear, antialiased where it shrinks, as Pillow does it."""
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)


def load_classifier(folder: Path, device: str = "cpu") -> Classifier:
    """Read the classifier that `train_classifier` wrote.

    Raises:
        ValueError: the snapshot is missing or altered.
    """
    snapshot = load_snapshot(folder, SNAPSHOT)
    config = snapshot.config
    num_classes = len(config["class_ids"]) or IMAGENET_CLASSES
    network = without_auxiliary_head(new_network(config["network"], num_classes, seed=0))
    network.load_state_dict(snapshot.state)
    _fuse_batchnorm(network.eval())
    return Classifier(
        network=network.to(device).to(memory_format=torch.channels_last).requires_grad_(False),
        network_name=config["network"],
        classes=config["classes"],
        class_ids=tuple(config["class_ids"]),
        input_size=config["input_size"],
        held_out_accuracy=config["held_out_accuracy"],
        sha256=snapshot.sha256,
    )


def _fuse_batchnorm(network: nn.Module) -> None:
    """Fold Inception-v3's BatchNorms into the convolutions before them: the same function in fewer passes."""
    for block in network.modules():
        if isinstance(block, BasicConv2d):
            block.conv = fuse_conv_bn_eval(block.conv, block.bn)
            block.add_module("bn", nn.Identity())


def new_network(name: NetworkName, num_classes: int, seed: int) -> nn.Module:
    """Return torchvision's network with its own random weights; torch's global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if name == "inception_v3":
            return Inception3(num_classes=num_classes, aux_logits=True, init_weights=True)
        return resnet18(num_classes=num_classes)


def pretrained_network(name: NetworkName, weights: str, num_classes: int, seed: int) -> nn.Module:
    """Return a network for `num_classes` with given weights in all but its last layers.

    Args:
        name: of the network.
        weights: `none`, `imagenet` or the path of a .safetensors file of torchvision's state_dict.
        num_classes: the last layers are new, for these.
        seed: of what is new.

    Raises:
        ValueError: the weights cannot be had or are another network's.
    """
    network = new_network(name, num_classes, seed)
    if weights == "none":
        return network
    if name != "inception_v3":
        raise ValueError(f"train_classifier.weights is {weights!r}; {name} is trained from scratch: set it to none")
    _load_weights(network, weights, without=("fc.", "AuxLogits.fc."))
    return network


def imagenet_network(name: NetworkName, weights: str) -> nn.Module:
    """Return the network with all of given weights, so that it names ImageNet's classes.

    Raises:
        ValueError: the network has no such weights, or they cannot be had or are another network's.
    """
    if name != "inception_v3" or weights == "none":
        raise ValueError(
            f"train_classifier.classes is imagenet, with network {name} and weights {weights!r}: set network to "
            "inception_v3, and weights to imagenet or to the path of a .safetensors file"
        )
    network = new_network(name, IMAGENET_CLASSES, seed=0)
    _load_weights(network, weights, without=())
    return network


def _load_weights(network: nn.Module, weights: str, without: tuple[str, ...]) -> None:
    """Load `imagenet` or a file into Inception-v3, but for what begins with one of `without`."""
    state = _imagenet_state() if weights == "imagenet" else _state_of(Path(weights))
    kept = {key: value for key, value in state.items() if not key.startswith(without)}
    try:
        missing, unexpected = network.load_state_dict(kept, strict=False)
    except RuntimeError as error:
        raise ValueError(f"train_classifier.weights {weights}: {str(error).splitlines()[-1].strip()}") from None
    # Files written before BatchNorm counted its batches lack the counts, which nothing here reads.
    lost = [key for key in missing if not key.endswith(".num_batches_tracked") and not key.startswith(without)]
    if lost or unexpected:
        raise ValueError(
            f"train_classifier.weights {weights}: not torchvision's inception_v3: {len(lost)} weights are missing and "
            f"{len(unexpected)} unknown ({[*lost, *unexpected][0]}); save the state_dict of torchvision's inception_v3"
        )


def without_auxiliary_head(network: nn.Module) -> nn.Module:
    """Drop Inception-v3's auxiliary classifier, which only trains."""
    if isinstance(network, Inception3):
        network.AuxLogits, network.aux_logits = None, False
    return network


def _imagenet_state() -> Mapping[str, Tensor]:
    try:
        return Inception_V3_Weights.IMAGENET1K_V1.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # no network or room, another hash, a torn file: each library has its own error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"train_classifier.weights is imagenet, but torchvision cannot load it ({reason}); save its state_dict "
            "as a .safetensors file elsewhere and set weights to its path, or set weights to none to train from scratch"
        ) from None


def _state_of(path: Path) -> Mapping[str, Tensor]:
    if path.suffix != ".safetensors":
        raise ValueError(f"train_classifier.weights is {str(path)!r}; it must be none, imagenet or a .safetensors file")
    if not path.is_file():
        raise ValueError(f"train_classifier.weights: {path} is missing; bring the file, or set weights to none")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"train_classifier.weights: {path} is not a safetensors file: {error}") from None
