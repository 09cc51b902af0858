"""A model that says what is in a picture: a folder with `model.onnx`, `tags.csv`, and perhaps `model.json`.

`tags.csv` names what the numbers of the model's first output mean: a column `name`, and perhaps `category`, where 9 is
a rating; or just one name a line. It may also be called `selected_tags.csv`. `model.json` says how a picture is
prepared, where that is not as for the taggers of the WD14 family.
"""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runner import Fail

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from PIL import Image

    Numbers = npt.NDArray[np.float32]

INVALID_MODEL = "invalid_model"

RATING = "9"
RATINGS = frozenset({"general", "sensitive", "questionable", "explicit"})
Triple = tuple[float, float, float]


class Preparation(BaseModel):
    """What `model.json` may say. A picture is fitted into a square of `size` pixels; then each of its numbers, 0 to 255
    in the order of `channels`, is `(number - mean) / divisor`. `activation` makes shares of what the model says."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    size: Annotated[int, Field(ge=1, le=4096)] | None = None
    fit: Literal["pad", "crop", "stretch"] = "pad"
    channels: Literal["bgr", "rgb"] = "bgr"
    mean: Triple = (0.0, 0.0, 0.0)
    divisor: Triple = (1.0, 1.0, 1.0)
    activation: Literal["none", "sigmoid", "softmax"] = "none"


class Tag(NamedTuple):
    """What one number of the model means."""

    name: str
    is_rating: bool


class OnnxTagger:
    """One model, loaded. Raises `Fail` with code `invalid_model` for a folder that holds none."""

    def __init__(self, folder: Path, threads: int) -> None:
        self._folder = folder
        self._tags = read_tags(folder)
        self._preparation = read_preparation(folder)
        self._session = self._load(threads)
        shape = self._session.get_inputs()[0].shape
        if len(shape) != 4:
            raise self._unusable(f"its input has the shape {shape}, a picture has four sides")
        self._channels_first = shape[1] == 3
        sides = shape[2:] if self._channels_first else shape[1:3]
        size = self._preparation.size or next((side for side in sides if isinstance(side, int) and side > 0), None)
        if size is None:
            raise self._unusable("it takes pictures of any size: model.json has to say one")
        self._size = size

    def tag(self, image: "Image.Image") -> tuple[dict[str, float], dict[str, float]]:
        """Each tag with its share, 0 to 1, and the ratings likewise."""
        session, numbers = self._session, self._prepare(image)
        try:
            (output,) = session.run([session.get_outputs()[0].name], {session.get_inputs()[0].name: numbers})
        except Exception as error:  # the runtime's errors have no common class
            raise self._unusable(str(error)) from error
        shares = self._activate(output.reshape(-1).astype("float32"))
        if len(shares) != len(self._tags):
            raise self._unusable(f"it says {len(shares)} numbers, and tags.csv names {len(self._tags)}")
        said = list(zip(self._tags, map(float, shares), strict=True))
        tags = {tag.name: share for tag, share in said if not tag.is_rating}
        return tags, {tag.name: share for tag, share in said if tag.is_rating}

    def _load(self, threads: int) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        try:
            path = str(self._folder / "model.onnx")
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's errors have no common class
            raise self._unusable(str(error)) from error

    def _prepare(self, image: "Image.Image") -> "Numbers":
        import numpy as np

        rgb = np.asarray(fit(image, self._size, self._preparation.fit), np.float32)
        ordered = rgb[:, :, ::-1] if self._preparation.channels == "bgr" else rgb
        mean, divisor = np.array(self._preparation.mean, np.float32), np.array(self._preparation.divisor, np.float32)
        scaled = (ordered - mean) / divisor
        return np.ascontiguousarray((scaled.transpose(2, 0, 1) if self._channels_first else scaled)[None])

    def _activate(self, said: "Numbers") -> "Numbers":
        import numpy as np

        if self._preparation.activation == "sigmoid":
            return np.asarray(1 / (1 + np.exp(-said)), np.float32)
        if self._preparation.activation == "softmax":
            powers = np.exp(said - said.max())
            return np.asarray(powers / powers.sum(), np.float32)
        return said

    def _unusable(self, reason: str) -> Fail:
        return unusable(self._folder, reason)


def unusable(folder: Path, reason: str) -> Fail:
    """The error for a model that is none."""
    return Fail(f"the model in {folder} cannot be used: {reason[:500]}", code=INVALID_MODEL)


def read_tags(folder: Path) -> list[Tag]:
    """What the numbers mean, in their order."""
    path = next((path for name in ("tags.csv", "selected_tags.csv") if (path := folder / name).is_file()), None)
    if path is None:
        raise unusable(folder, "there is no tags.csv")
    try:
        rows = [row for row in csv.reader(path.read_text(encoding="utf-8-sig").splitlines()) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise unusable(folder, f"{path.name}: {error}") from error
    if not rows:
        raise unusable(folder, f"{path.name} is empty")
    if "name" not in rows[0]:
        return [Tag(row[0], row[0] in RATINGS) for row in rows]
    return [read_tag(dict(zip(rows[0], row, strict=False))) for row in rows[1:]]


def read_tag(row: Mapping[str, str]) -> Tag:
    """One line under a header."""
    return Tag(row.get("name", ""), row.get("category", "") == RATING)


def read_preparation(folder: Path) -> Preparation:
    """How pictures are prepared."""
    try:
        return Preparation.model_validate_json((folder / "model.json").read_bytes())
    except FileNotFoundError:
        return Preparation()
    except (OSError, ValidationError) as error:
        raise unusable(folder, f"model.json: {error}") from error


def fit(image: "Image.Image", size: int, how: Literal["pad", "crop", "stretch"]) -> "Image.Image":
    """The picture as a square of that many pixels: with white beside it, cut off, or out of shape."""
    from PIL import Image, ImageOps

    if how == "crop":
        return ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)
    if how == "pad":
        return ImageOps.pad(image, (size, size), Image.Resampling.BICUBIC, color="white")
    return image.resize((size, size), Image.Resampling.BICUBIC)
