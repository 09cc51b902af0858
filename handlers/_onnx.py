"""Write a model in the ONNX format, without the library of that name: few of its protocol buffers are needed.

The bare numbers are those of the fields in `onnx.proto`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Numbers = npt.NDArray[np.float32]

FORMAT_VERSION, OPERATORS_VERSION = 8, 17
FLOAT = 1
INT, INTS = 2, 7
Attribute = int | Sequence[int]


@dataclass
class Graph:
    """Operations, of which the first reads the input `image`. Sizes of 0 in its shape stand for "any"."""

    input_shape: tuple[int, ...]
    last: str = "image"
    _nodes: list[bytes] = field(default_factory=list)
    _constants: list[bytes] = field(default_factory=list)

    def add(
        self,
        operation: str,
        constants: Sequence["Numbers"] = (),
        attributes: Mapping[str, Attribute] | None = None,
        inputs: Sequence[str] = (),
    ) -> str:
        """Apply an operation of ONNX to what came last, or to `inputs`, and to constants; the name of its output."""
        names = [f"constant{len(self._constants) + place}" for place in range(len(constants))]
        self._constants += [write_tensor(name, numbers) for name, numbers in zip(names, constants, strict=True)]
        read = b"".join(chunk(1, name.encode()) for name in (*(inputs or (self.last,)), *names))
        said = b"".join(chunk(5, write_attribute(name, value)) for name, value in (attributes or {}).items())
        self.last = f"{operation.lower()}{len(self._nodes)}"
        self._nodes.append(read + chunk(2, self.last.encode()) + chunk(4, operation.encode()) + said)
        return self.last

    def write(self, output_size: int) -> bytes:
        """The content of a `.onnx` file whose output has so many numbers for each picture."""
        graph = b"".join(chunk(1, node) for node in self._nodes) + chunk(2, b"classifier")
        graph += b"".join(chunk(5, constant) for constant in self._constants)
        graph += chunk(11, write_value("image", self.input_shape)) + chunk(12, write_value(self.last, (0, output_size)))
        operators = chunk(8, chunk(1, b"") + number(2, OPERATORS_VERSION))
        return number(1, FORMAT_VERSION) + chunk(2, b"file-runner") + chunk(7, graph) + operators


def write_tensor(name: str, numbers: "Numbers") -> bytes:
    """A TensorProto."""
    sizes = b"".join(number(1, size) for size in numbers.shape)
    return sizes + number(2, FLOAT) + chunk(8, name.encode()) + chunk(9, numbers.astype("<f4").tobytes())


def write_attribute(name: str, value: Attribute) -> bytes:
    """An AttributeProto."""
    if isinstance(value, int):
        return chunk(1, name.encode()) + number(3, value) + number(20, INT)
    return chunk(1, name.encode()) + b"".join(number(8, one) for one in value) + number(20, INTS)


def write_value(name: str, shape: Sequence[int]) -> bytes:
    """A ValueInfoProto."""
    sizes = b"".join(chunk(1, number(1, size) if size else chunk(2, b"any")) for size in shape)
    return chunk(1, name.encode()) + chunk(2, chunk(1, number(1, FLOAT) + chunk(2, sizes)))


def number(tag: int, value: int) -> bytes:
    """A field that holds a number which is not negative."""
    return varint(tag << 3) + varint(value)


def chunk(tag: int, content: bytes) -> bytes:
    """A field that holds bytes, a text or a message."""
    return varint(tag << 3 | 2) + varint(len(content)) + content


def varint(value: int) -> bytes:
    """A number, seven bits a byte."""
    *more, last = sevens_of(value)
    return bytes([*(part | 0x80 for part in more), last])


def sevens_of(value: int) -> list[int]:
    """Its digits to the base of 128, the lowest first."""
    digits = [value & 0x7F]
    while value := value >> 7:
        digits.append(value & 0x7F)
    return digits
