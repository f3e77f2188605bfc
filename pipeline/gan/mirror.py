"""Checkpoints of a training whose storage is a bucket: written on the worker's disk first, then copied there.

The bucket is what counts: a worker that starts has the same checkpoints as the others, whatever its own disk held. An
upload ends with the manifest, so one that was cut off is a torn checkpoint, which is skipped for the one before it.
"""

import fcntl
import logging
import shutil
from functools import partial
from pathlib import Path

from pipeline.data.files import replaced_folder
from pipeline.gan.checkpoints import checkpoint_dirs, is_whole
from pipeline.storage import Store, patiently

MANIFEST = "manifest.json"

logger = logging.getLogger(__name__)


class Mirror:
    """The checkpoints of one training in a bucket."""

    def __init__(self, bucket: str):
        """Open s3://bucket/prefix of one training; nobody else writes there."""
        self._store = Store(bucket)

    def push(self, checkpoint_dir: Path, num_kept: int) -> None:
        """Copy a checkpoint to the bucket, and remove there all but the newest ones up to it.

        Raises:
            OSError: the bucket refuses.
        """
        self._store.child(checkpoint_dir.name).upload(checkpoint_dir, last=MANIFEST)
        past = [name for name in reversed(self._names()) if name <= checkpoint_dir.name]
        for name in past[num_kept:]:
            self._store.child(name).remove()

    def fetch(self, folder: Path) -> None:
        """Give `folder` the newest whole checkpoint of the bucket, and no newer one; workers of a machine take turns.

        Raises:
            OSError: the bucket cannot be read (see `patiently`).
        """
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "fetch.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            patiently(partial(self._fetch, folder), f"fetch a checkpoint from {self._store.place}")

    def _fetch(self, folder: Path) -> None:
        names = self._names()
        for name in reversed(names):
            target = folder / name
            manifest = self._store.child(name).read(MANIFEST)
            if manifest is None:
                logger.warning("skipping the checkpoint %s/%s: its upload was cut off", self._store.place, name)
                continue
            if not (target / MANIFEST).is_file() or (target / MANIFEST).read_bytes() != manifest:
                with replaced_folder(target) as partial_dir:
                    self._store.child(name).download(partial_dir)
            if is_whole(target):
                break
            shutil.rmtree(target)
        else:
            name = ""
        for stale in checkpoint_dirs(folder):
            if stale.name > name:
                shutil.rmtree(stale)

    def _names(self) -> list[str]:
        return [name for name in self._store.folders() if name.startswith("checkpoint_")]
