"""What nobody would think of sending: requests made of the description, right and wrong ones, to a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
import schemathesis
from hypothesis import HealthCheck
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import ignored_auth, positive_data_acceptance

from runner.web.openapi import describe
from runner.web.operations import EVENTS, OPERATIONS
from tests.web.conftest import Served, serve

REFUSED = ["400", "401", "403", "404", "405", "409", "412", "413", "415", "422", "428", "429"]
CONFIG = SchemathesisConfig.from_dict({"checks": {"negative_data_rejection": {"expected-statuses": REFUSED}}})
SCHEMA = schemathesis.openapi.from_dict(describe({}), config=CONFIG)
STREAMS = [path for (_, path), operation in OPERATIONS.items() if operation.media_type == EVENTS]
UPLOADS = [path for (_, path), operation in OPERATIONS.items() if operation.group == "uploads"]
"""What is said there is said in headers, by another standard."""

EXCLUDED = [positive_data_acceptance, ignored_auth]
"""A submission can be right and its handler absent; in mode local nobody is asked for a token."""


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A runner for what may be changed."""
    with serve(tmp_path_factory.mktemp("fuzzed")) as served:
        yield served


@pytest.mark.slow
@SCHEMA.exclude(path=[*STREAMS, *UPLOADS]).parametrize()
@hypothesis.settings(max_examples=10, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_as_described(case: schemathesis.Case[Any], fuzzed: Served) -> None:
    """No 500, no undescribed status, type or shape, whatever is sent."""
    response = case.call(base_url=f"http://127.0.0.1:{fuzzed.port}")
    case.validate_response(response, excluded_checks=EXCLUDED)
