"""The trained generator as MLflow serves it: captions in, PNG files out. MLflow keeps this file itself, no pickle.

A model "from code" is a script that MLflow runs to have the model, so that this file, alone here, does something when
it is imported: it hands its model to MLflow.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mlflow.models
import mlflow.pyfunc
import pandas as pd

from pipeline.data.captions import captions_of_arguments
from pipeline.data.tables import EncoderId
from pipeline.gan.painting import Subject, load_painters, pictures_of, write_picture
from pipeline.text.encoders import load_text_encoder

MAX_CAPTIONS = 64  # of one request: a picture takes a processor the tenth of a second and more


class CaptionPainter(mlflow.pyfunc.PythonModel):  # pyright: ignore[reportPrivateImportUsage] - it is MLflow's own way
    """Paints a picture of each caption. The same caption, seed and models give the same bytes."""

    def load_context(self, context: Any) -> None:
        """Load the snapshots."""
        models_dir = Path(context.artifacts["models"])
        self._encoder = load_text_encoder(models_dir / "text_encoder")
        encoder = EncoderId(self._encoder.name, self._encoder.sha256)
        self._painters = load_painters(models_dir, encoder, both_stages=False)

    def predict(  # pyright: ignore[reportIncompatibleMethodOverride] - the base returns nothing
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Return a column `png` for the column `caption`; `seed` of the params chooses the noise.

        Raises:
            ValueError: a caption is empty or cannot be embedded, there are too many of them, or the seed is negative.
        """
        texts, seed = [str(text) for text in model_input["caption"]], int((params or {}).get("seed", 0))
        if len(texts) > MAX_CAPTIONS:
            raise ValueError(f"{len(texts)} captions in one request; {MAX_CAPTIONS} may be")
        if seed < 0:
            raise ValueError(f"seed {seed}: give a whole number from 0")
        captions = captions_of_arguments(texts)
        subjects = [
            Subject(embedding=self._encoder.encode([caption.text], 1)[0], caption=caption.text) for caption in captions
        ]
        with TemporaryDirectory() as folder:
            path = Path(folder) / "picture.png"
            files: list[bytes] = []
            for picture in pictures_of(subjects, [seed], self._painters):
                write_picture(picture, path)
                files.append(path.read_bytes())
        return pd.DataFrame({"png": files})


mlflow.models.set_model(CaptionPainter())
