"""Personal links: what a link, or a form sent back, proves is signed and expires (itsdangerous, HMAC-SHA256).

Whoever holds a link is who it names, as with a ballot paper; there is no cookie, so no other site can make a browser
act in a rater's name. Links of one study are worth nothing in another: its id is part of the signing key.
"""

import hashlib
import os
import secrets
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from itsdangerous import BadSignature, SignatureExpired, URLSafeTimedSerializer

from pipeline.evaluation.study.answers import Refused

MIN_SECRET_CHARS = 32

Role = Literal["rater", "admin"]


class Form(NamedTuple):
    """What a page's form says of itself when it comes back."""

    rater: int
    slot: int
    revision: int  # how often this ballot was given before
    sec_since_shown: float


class Links:
    """Signs and reads the links and forms of one study."""

    def __init__(self, secret: str, study_id: str, lifetime_days: float):
        """Use `secret` for the study named; what is signed is accepted for `lifetime_days`."""
        key = hashlib.sha256(f"{study_id} {secret}".encode()).hexdigest()
        self._lifetime_sec = lifetime_days * 24 * 3600
        self._signers = {
            purpose: URLSafeTimedSerializer(key, salt=purpose, signer_kwargs={"digest_method": hashlib.sha256})
            for purpose in ("rater", "admin", "form")
        }

    def rater(self, rater: int) -> str:
        """Return the token of a rater's personal link."""
        return str(self._signers["rater"].dumps(rater))

    def admin(self) -> str:
        """Return the token of the admin's link."""
        return str(self._signers["admin"].dumps(0))

    def form(self, rater: int, slot: int, revision: int) -> str:
        """Return what a form carries: whose it is, for what, and, by its signature's time, since when it is shown."""
        return str(self._signers["form"].dumps([rater, slot, revision, time.time()]))

    def read_rater(self, token: str) -> int:
        """Return the rater that a link is of.

        Raises:
            Refused: it was altered, has expired, or is of another study.
        """
        return int(self._read("rater", token))

    def require_admin(self, token: str) -> None:
        """Check an admin's link.

        Raises:
            Refused: it was altered, has expired, or is of another study.
        """
        self._read("admin", token)

    def read_form(self, token: str) -> Form:
        """Return what a form says of itself.

        Raises:
            Refused: it was altered, has expired, or is of another study.
        """
        rater, slot, revision, shown = self._read("form", token)
        return Form(rater, slot, revision, max(0.0, time.time() - shown))

    def _read(self, purpose: str, token: str) -> Any:
        try:
            return self._signers[purpose].loads(token, max_age=int(self._lifetime_sec))
        except SignatureExpired:
            raise Refused(f"the {purpose}'s link has expired: ask for a new one") from None
        except BadSignature:
            raise Refused(f"the {purpose}'s link is not one of this study: check that it was copied whole") from None


def study_secret(storage_dir: Path) -> str:
    """Return $STUDY_SECRET, or the secret kept in the storage folder, which is drawn once and readable by us alone.

    Raises:
        ValueError: it is too short to keep anything secret.
    """
    given = os.environ.get("STUDY_SECRET")
    if given is not None:
        if len(given) < MIN_SECRET_CHARS:
            raise ValueError(
                f"STUDY_SECRET is shorter than {MIN_SECRET_CHARS} characters; `openssl rand -hex 32` prints a good one"
            )
        return given
    path = storage_dir / "study_secret"
    storage_dir.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", encoding="ascii", dir=storage_dir) as file:  # 0600
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
            with suppress(FileExistsError):  # another process was first, and its secret counts
                os.link(file.name, path)
    kept = path.read_text(encoding="ascii")
    if len(kept) < MIN_SECRET_CHARS:
        raise ValueError(f"{path} holds no whole secret: remove it to draw a new one; links that were handed out end")
    return kept
