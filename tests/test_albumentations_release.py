"""albumentations: one release, and never its successor under another licence."""

from pathlib import Path

import albumentations
import pytest

from pipeline.data.albumentations_release import RELEASE, import_albumentations
from pipeline.data.transforms import PictureTransform


def install(folder: Path, name: str, version: str) -> None:
    """Lay out what pip leaves of an installed package."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_the_release_is_the_one_that_is_installed() -> None:
    assert import_albumentations() is albumentations and albumentations.__version__ == RELEASE


@pytest.mark.parametrize(
    ("name", "version", "found"),
    [
        ("albumentationsx", "2.3.1", "albumentations 2.0.8, albumentationsx 2.3.1"),
        ("albumentations", "1.4.0", "albumentations 1.4.0"),
    ],
)
def test_another_release_is_refused_with_the_reason_and_the_remedy(
    name: str, version: str, found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, name, version)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError) as refused:
        PictureTransform({})
    assert str(refused.value) == (
        f"{found} is installed, and this needs albumentations 2.0.8 alone, the last release under the MIT licence: "
        "pip uninstall albumentationsx, then pip install --force-reinstall albumentations==2.0.8"
    )
