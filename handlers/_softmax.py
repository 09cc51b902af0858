"""A classifier of pictures: fixed filters see colours and edges, and softmax regression tells classes by them."""

import math
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ._onnx import Graph

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.float32]
    Indices = npt.NDArray[np.intp]

DIRECTIONS, WIDTHS, REACH = 8, (0.7, 1.3), 2
THRESHOLDS = (0.25, 0.5, 0.75)
GREY = (0.299, 0.587, 0.114)
COLOURS = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, -1, 0), (-0.5, -0.5, 1))
FIELDS = 4
DARK = 0.01
MOMENTUM, SMOOTHING, TINY = 0.9, 0.999, 1e-8


def draw_eye(size: int) -> tuple[Graph, int]:
    """The part that is not fitted, for pictures of `size` pixels square, and how many numbers it makes of one.

    Input: `[any, 3, size, size]`, red, green and blue from 0 to 255. For each of 4 x 4 fields it says how much there is
    of edges in eight directions, fine and coarse, and of colours above some thresholds.
    """
    import numpy as np

    filters, offsets = make_filters()
    side = size // FIELDS
    graph = Graph((0, 3, size, size))
    graph.add("Mul", [np.full(1, 1 / 255, np.float32)])
    graph.add("Conv", [filters, offsets], {"kernel_shape": [2 * REACH + 1] * 2, "pads": [REACH] * 4})
    seen = graph.add("Relu")
    fields = graph.add("AveragePool", attributes={"kernel_shape": [side] * 2, "strides": [side] * 2})
    fields = graph.add("Flatten", inputs=[fields])
    whole = graph.add("Flatten", inputs=[graph.add("GlobalAveragePool", inputs=[seen])])
    graph.add("Concat", attributes={"axis": 1}, inputs=[fields, whole])
    # Of logarithms the difference tells how much there is of one compared with the other.
    graph.add("Add", [np.full(1, DARK, np.float32)])
    graph.add("Log")
    return graph, len(offsets) * (FIELDS * FIELDS + 1)


def make_filters() -> "tuple[Numbers, Numbers]":
    """The filters, `[count, 3, 5, 5]`, and what is added to what each says."""
    import numpy as np

    rows, columns = np.mgrid[-REACH : REACH + 1, -REACH : REACH + 1]
    filters, offsets = [], []
    for width in WIDTHS:
        bell = np.exp(-(rows**2 + columns**2) / (2 * width**2))
        for turn in range(DIRECTIONS):
            angle = 2 * math.pi * turn / DIRECTIONS
            slope = (columns * math.cos(angle) + rows * math.sin(angle)) * bell
            filters.append(np.multiply.outer(GREY, 2 * slope / abs(slope).sum()))
            offsets.append(-0.02)  # noise is no edge
    for colour in COLOURS:
        for threshold in THRESHOLDS:
            middle = np.zeros((3, *rows.shape))
            middle[:, REACH, REACH] = colour
            filters.append(middle)
            offsets.append(-threshold if min(colour) >= 0 else 0.5 - 1.5 * threshold)
    return np.array(filters, np.float32), np.array(offsets, np.float32)


class Split(NamedTuple):
    """Which pictures are fitted to, which tell when to stop, and which were never looked at."""

    fitted: "Indices"
    stopping: "Indices"
    held_out: "Indices"


def split(answers: "Indices", holdout: float, seed: int) -> Split:
    """At random, each class in the same shares, and at least one picture of it in each part."""
    import numpy as np

    chance = random.Random(seed)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for answer in np.unique(answers):
        places = [int(place) for place in np.flatnonzero(answers == answer)]
        chance.shuffle(places)
        kept = min(max(1, round(len(places) * holdout)), len(places) - 2)
        stop = kept + min(max(1, round((len(places) - kept) * holdout)), len(places) - kept - 1)
        for part, some in zip(parts, (places[stop:], places[kept:stop], places[:kept]), strict=True):
            part.extend(some)
    return Split(*(np.array(sorted(part), np.intp) for part in parts))


class Recipe(NamedTuple):
    """How to fit: `patience` epochs that bring nothing better are the end."""

    epochs: int
    patience: int
    learning_rate: float
    regularization: float


class Epoch(NamedTuple):
    """What one epoch brought; `loss` and `accuracy` are those of the pictures that tell when to stop."""

    number: int
    loss: float
    accuracy: float


