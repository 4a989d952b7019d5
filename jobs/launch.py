"""What every job does around its one call: logging, config, and an exit status that means what the README says."""

import json
import logging
import sys
from collections.abc import Callable
from typing import TypeVar

from pipeline.config import Config, load
from pipeline.errors import RunError

ConfigType = TypeVar("ConfigType", bound=Config)


def launch(
    model: type[ConfigType], call: Callable[[ConfigType], None], program: str, arguments: list[str] | None = None
) -> int:
    """Build a job's config from the command line, print it, make the call; return the exit status.

    An unexpected exception is not caught: Python prints its traceback and exits with 1.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    logging.getLogger().setLevel(logging.WARNING)  # open_clip logs its steps on the root logger
    for ours in ("pipeline", "jobs"):
        logging.getLogger(ours).setLevel(logging.INFO)
    try:
        config = load(model, sys.argv[1:] if arguments is None else arguments, program)
        logging.getLogger(program).info("config=%s", json.dumps(config.model_dump(mode="json")))
        call(config)
    except RunError as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print(f"{program}: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    return 0
