"""Pictures a second that are scored, Inception score and FID: evaluate_inception's work against torch-fidelity's.

`torch-fidelity`  calculate_metrics on folders of PNG files, as it is used, with our network as its feature extractor
`ours`            the tasks of evaluate_inception on shards, then the same scores

Both run the same Inception-v3 of 50 classes on the same pictures of 256x256 pixels, in one process on the same cores.
Weights are random, but large enough that classes differ. `--num-images` sets how many pictures are scored.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch_fidelity
from PIL import Image
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from benchmarks.measure import best_rate, tell
from pipeline.data.shards import Images, shard_path, write_shard
from pipeline.data.snapshots import load_snapshot, save_snapshot
from pipeline.evaluation.classifier import SNAPSHOT, new_network, resized, without_auxiliary_head
from pipeline.evaluation.fidelity import KID_SUBSET_SIZE, fidelity
from pipeline.evaluation.inception_score import inception_score
from pipeline.evaluation.judging import Judges
from pipeline.evaluation.pictures import PictureSet, ShardPart
from pipeline.text.image_encoders import ImageEncoder, network_input, save_image_encoder

NUM_CLASSES, NUM_SPLITS, SEED, BATCH_SIZE = 50, 10, 2020, 64
SETS = ("generated", "real")


class OurNetwork(FeatureExtractorBase):
    """The classifier, as torch-fidelity wants it, which makes it itself."""

    classifier_dir: Path

    def __init__(self, name: str, features_list: list[str], **_: Any):
        super().__init__(name, features_list)
        snapshot = load_snapshot(self.classifier_dir, SNAPSHOT)
        self.network = without_auxiliary_head(new_network("inception_v3", NUM_CLASSES, seed=0))
        self.network.load_state_dict(snapshot.state)
        self._seen: list[Tensor] = []
        fc = self.network.get_submodule("fc")
        fc.register_forward_pre_hook(lambda _, inputs: self._seen.append(inputs[0]))

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """Name what there is."""
        return "features", "logits"

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """Name what a metric takes."""
        return "logits" if metric == "isc" else "features"

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(N, 3, S, S) uint8 -> what was asked for of features and logits."""
        logits = self.network(resized(images.float().div_(127.5).sub_(1), 299))
        found = {"features": self._seen.pop(), "logits": logits}
        return tuple(found[name] for name in self.features_list)


def draw_pictures(count: int, seed: int) -> Images:
    """Return (count, 256, 256, 3) uint8 of coloured blobs, all different."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=256, mode="bicubic").clamp(0, 1)
    noisy = smooth * 235 + torch.rand(smooth.shape, generator=generator) * 20
    return noisy.to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def write_inputs(folder: Path, count: int) -> None:
    """Write the networks, and the pictures both as PNG files and as shards."""
    network = without_auxiliary_head(new_network("inception_v3", NUM_CLASSES, seed=0))
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    # Statistics that keep random layers in range, and logits that differ from picture to picture.
    fc = network.get_submodule("fc")
    seen: list[Tensor] = []
    fc.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    pictures = network_input(draw_pictures(16, seed=2))
    with torch.no_grad():
        network.train()(pictures)
        network.eval()(pictures)
        fc.weight.mul_(100)
        fc.bias.copy_(-fc.weight @ seen[-1].mean(dim=0))
    config = {
        "network": "inception_v3",
        "classes": "test",
        "class_ids": list(range(NUM_CLASSES)),
        "input_size": 299,
        "held_out_accuracy": 0.0,
    }
    save_snapshot(folder / "classifier", SNAPSHOT, network, config)
    image_encoder = ImageEncoder(embedding_dim=8, conv_dims=(4, 8))
    image_encoder.initialise(torch.Generator().manual_seed(0))
    save_image_encoder(folder / "text_encoder", image_encoder)
    for seed, name in enumerate(SETS):
        pictures = draw_pictures(count, seed)
        write_shard(shard_path(folder / name, 0), list(range(count)), {256: pictures})
        (folder / f"{name}_png").mkdir()
        for index, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / f"{name}_png" / f"{index:05d}.png")


def score_theirs(folder: Path, count: int) -> dict[str, float]:
    """Score with torch-fidelity."""
    name = "our-inception"
    OurNetwork.classifier_dir = folder / "classifier"
    torch_fidelity.register_feature_extractor(name, OurNetwork)
    found = torch_fidelity.calculate_metrics(
        **{f"input{number}": str(folder / f"{of}_png") for number, of in enumerate(SETS, start=1)},
        feature_extractor=name, isc=True, fid=True, kid=True, prc=True, isc_splits=NUM_SPLITS, rng_seed=SEED,
        batch_size=BATCH_SIZE, cuda=torch.cuda.is_available(),
        cache=False, verbose=False, kid_subset_size=min(KID_SUBSET_SIZE, count),
    )  # fmt: skip
    return {
        "mean": found["inception_score_mean"],
        "std": found["inception_score_std"],
        "fid": found["frechet_inception_distance"],
        "kid": found["kernel_inception_distance_mean"],
        "precision": found["precision"],
        "recall": found["recall"],
    }


def score_ours(folder: Path, count: int) -> dict[str, float]:
    """Score as evaluate_inception does."""
    judges = Judges(
        classifier_dir=folder / "classifier",
        text_encoder_dir=folder / "text_encoder",
        batch_size=BATCH_SIZE,
        device="cuda" if torch.cuda.is_available() else "cpu",
        map_jobs=lambda work, jobs: [work(job) for job in jobs],
    )
    rows: list[dict[str, Any]] = [{"sample_id": index} for index in range(count)]
    judged = {}
    for name in SETS:
        part = ShardPart(path=shard_path(folder / name, 0), count=count, stored_size=256, image_size=256)
        judged[name] = judges.judge(PictureSet(rows=rows, places=np.arange(count), parts=(part,)))
    generated, real = (judged[name] for name in SETS)
    score = inception_score(torch.from_numpy(generated.log_probabilities), num_splits=NUM_SPLITS, seed=SEED)
    distances = fidelity(torch.from_numpy(generated.features), torch.from_numpy(real.features), seed=SEED)
    return {"mean": score.mean, "std": score.std, **distances._asdict()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-images", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2)
    arguments = parser.parse_args()
    count = arguments.num_images
    scores: dict[str, dict[str, float]] = {}
    rates: dict[str, float] = {"torch-fidelity": 0.0, "ours": 0.0}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_inputs(folder, count)

        def theirs() -> int:
            scores["torch-fidelity"] = score_theirs(folder, count)
            return 2 * count

        def ours() -> int:
            scores["ours"] = score_ours(folder, count)
            return 2 * count

        for _ in range(arguments.repeats):  # in turns
            for who, work in (("torch-fidelity", theirs), ("ours", ours)):
                rates[who] = max(rates[who], best_rate(work, 1))
    difference = max(abs(scores["ours"][key] - scores["torch-fidelity"][key]) for key in scores["ours"])
    ratio = rates["ours"] / rates["torch-fidelity"]
    rows = [
        [
            who,
            f"{rate:.1f}",
            f"{rate / rates['torch-fidelity']:.2f}x",
            *(f"{value:.4f}" for value in scores[who].values()),
        ]
        for who, rate in rates.items()
    ]
    tell(
        f"Scoring {count} pictures of 256x256 against {count} others",
        ["", "images/s", "speed-up", "Inception score", "std", "FID", "KID", "precision", "recall"],
        rows,
        {"speedup_vs_torch_fidelity": ratio, "max_score_difference": difference},
    )


if __name__ == "__main__":
    main()
