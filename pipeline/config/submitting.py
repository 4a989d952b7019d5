"""Handing jobs to a cluster."""

from pydantic import Field, PositiveInt

from pipeline.config.base import Config


class SubmitConfig(Config):
    """Hand a job to a running Ray cluster, once for each id, and end as it did: python -m jobs.submit."""

    address: str | None = None
    """Of Ray's job server, as http://127.0.0.1:8265; None: RAY_API_SERVER_ADDRESS, or the Ray that runs here."""
    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """What the job is known by: a schedule names its date or minute, so that the same one is not done twice."""
    entrypoint: str
    """The command, as "python -m jobs.backfill --config nightly.toml"."""
    working_dir: str | None = None
    """A folder or zip that the job runs in, as the working directory of every process; None: the image's own."""
    py_modules: tuple[str, ...] = ()
    """Folders or wheels that the job can import."""
    tries: PositiveInt = 1
    """How often it is started while it ends with status 3, which means that the same command goes on."""


class SubmitRayJobConfig(Config):
    """Start a copy of a suspended RayJob on Kubernetes, once for each id: python -m jobs.submit_rayjob."""

    template: str = "backfill"
    """The suspended RayJob that is copied."""
    id: str = Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")
    """The name of the copy: in a CronJob that of its Job, which has the minute of the schedule in it."""
    namespace: str = "rayclip"
    """Where both are."""
    poll_s: float = Field(default=10.0, gt=0.0)
    """Seconds between looks at it."""
    tries: PositiveInt = 1
    """How often it is started while it ends with status 3, which means that the same command goes on."""
