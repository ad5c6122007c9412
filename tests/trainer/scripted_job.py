"""Stands in for the process of a job: speaks its protocol, without TensorFlow.

What it does is the id of the model it is to train, up to the first `-`. Its first argument is a
directory with the files of a bundle.
"""

import argparse
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


def say(**message: Any) -> None:
    print(json.dumps(message), flush=True)  # noqa: T201 the protocol


def progress(**fields: Any) -> None:
    say(progress={"phase": "PHASE_TRAINING", "maxEpochs": 3, **fields})


def result(bundle: Path, out: Path) -> None:
    shutil.copytree(bundle, out)
    say(result={"metrics": {"accuracy": 0.75}, "labels": ["no", "yes"], "version": "mine"})


def learn(args: argparse.Namespace, spec: Any) -> None:
    """Take three epochs; the validation loss is 0 at a learning rate of 0.01 in the end."""
    off = abs(math.log10(spec.get("training", {}).get("learningRate", 0.01)) + 2)
    epochs = []
    for number in (1, 2, 3):
        loss = off + 3 - number
        figures = {"loss": loss, "val_loss": loss, "val_accuracy": 1 / (1 + loss)}
        progress(epoch=number, metrics=figures)
        epochs.append({"number": number, "validationLoss": loss, "metrics": figures})
        time.sleep(0.12)  # The trainer writes down ten figures a second.
    shutil.copytree(args.bundle, args.out)
    say(result={"metrics": {"accuracy": 0.75}, "weightsSha256": "0" * 64, "epochs": epochs})


def save(directory: Path) -> None:
    directory.mkdir()
    (directory / "checkpoint.npz").touch()
    sys.exit(143)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("bundle", type=Path)
    for option in ("--spec", "--dataset", "--out", "--checkpoint-dir"):
        parser.add_argument(option, type=Path, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--base", type=Path)
    args = parser.parse_args()
    model = json.loads(args.spec.read_text())["publication"]["model"].rpartition("/")[2]
    sys.stderr.write(f"trains {model}\n")
    say(progress={"phase": "PHASE_STARTING"})
    match model.partition("-")[0]:
        case "succeeds":
            for epoch in (1, 2, 3):
                progress(epoch=epoch, metrics={"val_loss": 1 / epoch})
        case "starts":  # Says what it is given to start from.
            sys.stderr.write(" ".join(sorted(path.name for path in args.base.iterdir())))
        case "drifts":  # Other weights each time.
            shutil.copytree(args.bundle, args.out)
            say(result={"weightsSha256": args.out.parent.name.ljust(64, "0")})
            return 0
        case "learns":
            learn(args, json.loads(args.spec.read_text()))
            return 0
        case "chatters":
            for step in range(2000):
                progress(step=step)
        case "garbles":
            sys.stdout.buffer.write(b"\xff\xfe\n[]\n7\n{}\n\n" + b"x" * 100_000 + b"\n")
            sys.stdout.buffer.write(b"[" * 100_000 + b"\n")
            sys.stdout.buffer.write(b'{"result": {"metrics": 3}}\n{"progress": "soon"}\n')
            sys.stdout.flush()
        case "refuses":
            metadata = {"problem": "ONE_CLASS"}
            reason = "ERROR_REASON_DATASET_INVALID"
            say(error={"reason": reason, "message": "only one class", "metadata": metadata})
            return 1
        case "misnames":
            say(error={"reason": "ERROR_REASON_NO_SUCH", "message": "?"})
            return 1
        case "exits":
            return 3
        case "lies":
            result(args.bundle, args.out)
            return 3
        case "aborts":
            os.kill(os.getpid(), signal.SIGABRT)
        case "hoards":
            bytearray(4 * 1024**3)
        case "hangs":
            progress(step=1, metrics={"pid": os.getpid()})
            signal.pause()
        case "resists":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            progress(step=1, metrics={"pid": os.getpid()})
            while True:
                signal.pause()
        case "leaves":
            child = subprocess.Popen(["sleep", "1000"])  # noqa: S607
            progress(step=1, metrics={"pid": child.pid})
        case "hides":
            child = subprocess.Popen(["sleep", "1000"], start_new_session=True)  # noqa: S607
            progress(step=1, metrics={"pid": child.pid})
            signal.pause()
        case "dies":  # As often as the id says.
            starts = args.out.parent / "starts"
            starts.touch()
            starts.write_text(starts.read_text() + ".")
            if len(starts.read_text()) <= int(model.rpartition("-")[2]):
                os.kill(os.getpid(), signal.SIGKILL)
        case "saves":  # Goes on from a checkpoint; without one writes it when it is stopped.
            if not args.checkpoint_dir.exists():
                signal.signal(signal.SIGTERM, lambda *_: save(args.checkpoint_dir))
                progress(step=1, metrics={"pid": os.getpid()})
                signal.pause()
        case "resumes":
            seen = args.out.parent / "seen"
            if not seen.exists():
                seen.touch()
                progress(step=1, metrics={"pid": os.getpid()})
                signal.pause()
        case "breaks":
            result(args.bundle, args.out)
            (args.out / "model.onnx").write_bytes(b"no graph")
            return 0
        case unknown:
            raise ValueError(unknown)
    result(args.bundle, args.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
