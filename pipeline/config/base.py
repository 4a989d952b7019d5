"""What every config is: frozen, unknown keys refused; and what jobs have in common that read or write a table."""

from collections.abc import Mapping
from datetime import timedelta
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import InputError


class Config(BaseModel):
    """Frozen; unknown keys are refused; the text under a field is its help."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, populate_by_name=True)


ConfigType = TypeVar("ConfigType", bound=Config)


def checked(model: type[ConfigType], fields: Mapping[str, object]) -> ConfigType:
    """Build a config from fields.

    Raises:
        InputError: an unknown key, a missing or malformed value; in one line, all of them.
    """
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise InputError(said(error)) from error


def said(error: ValidationError) -> str:
    """Put into one line what is wrong with fields."""
    return "; ".join(_said(problem) for problem in error.errors())


def _said(problem: ErrorDetails) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "config"
    if problem["type"] == "missing":
        return f"{where}: wanted a value, got none"
    if problem["type"] == "extra_forbidden":
        return f"{where}: unknown key"
    message = problem["msg"].removeprefix("Value error, ")
    return (
        f"{where}: {message}" if problem["type"] == "value_error" else f"{where}: {message}, got {problem['input']!r}"
    )


class TableConfig(Config):
    """Which table of which store."""

    store: str
    """The folder or URL below which everything is kept."""
    table: str | None = Field(default=None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """None: the store's only table; for jobs.embed, <source.name>__<space>."""


class WriterConfig(TableConfig):
    """What every job that writes needs."""

    single_writer: bool = False
    """Take a store without conditional writes; then nothing but you keeps two runs from harming each other."""


class RunConfig(WriterConfig):
    """When a run gives up."""

    deadline: timedelta | None = Field(default=None, gt=timedelta(0))
    """Time from the start after which the run stops with status 3: seconds, or as PT6H."""
    hang_s: float = Field(default=3600.0, gt=0.0)
    """Seconds without any sign of life after which the run stops, naming its stage."""
    drain_s: float = Field(default=20.0, ge=0.0)
    """Seconds after SIGTERM in which units may still end; clusters mostly give 30 in all."""

    @property
    def deadline_s(self) -> float | None:
        """The deadline in seconds."""
        return None if self.deadline is None else self.deadline.total_seconds()
