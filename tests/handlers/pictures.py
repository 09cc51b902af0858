"""Pictures to learn from: drawn by chance, of classes that differ in shape and not in colour or place."""

import random
from pathlib import Path
from zipfile import ZipFile

SHAPES = ("disc", "ladder", "comb")


def draw(shape: str, chance: random.Random, path: Path) -> Path:
    """A picture of 60 x 48 pixels with noise."""
    from PIL import Image, ImageChops, ImageDraw

    ground = tuple(chance.randrange(0, 110) for _ in range(3))
    colour = tuple(chance.randrange(140, 256) for _ in range(3))
    image = Image.new("RGB", (60, 48), ground)
    pen = ImageDraw.Draw(image)
    side = chance.randrange(18, 30)
    left, top = chance.randrange(2, 58 - side), chance.randrange(2, 46 - side)
    if shape == "disc":
        pen.ellipse((left, top, left + side, top + side), fill=colour)
    for offset in range(0, side if shape != "disc" else 0, 6):
        across = (left, top + offset, left + side, top + offset + 2)
        along = (left + offset, top, left + offset + 2, top + side)
        pen.rectangle(across if shape == "ladder" else along, fill=colour)
    grain = bytes(98 + byte % 61 for byte in chance.randbytes(image.width * image.height))
    noise = Image.frombytes("L", image.size, grain).convert("RGB")
    ImageChops.add(image, noise, 1, -128).save(path)
    return path


def draw_all(folder: Path, each: int, seed: int = 1) -> list[tuple[Path, str]]:
    """So many pictures of each shape, and what they show."""
    chance = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    return [(draw(shape, chance, folder / f"{shape}{number}.png"), shape) for shape in SHAPES for number in range(each)]


def pack(path: Path, pictures: list[tuple[Path, str]]) -> Path:
    """A zip with a folder for each shape."""
    with ZipFile(path, "w") as archive:
        for picture, shape in pictures:
            archive.write(picture, f"shapes/{shape}/{picture.name}")
    return path
