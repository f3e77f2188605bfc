"""The paper's Tables 1 and 2 (Zhang et al., ICCV 2017), to print beside our figures; nothing is computed from them."""

from typing import NamedTuple


class PublishedTable(NamedTuple):
    """A table as the page shows it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


TABLE_1 = PublishedTable(
    title="Table 1: Inception score (higher is better) and human rank (1 is best)",
    columns=("metric", "data set", "GAN-INT-CLS", "GAWWN", "StackGAN"),
    rows=(
        ("Inception score", "CUB", "2.88 ± .04", "3.62 ± .07", "3.70 ± .04"),
        ("Inception score", "Oxford-102", "2.66 ± .03", "-", "3.20 ± .01"),
        ("Inception score", "COCO", "7.88 ± .07", "-", "8.45 ± .03"),
        ("human rank", "CUB", "2.81 ± .03", "1.99 ± .04", "1.37 ± .02"),
        ("human rank", "Oxford-102", "1.87 ± .03", "-", "1.13 ± .03"),
        ("human rank", "COCO", "1.89 ± .04", "-", "1.11 ± .03"),
    ),
)

TABLE_2 = PublishedTable(
    title="Table 2: Inception score on CUB; CA is conditioning augmentation, text once leaves Stage-II without it",
    columns=("system", "pixels", "Inception score"),
    rows=(
        ("Stage-I, no CA", "64", "2.66 ± .03"),
        ("Stage-I, CA", "64", "2.95 ± .02"),
        ("Stage-I, no CA", "256", "2.48 ± .00"),
        ("Stage-I, CA", "256", "3.02 ± .01"),
        ("StackGAN, CA, text once", "128", "3.13 ± .03"),
        ("StackGAN, no CA, text twice", "128", "3.20 ± .03"),
        ("StackGAN, CA, text twice", "128", "3.35 ± .02"),
        ("StackGAN, CA, text once", "256", "3.45 ± .02"),
        ("StackGAN, no CA, text twice", "256", "3.31 ± .03"),
        ("StackGAN, CA, text twice", "256", "3.70 ± .04"),
    ),
)

# Data sets of ours that the tables are about.
PUBLISHED_DATASETS = ("cub", "oxford", "coco")
