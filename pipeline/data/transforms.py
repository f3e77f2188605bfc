"""An optional albumentations pipeline between the shards and the random crop, named and written out in params.yaml.

The pipeline has the form of `albumentations.to_dict`, so params.yaml says all of it. Each picture has its own seed,
drawn for the global batch: nothing changes with the number of workers.
"""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.data.albumentations_release import import_albumentations
from pipeline.data.shards import Images

MAX_SEED = 2**31


class PictureTransform:
    """A random change of single pictures, before they are cropped."""

    def __init__(self, serialised: Mapping[str, Any]):
        """Rebuild the pipeline.

        Args:
            serialised: the dict of albumentations.to_dict.

        Raises:
            ValueError: it is not that, names a transform or argument that albumentations does not know, or another
                albumentations is installed.
        """
        A = import_albumentations()
        try:
            with warnings.catch_warnings(action="error"):  # an argument that is not known is only warned about
                transform = A.from_dict(dict(serialised))
        except (AttributeError, KeyError, TypeError, ValueError, UserWarning) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"transform cannot be rebuilt ({reason}); write what albumentations.to_dict gives"
            ) from None
        if not isinstance(transform, A.Compose):  # which alone takes a seed
            raise ValueError("transform is no Compose; put its transforms into one")
        self._pipeline = transform

    def __call__(self, images: Images, seeds: npt.NDArray[np.int64]) -> Images:
        """Change each picture of (n, S, S, 3) uint8 by its own seed, (n,) in [0, MAX_SEED).

        Raises:
            ValueError: the pipeline gives another shape or dtype.
        """
        changed = np.empty_like(images)
        for index, (image, seed) in enumerate(zip(images, seeds, strict=True)):
            self._pipeline.set_random_seed(int(seed))
            result = self._pipeline(image=image)["image"]
            if result.shape != image.shape or result.dtype != np.uint8:
                raise ValueError(
                    f"transform makes {result.shape} {result.dtype} of {image.shape} uint8; "
                    "take out what resizes or normalises: that is done after it"
                )
            changed[index] = result
        return changed
