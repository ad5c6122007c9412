"""Runs the jobs whose paths standard input holds, a JSON list to a line: see `job_process`."""

import json
import sys
from pathlib import Path

from google.protobuf import json_format

from servery.trainer.v1 import training_pb2
from servery_rpc.errors import ServeryError
from servery_trainer import pipeline
from servery_trainer.job import Lines, _claim_stdout
from servery_trainer.spec import parse_spec


def main() -> None:
    """Run each, and write what the process of a job would."""
    output = _claim_stdout()
    for line in sys.stdin:
        spec, dataset, out, *base = map(Path, json.loads(line))
        asked = json_format.Parse(spec.read_bytes(), training_pb2.TrainingSpec())
        lines = Lines(output)
        try:
            result = pipeline.run(parse_spec(asked), dataset, out, 1, lines.progress, None, *base)
        except ServeryError as error:
            lines.error(error.reason, str(error), error.metadata)
        else:
            lines.result(result)


if __name__ == "__main__":
    main()
