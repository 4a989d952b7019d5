"""POST /v1/embeddings as OpenAI's and Jina's clients send it: texts and images in, vectors out.

Fields that only bill or route are accepted and ignored; texts longer than the text tower reads are cut, as in searches.
Restated from their public documents: facts/embeddings-api.md.
"""

import asyncio
import base64
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import AliasChoices, BaseModel, ConfigDict, Discriminator, Field, StrictStr, Tag, field_validator
from starlette.responses import Response

from pipeline.serving.desk import Desk, Timings
from pipeline.serving.native_api import PROBLEMS, TheDesk
from pipeline.serving.problems import QueryError
from pipeline.serving.replies import Json, named
from pipeline.serving.requests import MAX_TEXT, ProblemReply, exactly_one, image_bytes
from pipeline.serving.service import Service, Vector, directed

MAX_INPUTS = 2048  # as OpenAI's
Kind = Literal["float", "base64", "binary", "ubinary"]
Kinds = Annotated[list[Kind], Field(min_length=1, max_length=4)]
Text = Annotated[StrictStr, Field(min_length=1, max_length=MAX_TEXT)]


class Item(BaseModel):
    """A text, or an image by URL, in base64, or as a data URI; bytes and url are other names for image."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=exactly_one("text", "image"))

    text: Text | None = None
    image: Annotated[StrictStr, Field(min_length=1)] | None = Field(
        default=None, validation_alias=AliasChoices("image", "bytes", "url")
    )

    def model_post_init(self, context: Any, /) -> None:  # pydantic's own signature
        """Check that there is one of them."""
        if (self.text is None) == (self.image is None):
            raise ValueError("wanted one of text, image, bytes, url")


def _kind_of_one(given: object) -> str | None:
    return "text" if isinstance(given, str) else "object" if isinstance(given, Item | Mapping) else None


def _kind(given: object) -> str | None:
    return "list" if isinstance(given, list) else _kind_of_one(given)


One = Annotated[
    Annotated[Text, Tag("text")] | Annotated[Item, Tag("object")],
    Discriminator(
        _kind_of_one,
        custom_error_type="not_an_input",
        custom_error_message="wanted a text, {text} or {image}; lists of token ids are not taken, send the text itself",
    ),
]
Input = Annotated[
    Annotated[Text, Tag("text")]
    | Annotated[Item, Tag("object")]
    | Annotated[list[One], Field(min_length=1, max_length=MAX_INPUTS), Tag("list")],
    Discriminator(
        _kind,
        custom_error_type="not_an_input",
        custom_error_message="wanted a text, {text}, {image}, or a list of them",
    ),
]


class EmbeddingsRequest(BaseModel):
    """What both APIs have in common, and the names that either had before."""

    model_config = ConfigDict(extra="ignore")

    model: StrictStr = Field(max_length=1000)
    input: Input
    encoding: Kind | Kinds = Field(
        default="float",
        validation_alias=AliasChoices("encoding_format", "embedding_type", "encoding_type"),
        description="embedding_type and encoding_type are other names for it; several: an object with a key for each",
    )
    dimensions: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="the first so many, of norm 1 again; of use for models that were trained for it"
    )
    normalized: bool = Field(default=True, description="to norm 1; false: of whatever norm the model gives")

    @field_validator("encoding", mode="before")
    @classmethod
    def _null_is_float(cls, value: object) -> object:
        return "float" if value is None else value

    @property
    def items(self) -> list[Item]:
        """The inputs, one by one."""
        inputs = self.input if isinstance(self.input, list) else [self.input]
        return [Item(text=each) if isinstance(each, str) else each for each in inputs]


class Embedding(BaseModel):
    """The vector of one input."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str | dict[str, list[float] | str]


class Usage(BaseModel):
    """What others bill: tokens of texts, start and end among them, as far as they are read. Images have none here."""

    prompt_tokens: int
    total_tokens: int
    image_tokens: int | None = None


