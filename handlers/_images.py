"""Open images that strangers made. The handlers of this folder share it."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from runner import Fail

if TYPE_CHECKING:
    from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP")
MAX_PIXELS = 50_000_000

TOO_LARGE, UNREADABLE = "image_too_large", "unreadable_image"


def open_image(path: Path, max_pixels: int = MAX_PIXELS) -> "Image.Image":
    """The picture as it is shown: upright, in RGB, on white where it is transparent.

    Raises `Fail`: a few bytes can unfold to gigabytes, so the size is looked at before anything is decoded.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with warnings.catch_warnings(), Image.open(path, formats=FORMATS) as image:
            warnings.simplefilter("ignore")  # what Pillow finds suspicious is either refused here, or fine
            if image.width * image.height > max_pixels:
                raise too_large(path, f"{image.width} x {image.height}", max_pixels)
            image.load()
            return flatten(ImageOps.exif_transpose(image))
    except Image.DecompressionBombError:
        raise too_large(path, "far more", max_pixels) from None
    except UnidentifiedImageError:
        raise Fail(f"{path.name} is no JPEG, PNG or WebP image", code=UNREADABLE) from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:  # Pillow raises all of these for damaged files
        raise Fail(f"{path.name} cannot be read: {error}", code=UNREADABLE) from error


def too_large(path: Path, size: str, max_pixels: int) -> Fail:
    """The error for a picture of that size."""
    return Fail(f"{path.name} has {size} pixels, more than {max_pixels:,} in all", code=TOO_LARGE)


def flatten(image: "Image.Image") -> "Image.Image":
    """The picture in RGB."""
    from PIL import Image

    if not image.has_transparency_data:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layered.size, "white"), layered).convert("RGB")
