"""Requests made from the OpenAPI document, right and wrong ones, against the real server: it keeps what it promises."""

from collections import defaultdict
from collections.abc import Callable

import hypothesis
import pytest
from hypothesis import HealthCheck
from hypothesis.strategies import booleans
from schemathesis import Case, GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.openapi import from_url
from schemathesis.schemas import BaseSchema
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.serving.conftest import Served

PROMISES = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
EXAMPLES = 20
SETTINGS = hypothesis.settings(
    max_examples=EXAMPLES, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck)
)

LONGEST_URL = 1 << 16  # what is longer no application sees: uvicorn's parser refuses it in words of its own
PATIENT = {"timeout_ms": 60_000}  # who gives a millisecond gets a 504, which is right and looks like a failure


@pytest.fixture(scope="module")
def document(endpoint: Served) -> BaseSchema:
    return from_url(f"{endpoint.url}/openapi.json")


def put(given: object, known: dict[str, object]) -> None:
    """Put known values in the place of made ones, however deep they are."""
    for inner in given.values() if isinstance(given, dict) else given if isinstance(given, list) else ():
        put(inner, known)
    if isinstance(given, dict):
        given.update({name: value for name, value in known.items() if name in given})


def asked(document: BaseSchema, mode: GenerationMode, prepare: Callable[[Case, bool], None]) -> dict[str, set[int]]:
    """Ask every operation some times; which statuses each gave."""
    statuses = defaultdict(set)
    for operation in (found.ok() for found in document.get_all_operations()):

        @SETTINGS
        @hypothesis.given(case=operation.as_strategy(generation_mode=mode), is_well_known=booleans())
        def ask(case: Case, is_well_known: bool) -> None:
            prepare(case, is_well_known)
            reply = case.call()
            hypothesis.assume(len(reply.request.url) < LONGEST_URL)
            statuses[case.operation.label].add(reply.status_code)
            case.validate_response(reply, checks=PROMISES)

        try:
            ask()
        except hypothesis.errors.Unsatisfiable:  # what takes nothing cannot be asked wrongly
            assert mode is GenerationMode.NEGATIVE
            assert not [*operation.query, *operation.path_parameters, *operation.body]
    return statuses


def test_right_requests_get_the_replies_that_the_document_promises(
    document: BaseSchema, endpoint: Served, demo_rows: list[dict]
):
    table, row_id, image = endpoint.desk.first.table, demo_rows[1]["key"], demo_rows[1]["image"]
    names = {"table": table, "indice_name": table, "model": table, **PATIENT}
    contents = {"query": [{"text": "a"}], "input": "a", "options": "{}"}
    contents |= dict.fromkeys(("filter", "cursor", "columns", "dimensions"))

    def know(case: Case, is_well_known: bool) -> None:
        """Put in names that no stranger would find; for one request in two also what fits this table and model."""
        if "id" in (case.path_parameters or {}):
            case.path_parameters["id"] = row_id
        if is_well_known and case.operation.path == "/v1/search/upload":
            case.body["image"] = image
        if is_well_known and case.operation.path == "/knn-service":
            case.body["text"] = "a"
        for given in (case.query, case.body):
            put(given, names | contents if is_well_known else names)

    statuses = asked(document, GenerationMode.POSITIVE, know)
    assert [label for label, seen in statuses.items() if 200 not in seen] == []


def test_wrong_requests_get_the_problems_that_the_document_promises(document: BaseSchema):
    statuses = asked(document, GenerationMode.NEGATIVE, lambda case, _: put(case.body, PATIENT))
    assert [label for label, seen in statuses.items() if not any(400 <= status < 500 for status in seen)] == []
