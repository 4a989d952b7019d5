"""What every job does around its one call: logging, config, and an exit status that means what the README says."""

import argparse
import json
import logging
import re
import sys
import time
from collections.abc import Callable

from jobs.flags import load
from pipeline.config import ConfigType
from pipeline.errors import RunError
from pipeline.filesystem import storage_named


class JsonLines(logging.Formatter):
    """One JSON object a line; what a message says as key=value are fields of their own, in their types."""

    def format(self, record: logging.LogRecord) -> str:
        """Put a record into one line."""
        names = re.findall(r"(\w+)=%", str(record.msg))
        values = record.args if isinstance(record.args, tuple) and len(record.args) == len(names) else ()
        fields = dict(zip(names, values, strict=True)) if values else {}
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **fields,
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def launch(
    model: type[ConfigType], call: Callable[[ConfigType], None], program: str, arguments: list[str] | None = None
) -> int:
    """Build a job's config from the command line, print it, make the call; return the exit status.

    Every job takes `--log-format json`: one object a line. An unexpected exception is not caught: Python prints its
    traceback and exits with 1.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    formats = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    formats.add_argument("--log-format", "--log_format", choices=("text", "json"), default="text")
    chosen, arguments = formats.parse_known_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s", stream=sys.stderr)
    if chosen.log_format == "json":
        for handler in logging.getLogger().handlers:
            handler.setFormatter(JsonLines())
    logging.getLogger().setLevel(logging.WARNING)  # open_clip logs its steps on the root logger
    for ours in ("pipeline", "jobs"):
        logging.getLogger(ours).setLevel(logging.INFO)
    try:
        config = load(model, arguments, program)
        logging.getLogger(program).info("config=%s", json.dumps(config.model_dump(mode="json")))
        with storage_named():
            call(config)
    except RunError as error:
        _say(program, " ".join(str(error).split()), as_json=chosen.log_format == "json")
        return error.exit_status
    except KeyboardInterrupt:
        _say(program, "interrupted; run the same command again to go on", as_json=chosen.log_format == "json")
        return 130
    return 0


def _say(program: str, why: str, *, as_json: bool) -> None:
    """Give the one line that says why a job ended as it did."""
    if as_json:
        logging.getLogger(program).error("%s", why)
    else:
        print(f"{program}: {why}", file=sys.stderr)