class Head(NamedTuple):
    """The part that is fitted: `features @ weights + offsets`, and softmax of that, are the shares of the classes."""

    weights: "Numbers"
    offsets: "Numbers"
    best: Epoch
    epochs: int

    def judge(self, features: "Numbers") -> "Numbers":
        """The shares of the classes for each picture."""
        return softmax(features @ self.weights + self.offsets)


def fit(
    features: "Numbers",
    answers: "Indices",
    parts: Split,
    recipe: Recipe,
    tell: Callable[[Epoch], None],
) -> Head:
    """Softmax regression by Adam (Kingma and Ba 2014) on all pictures at once, stopped early; the best epoch stays."""
    import numpy as np

    mean, spread = features[parts.fitted].mean(0), features[parts.fitted].std(0) + 1e-4
    plain = ((features - mean) / spread).astype(np.float32)
    classes = int(answers.max()) + 1
    wanted = np.eye(classes, dtype=np.float32)[answers]
    learner = Learner(plain.shape[1], classes, recipe)
    best, kept, number = Epoch(0, math.inf, 0.0), learner.state, 0
    for number in range(1, recipe.epochs + 1):
        learner.step(plain[parts.fitted], wanted[parts.fitted], number)
        epoch = measure(number, learner.judge(plain[parts.stopping]), answers[parts.stopping])
        tell(epoch)
        if epoch.loss < best.loss:
            best, kept = epoch, learner.state
        if number - best.number >= recipe.patience:
            break
    weights = kept[:-1] / spread[:, None]
    return Head(weights.astype(np.float32), (kept[-1] - mean @ weights).astype(np.float32), best, number)


class Learner:
    """The weights while they are fitted; the last row is what is added."""

    def __init__(self, inputs: int, classes: int, recipe: Recipe) -> None:
        import numpy as np

        self._recipe = recipe
        self.state: Any = np.zeros((inputs + 1, classes), np.float32)
        self._drift: Any = np.zeros_like(self.state)
        self._noise: Any = np.zeros_like(self.state)

    def judge(self, plain: "Numbers") -> "Numbers":
        """The shares of the classes for each picture."""
        return softmax(plain @ self.state[:-1] + self.state[-1])

    def step(self, plain: "Numbers", wanted: "Numbers", number: int) -> None:
        """One step down the slope."""
        import numpy as np

        error = (self.judge(plain) - wanted) / len(plain)
        slope = np.vstack([plain.T @ error + self._recipe.regularization * self.state[:-1], error.sum(0)])
        self._drift = MOMENTUM * self._drift + (1 - MOMENTUM) * slope
        self._noise = SMOOTHING * self._noise + (1 - SMOOTHING) * slope**2
        drift, noise = self._drift / (1 - MOMENTUM**number), self._noise / (1 - SMOOTHING**number)
        self.state = self.state - self._recipe.learning_rate * drift / (np.sqrt(noise) + TINY)


def softmax(said: "Numbers") -> "Numbers":
    """Shares that add up to 1, row by row."""
    import numpy as np

    powers = np.exp(said - said.max(1, keepdims=True))
    return np.asarray(powers / powers.sum(1, keepdims=True), np.float32)


def measure(number: int, shares: "Numbers", answers: "Indices") -> Epoch:
    """How good these shares are."""
    import numpy as np

    right = shares[np.arange(len(answers)), answers]
    return Epoch(number, float(-np.log(right + 1e-12).mean()), float((shares.argmax(1) == answers).mean()))


def confuse(shares: "Numbers", answers: "Indices", classes: int) -> list[list[int]]:
    """How many pictures of each class (row) were taken for each class (column)."""
    table = [[0] * classes for _ in range(classes)]
    for answer, said in zip(answers, shares.argmax(1), strict=True):
        table[int(answer)][int(said)] += 1
    return table


def rate(table: Sequence[Sequence[int]], names: Sequence[str]) -> dict[str, dict[str, float]]:
    """For each class: how many of those taken for it are of it, and how many of it were found."""
    rates = {}
    for place, name in enumerate(names):
        found, taken, there = table[place][place], sum(row[place] for row in table), sum(table[place])
        rates[name] = {
            "precision": round(found / taken, 4) if taken else 0.0,
            "recall": round(found / there, 4) if there else 0.0,
            "pictures": there,
        }
    return rates
