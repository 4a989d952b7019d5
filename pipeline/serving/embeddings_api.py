"""POST /v1/embeddings as OpenAI's and Jina's clients send it: texts and images in, vectors out.

Fields that only bill or route are accepted and ignored. Restated from their public documents: facts/embeddings-api.md.
"""

import asyncio
import base64
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from numpy.typing import NDArray
from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StrictStr, field_validator
from starlette.responses import Response

from pipeline.serving.desk import Desk, Timings
from pipeline.serving.native_api import PROBLEMS, TheDesk
from pipeline.serving.problems import QueryError
from pipeline.serving.replies import Json, named
from pipeline.serving.requests import MAX_TEXT, ProblemReply, image_bytes
from pipeline.serving.service import Service, Vector, directed

MAX_INPUTS = 2048  # as OpenAI's
Kind = Literal["float", "base64", "binary", "ubinary"]
Text = Annotated[StrictStr, Field(min_length=1, max_length=MAX_TEXT)]


class Item(BaseModel):
    """A text, or an image by URL, in base64, or as a data URI."""

    model_config = ConfigDict(extra="forbid")

    text: Text | None = None
    image: Annotated[StrictStr, Field(min_length=1)] | None = Field(
        default=None, validation_alias=AliasChoices("image", "bytes", "url")
    )

    def model_post_init(self, context: Any, /) -> None:  # pydantic's own signature
        """Check that there is one of them."""
        if (self.text is None) == (self.image is None):
            raise ValueError("wanted one of text, image, bytes, url")


class EmbeddingsRequest(BaseModel):
    """What both APIs have in common, and the names that either had before."""

    model_config = ConfigDict(extra="ignore")

    model: StrictStr = Field(max_length=1000)
    input: Text | Item | Annotated[list[Text | Item], Field(min_length=1, max_length=MAX_INPUTS)]
    encoding: Kind | list[Kind] = Field(
        default="float", validation_alias=AliasChoices("encoding_format", "embedding_type", "encoding_type")
    )
    dimensions: Annotated[int, Field(ge=1)] | None = None
    normalized: bool = True

    @field_validator("encoding", mode="before")
    @classmethod
    def _null_is_float(cls, value: object) -> object:
        return value or "float"

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
    """What others bill: tokens of texts. Images have none here."""

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
    timings = Timings()
    async with desk.within():
        vectors = await _vectors(desk, service, request.items, timings)
        texts = [item.text for item in request.items if item.text is not None]
        tokens = sum(await asyncio.to_thread(service.count_tokens, texts)) if texts else 0
    vectors = _cut(vectors, request.dimensions, service.record.d)
    kinds = request.encoding
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": _encoded(vector, kinds)
            if isinstance(kinds, str)
            else {kind: _encoded(vector, kind) for kind in kinds},
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": tokens, "total_tokens": tokens, "image_tokens": None}
    reply = {"object": "list", "model": service.record.model_id, "data": data, "usage": usage}
    return Json(reply, headers=named(service, None, timings))


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


async def _vectors(desk: Desk, service: Service, items: Sequence[Item], timings: Timings) -> list[Vector]:
    texts = [item.text for item in items if item.text is not None]
    images = [await _image(desk, item.image, timings) for item in items if item.image is not None]
    of_texts, of_images = await asyncio.gather(
        desk.text_vectors(service, texts, timings), desk.image_vectors(service, images, timings)
    )
    next_text, next_image = iter(of_texts), iter(of_images)
    return [next(next_text if item.text is not None else next_image) for item in items]


async def _image(desk: Desk, image: str, timings: Timings) -> bytes:
    if image.startswith(("http://", "https://")):
        return await desk.fetch_image(image, timings)
    return image_bytes(image)


def _cut(vectors: Sequence[Vector], dimensions: int | None, d: int) -> list[Vector]:
    """Keep the first coordinates, and give them norm 1 again: of use for models that were trained for it."""
    if dimensions is None or dimensions == d:
        return list(vectors)
    if dimensions > d:
        raise QueryError("too_many_dimensions", f"dimensions: the model has {d}, got {dimensions}")
    return [directed(vector[:dimensions], "input") for vector in vectors]


def _encoded(vector: NDArray[np.float32], kind: Kind) -> list[float] | str:
    """Write a vector down: numbers; or base64 of float32, or of a bit for each sign, as bytes or signed bytes."""
    if kind == "float":
        return [float(value) for value in vector]
    if kind == "base64":
        return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()
    bits = np.packbits(vector > 0)
    if kind == "binary":  # the same bits as int8, shifted by half their range
        bits = (bits.astype(np.int16) - 128).astype(np.int8).view(np.uint8)
    return base64.b64encode(bits.tobytes()).decode()
