"""albumentations, in the one release that this project uses."""

import os
from importlib.metadata import PackageNotFoundError, version
from typing import Any

RELEASE = "2.0.8"
SUCCESSOR = "albumentationsx"  # installs itself under the same import name


def import_albumentations() -> Any:
    """Return the module.

    Raises:
        ValueError: another release or its successor under the AGPL is installed.
    """
    found = {name: installed for name in ("albumentations", SUCCESSOR) if (installed := _version(name))}
    if found != {"albumentations": RELEASE}:
        names = ", ".join(f"{name} {installed}" for name, installed in found.items()) or "no albumentations"
        raise ValueError(
            f"{names} is installed, and this needs albumentations {RELEASE} alone, the last release under the MIT "
            f"licence: pip uninstall {SUCCESSOR}, then pip install --force-reinstall albumentations=={RELEASE}"
        )
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # else the import asks the internet for a newer release
    import albumentations

    return albumentations


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
