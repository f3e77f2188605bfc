"""What a score was computed with: only scores of one protocol may be compared.

The same pictures score quite differently with another classifier, count, shuffle or resizer. So every score names all
of these, and their fingerprint, and whoever compares two scores asks here first.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.data.files import file_sha256

Protocol = Mapping[str, Any]

# The code that scores are computed by; its hash is part of the protocol.
_SCORING_CODE = ("classifier.py", "fidelity.py", "inception_score.py", "judging.py", "scores.py")


def scoring_code_sha256() -> str:
    """Return one hash over the modules that compute scores."""
    folder = Path(__file__).parent
    return hashlib.sha256("".join(file_sha256(folder / name) for name in _SCORING_CODE).encode()).hexdigest()


def fingerprint(protocol: Protocol) -> str:
    """Return 16 hex digits over all of a protocol."""
    return hashlib.sha256(json.dumps(protocol, sort_keys=True).encode()).hexdigest()[:16]


def require_comparable(protocols: Mapping[str, Protocol]) -> None:
    """Check that scores may be put side by side.

    Args:
        protocols: of each score, by a name that its reader knows.

    Raises:
        ValueError: they differ; the message names every field that does, with its values.
    """
    if len({fingerprint(protocol) for protocol in protocols.values()}) < 2:
        return
    keys = dict.fromkeys(key for protocol in protocols.values() for key in protocol)
    differing: list[str] = []
    for key in keys:
        values = {name: json.dumps(protocol.get(key)) for name, protocol in protocols.items()}
        if len(set(values.values())) > 1:
            differing.append(f"{key} ({', '.join(f'{name}: {value}' for name, value in values.items())})")
    raise ValueError(
        f"scores of {', '.join(protocols)} cannot be compared, for they were computed with unlike "
        f"{'; '.join(differing)}: score all of them with the same params, classifier and encoder"
    )