class EmbeddingsReply(BaseModel):
    """Vectors in the order of the inputs."""

    object: Literal["list"] = "list"
    model: str
    data: list[Embedding]
    usage: Usage


class OpenAIError(BaseModel):
    """An error as OpenAI's clients read it."""

    message: str
    type: str
    param: str | None
    code: str | None


class EmbeddingsProblem(ProblemReply):
    """An error in all three forms: RFC 9457's, OpenAI's, and detail and code as Jina's have them."""

    error: OpenAIError


router = APIRouter(responses={status: {**what, "model": EmbeddingsProblem} for status, what in PROBLEMS.items()})


@router.post("/v1/embeddings", response_model=EmbeddingsReply)
async def embeddings(request: EmbeddingsRequest, desk: TheDesk) -> Response:
    """Encode texts and images."""
    service = _service(desk, request.model)
    d, wanted = service.record.d, request.dimensions
    if wanted is not None and wanted > d:
        raise QueryError("too_many_dimensions", f"dimensions: the model has {d}, got {wanted}")
    timings, items = Timings(), request.items
    async with desk.within():
        with timings.step("embed"):
            vectors = await asyncio.gather(
                *(_vector(desk, service, place, item, request.normalized) for place, item in enumerate(items))
            )
        return await asyncio.to_thread(_reply, service, request, vectors, timings)


def _service(desk: Desk, model: str) -> Service:
    """Find the table whose model is meant: by the model's id, its name, the table, or an alias of the first."""
    for service in desk.services.values():
        known = (service.record.model_id, service.record.model, service.record.space, service.table)
        if model in known:
            return service
    if model in desk.config.model_aliases:
        return desk.first
    served = ", ".join(dict.fromkeys(service.record.model_id for service in desk.services.values()))
    raise QueryError(
        "model_not_found", f"model {model!r}: served are {served}; --model_aliases takes it for the first table's", 404
    )


async def _vector(desk: Desk, service: Service, place: int, item: Item, normalised: bool) -> Vector:
    """Encode an input; what is wrong with it is said with its place among the others."""
    timings = Timings()  # of many at once: their sum says nothing
    try:
        if item.text is not None:
            return await desk.text_vector(service, item.text, timings, normalised=normalised)
        image = item.image or ""
        is_url = image.startswith(("http://", "https://"))
        encoded = await desk.fetch_image(image, timings) if is_url else image_bytes(image)
        return await desk.image_vector(service, encoded, timings, normalised=normalised)
    except QueryError as error:
        raise QueryError(error.code, f"input.{place}: {error}", error.status) from error


def _reply(service: Service, request: EmbeddingsRequest, vectors: Sequence[Vector], timings: Timings) -> Response:
    """Write a reply; in a thread, since a million numbers take a second."""
    d, kinds = request.dimensions or service.record.d, request.encoding
    texts = [item.text for item in request.items if item.text is not None]
    tokens = sum(service.count_tokens(texts)) if texts else 0
    embedded = []
    for index, vector in enumerate(vectors):
        cut = vector[:d] if d == len(vector) or not request.normalized else directed(vector[:d], f"input.{index}")
        written = _written(cut, kinds) if isinstance(kinds, str) else {kind: _written(cut, kind) for kind in kinds}
        embedded.append({"object": "embedding", "index": index, "embedding": written})
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "image_tokens": None}
    reply = {"object": "list", "model": service.record.model_id, "data": embedded, "usage": usage}
    return Json(reply, headers=named(service, None, timings))


def _written(vector: NDArray[np.float32], kind: Kind) -> list[float] | str:
    """Write a vector down: numbers; or base64 of float32, or of a bit for each sign, as bytes or signed bytes."""
    if kind == "float":
        return [float(value) for value in vector.tolist()]
    if kind == "base64":
        return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
    bits = np.packbits(vector > 0)
    if kind == "binary":  # the same bits as int8, shifted by half their range
        bits = (bits.astype(np.int16) - 128).astype(np.int8).view(np.uint8)
    return base64.b64encode(bits.tobytes()).decode()
