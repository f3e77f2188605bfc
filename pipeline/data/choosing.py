"""Which rows of a table are shown to people: by chance, spread over the classes, and the same for everyone."""

from collections.abc import Sequence

import numpy as np


def chosen_rows(class_ids: Sequence[int], count: int, seed: int) -> list[int]:
    """Draw `count` places without replacement: one of every class, in an order by chance, then a second of each..."""
    order = np.random.default_rng(seed).permutation(len(class_ids)).tolist()
    seen: dict[int, int] = {}
    rounds: list[int] = []
    for place in order:
        rounds.append(seen.get(class_ids[place], 0))
        seen[class_ids[place]] = rounds[-1] + 1
    by_round = sorted(range(len(order)), key=rounds.__getitem__)  # stable
    return [order[position] for position in by_round[:count]]
