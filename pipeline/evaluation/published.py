"""The paper's Tables 1 and 2 (Zhang et al., ICCV 2017), to print beside our figures; nothing is computed from them."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple


class PublishedTable(NamedTuple):
    """A table as the page shows it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class System(NamedTuple):
    """A system of the paper."""

    choice: str  # conf/gan/<choice>.yaml
    title: str
    pixels: int
    published: Mapping[str, str] = MappingProxyType({})  # data set -> Inception score
    human_rank: Mapping[str, str] = MappingProxyType({})  # data set -> mean rank


SYSTEMS = (
    System(
        "gan_int_cls",
        "GAN-INT-CLS",
        64,
        {"cub": "2.88 ± .04", "oxford": "2.66 ± .03", "coco": "7.88 ± .07"},
        {"cub": "2.81 ± .03", "oxford": "1.87 ± .03", "coco": "1.89 ± .04"},
    ),
    System("gawwn", "GAWWN", 128, {"cub": "3.62 ± .07"}, {"cub": "1.99 ± .04"}),
    System("gan_256", "plain GAN, more up-sampling", 256),  # the paper's Figure 1 (c), which has no score
    System("stage1_64_no_ca", "Stage-I, no CA", 64, {"cub": "2.66 ± .03"}),
    System("stage1_64", "Stage-I, CA", 64, {"cub": "2.95 ± .02"}),
    System("stage1_256_no_ca", "Stage-I, no CA", 256, {"cub": "2.48 ± .00"}),
    System("stage1_256", "Stage-I, CA", 256, {"cub": "3.02 ± .01"}),
    System("stackgan_128_text_once", "StackGAN, CA, text once", 128, {"cub": "3.13 ± .03"}),
    System("stackgan_128_no_ca", "StackGAN, no CA, text twice", 128, {"cub": "3.20 ± .03"}),
    System("stackgan_128", "StackGAN, CA, text twice", 128, {"cub": "3.35 ± .02"}),
    System("stackgan_256_text_once", "StackGAN, CA, text once", 256, {"cub": "3.45 ± .02"}),
    System("stackgan_256_no_ca", "StackGAN, no CA, text twice", 256, {"cub": "3.31 ± .03"}),
    System(
        "stackgan_256",
        "StackGAN, CA, text twice",
        256,
        {"cub": "3.70 ± .04", "oxford": "3.20 ± .01", "coco": "8.45 ± .03"},
        {"cub": "1.37 ± .02", "oxford": "1.13 ± .03", "coco": "1.11 ± .03"},
    ),
)

TABLE_1_CHOICES = ("gan_int_cls", "gawwn", "gan_256", "stackgan_256")
TABLE_2_CHOICES = tuple(system.choice for system in SYSTEMS if system.choice.startswith("st"))

# What the paper concludes, from its scores or (of gan_256) its Figure 1: the first of each pair is above the second.
ORDERINGS = (
    *(
        ("with conditioning augmentation above without", better, f"{better}_no_ca")
        for better in ("stage1_64", "stage1_256", "stackgan_128", "stackgan_256")
    ),
    ("256x256 above 128x128", "stackgan_256", "stackgan_128"),
    ("128x128 above 64x64", "stackgan_128", "stage1_64"),
    ("text twice above once", "stackgan_128", "stackgan_128_text_once"),
    ("text twice above once", "stackgan_256", "stackgan_256_text_once"),
    ("two stages above one", "stackgan_256", "stage1_256"),
    ("two stages above more up-sampling", "stackgan_256", "gan_256"),
    ("StackGAN above GAWWN", "stackgan_256", "gawwn"),
    ("GAWWN above GAN-INT-CLS", "gawwn", "gan_int_cls"),
)

_DATASET_TITLES = {"cub": "CUB", "oxford": "Oxford-102", "coco": "COCO"}
_TABLE_1_SYSTEMS = ("gan_int_cls", "gawwn", "stackgan_256")
_BY_CHOICE = {system.choice: system for system in SYSTEMS}

TABLE_1 = PublishedTable(
    title="Table 1: Inception score (higher is better) and human rank (1 is best)",
    columns=("metric", "data set", "GAN-INT-CLS", "GAWWN", "StackGAN"),
    rows=tuple(
        (metric, title, *(getattr(_BY_CHOICE[choice], of_system).get(key, "-") for choice in _TABLE_1_SYSTEMS))
        for metric, of_system in (("Inception score", "published"), ("human rank", "human_rank"))
        for key, title in _DATASET_TITLES.items()
    ),
)

TABLE_2 = PublishedTable(
    title="Table 2: Inception score on CUB; CA is conditioning augmentation, text once leaves Stage-II without it",
    columns=("system", "pixels", "Inception score"),
    rows=tuple(
        (_BY_CHOICE[c].title, str(_BY_CHOICE[c].pixels), _BY_CHOICE[c].published["cub"]) for c in TABLE_2_CHOICES
    ),
)

# Data sets of ours that the tables are about.
PUBLISHED_DATASETS = tuple(_DATASET_TITLES)


def published_human_ranks(dataset: str) -> list[tuple[str, str]]:
    """Return the paper's mean ranks on a data set, by system; empty for one that the paper does not have."""
    systems = (_BY_CHOICE[choice] for choice in _TABLE_1_SYSTEMS)
    return [(system.title, system.human_rank[dataset]) for system in systems if dataset in system.human_rank]
