import numpy as np
import pytest

from pipeline.errors import InputError
from pipeline.serving.problems import QueryError
from pipeline.serving.service import Service


@pytest.fixture(scope="module")
def service(demo_store: str) -> Service:
    return Service(demo_store, None)


def test_an_image_of_the_corpus_finds_itself(service: Service, demo_rows: list[dict]):
    for row in demo_rows[1:30:7]:
        (hit,) = service.search(service.embed_image(row["image"]), 1).hits
        assert hit.id == row["key"]
        assert hit.score > 0.99
        assert hit.columns == {"caption": row["caption"], "colour": row["colour"]}
        assert service.snapshot.pictures.of(hit.number) == row["image"]


def test_a_text_finds_what_it_says(service: Service):
    hits = service.search(service.embed_text("a red shape"), 10).hits
    assert sum(hit.columns["colour"] == "red" for hit in hits) >= 9
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def test_a_row_is_its_own_nearest(service: Service, demo_rows: list[dict]):
    key = demo_rows[7]["key"]
    assert service.search(service.vector_of_row(key), 1).hits[0].id == key
    with pytest.raises(QueryError) as error:
        service.vector_of_row("figure-000000")  # a reject
    assert error.value.code == "unknown_id"


def test_more_rows_than_there_are_gives_all_of_them_once(service: Service):
    hits = service.search(service.embed_text("a shape"), 1000).hits
    assert len({hit.id for hit in hits}) == len(hits) == service.snapshot.index.card.ntotal


@pytest.mark.parametrize(
    ("values", "space", "code"),
    [
        ([1.0] * 63, None, "wrong_width"),
        ([1.0] * 64, "another", "wrong_space"),
        ([0.0] * 64, None, "no_direction"),
        ([float("nan")] * 64, None, "no_direction"),
        ([float("inf")] * 64, None, "no_direction"),
    ],
)
def test_a_vector_that_cannot_be_compared_is_refused(service: Service, values: list, space: str | None, code: str):
    with pytest.raises(QueryError) as error:
        service.check_vector(values, space)
    assert error.value.code == code


def test_a_vector_of_the_space_is_normalised(service: Service):
    vector = service.check_vector([3.0] + [0.0] * 63, service.record.space)
    assert np.linalg.norm(vector) == pytest.approx(1)


@pytest.mark.parametrize(("content", "code"), [(b"", "image_empty"), (b"text", "image_not_an_image")])
def test_what_is_no_image_is_refused(service: Service, content: bytes, code: str):
    with pytest.raises(QueryError) as error:
        service.embed_image(content)
    assert error.value.code == code


def test_a_store_without_the_table_is_an_input_error(demo_store: str):
    with pytest.raises(InputError, match="wanted table 'nothing'"):
        Service(demo_store, "nothing")
