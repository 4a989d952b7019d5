"""rayclip: embeddings, indexes and search for very many images. Importing this package imports nothing heavy."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipeline.session import Session

__version__ = "0.1.0"


def connect(store: str, **options: Any) -> "Session":  # of Session
    """Open a store, in a folder or an object store, for a notebook: see `pipeline.session.Session`.

    Args:
        options: ``ray_address`` of a cluster to join, ``models`` that have moved, ``allow_pickle_weights``.
    """
    from pipeline.session import Session  # which imports Ray and Arrow

    return Session(store, **options)
