"""What a job on a cluster hands over: dvc.lock and the reports that git shows, as one line of its log.

Everything else travels through the DVC remote. The line is the one way home that needs nothing but the address that the
job was submitted to.
"""

import base64
import hashlib
import io
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.tracking import read_stage_node

MARK = "stackgan-results:"
LOCK = "dvc.lock"


def stages_of(root: Path) -> list[str]:
    """List the stages of dvc.yaml, in its order."""
    return list(_nodes(root))


def with_upstream(stages: Sequence[str]) -> list[str]:
    """List stages of the working folder's dvc.yaml, and those that write what they read, writers first."""
    needed = set(stages)
    in_order = stages_of(Path())
    for stage in reversed(in_order):  # dvc.yaml names a writer before its readers
        if stage in needed:
            needed |= set(read_stage_node(stage).upstream.values())
    return [stage for stage in in_order if stage in needed]


def _nodes(root: Path) -> dict[str, Any]:
    return yaml.safe_load((root / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def result_paths(root: Path) -> set[str]:
    """List the files that git shows of a finished pipeline: dvc.lock, and what dvc.yaml does not cache."""
    outputs = (
        item for node in _nodes(root).values() for kind in ("metrics", "plots", "outs") for item in node.get(kind, [])
    )
    options = (item for item in outputs if isinstance(item, dict))
    return {LOCK, *(str(path) for item in options for path, about in item.items() if not about.get("cache", True))}


def packed(root: Path) -> bytes:
    """Return a zip archive of those of the result files that are there."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(result_paths(root)):
            if (root / name).is_file():
                archive.writestr(zipfile.ZipInfo(name), (root / name).read_bytes(), zipfile.ZIP_DEFLATED)
    return content.getvalue()


def contents_of(archive_bytes: bytes, root: Path) -> dict[str, bytes]:
    """Return the result files of an archive, for the pipeline at `root`.

    Raises:
        ValueError: it is no such archive, lacks dvc.lock, or holds other files than a pipeline's results.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(archive_bytes)) as archive:
            contents = {name: archive.read(name) for name in archive.namelist()}
    except zipfile.BadZipFile as error:
        raise ValueError(f"the results are torn ({error}); submit again") from None
    if others := contents.keys() - result_paths(root):
        raise ValueError(f"the results hold files that dvc.yaml does not name: {', '.join(sorted(others))}")
    if LOCK not in contents:
        raise ValueError(f"the results hold no {LOCK}; submit again")
    return contents


def write_results(contents: Mapping[str, bytes], root: Path) -> None:
    """Write result files over those of `root`."""
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)


def line_of(archive_bytes: bytes) -> str:
    """Return the line of a log that stands for an archive."""
    digest = hashlib.sha256(archive_bytes).hexdigest()
    return f"{MARK} {digest} {base64.b64encode(archive_bytes).decode()}"


def archive_in(lines: Iterable[str]) -> bytes | None:
    """Return the archive of the last such line, or None.

    Raises:
        ValueError: the line was cut.
    """
    found = [line for line in lines if line.startswith(MARK)]
    if not found:
        return None
    _, digest, text = (*found[-1].split(), "", "")[:3]
    try:
        content = base64.b64decode(text, validate=True)
    except ValueError:
        content = b""
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError("the results in the job's log were cut; submit again")
    return content
