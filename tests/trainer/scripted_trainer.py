"""A trainer process whose jobs are scripted: `scripted_trainer.py BUNDLE [OPTION...]`."""

import sys
from functools import partial
from pathlib import Path

from servery_rpc.process import run_process
from servery_trainer.__main__ import run
from servery_trainer.settings import TrainerSettings

if __name__ == "__main__":
    _, bundle, *argv = sys.argv
    script = Path(__file__).with_name("scripted_job.py")
    command = (sys.executable, "-I", "-S", str(script), bundle)
    sys.exit(run_process(TrainerSettings, "SERVERY_TRAINER", partial(run, command=command), argv))
