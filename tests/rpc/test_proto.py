import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONTRACTS = sorted(path.relative_to(ROOT) for path in (ROOT / "runner" / "rpc" / "proto").glob("*.proto"))


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda path: str(path.stem))
def test_what_is_generated_is_what_the_contract_says(contract: Path, tmp_path: Path) -> None:
    """`make protos` would change nothing."""
    pytest.importorskip("grpc_tools", reason="`make setup-dev` installs it")
    outputs = [f"--{kind}_out={tmp_path}" for kind in ("python", "pyi", "grpc_python")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", "-I", ".", *outputs, contract], cwd=ROOT, check=True)
    made = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*_pb2*")}
    assert made
    assert {path: (ROOT / path).read_text() for path in made} == made
