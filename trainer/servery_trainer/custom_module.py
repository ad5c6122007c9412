"""The module of a caller: loaded, called, and told what is wrong with it in its own lines.

For the process of a job that `sandbox` has shut in; in any other nothing of it is run. What it
raises, prints or leaves undone becomes a `CustomCodeError`. That is help for those who make
mistakes, no defence: the sandbox is.
"""

import linecache
import re
import signal
import sys
import sysconfig
import traceback
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

from servery_trainer.custom_code import CustomCodeError, Problem
from servery_trainer.networks import Custom
from servery_trainer.sandbox import is_shut_in

BUILD_S: Final = 60.0
"""Seconds that importing the module and building one network may take."""

_NAME: Final = "custom_module"
_FILE: Final = "<module>"
_QUOTED_LINE: Final = re.compile(rf'File "{_FILE}", line (\d+)')
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")
_MAX_TEXT: Final = 1000


class _TooSlow(BaseException):
    """Raised where the module is when its time is up; no `except Exception` of it holds that."""


def check_syntax(family: Custom) -> None:
    """Compile the module without running it.

    Raises:
        CustomCodeError: It is no Python.
    """
    _compiled(family)


def call_build(
    family: Custom, shape: tuple[int, ...], outputs: int, vocabulary: int, limit_s: float = BUILD_S
) -> Any:
    """Import the module and return what its `build` returns, whatever that is.

    Args:
        family: The module and its parameters.
        shape: As `build` gets it, like the next two.
        outputs: See `CustomFamily.module` in training.proto.
        vocabulary: See there.
        limit_s: How long it may take.

    Raises:
        CustomCodeError: It failed or took too long.
        RuntimeError: This process is not shut in, so nothing was run.
    """
    if not is_shut_in():
        raise RuntimeError("code of a caller is run by nothing but a process that is shut in")
    code = _compiled(family)
    module = types.ModuleType(_NAME)
    sys.modules[_NAME] = module
    with _limited(limit_s), _blamed():
        exec(code, vars(module))  # noqa: S102 what the sandbox is for
        build = vars(module).get("build")
        if not callable(build):
            what = "it must define the function build(shape, outputs, vocabulary, **parameters)"
            raise CustomCodeError("NO_BUILD", what)
        return build(shape, outputs, vocabulary, **family.parameters)


def require_empty(out: Path) -> None:
    """Refuse files that something else than the trainer put where those of the version go.

    Raises:
        CustomCodeError: There is one.
    """
    for path in out.iterdir():
        raise CustomCodeError(
            "WROTE_FILES", f"it wrote {path.name!r} among the files of the version"
        )


def failure(error: BaseException, problem: Problem = "RAISED") -> CustomCodeError:
    """Return what to tell those who wrote the module of an error, with the line if there is one."""
    if isinstance(error, SyntaxError) and error.filename == _FILE:
        return CustomCodeError(problem, f"{type(error).__name__}: {error.msg}", error.lineno or 0)
    text = _without_places(_text(error)).strip()
    what = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return CustomCodeError(problem, what, _line(error))


def frames(error: BaseException) -> list[str]:
    """Return where in the module an error comes from, the innermost last, as tracebacks have it."""
    found = traceback.extract_tb(error.__traceback__)
    return traceback.format_list([frame for frame in found if frame.filename == _FILE])


def _compiled(family: Custom) -> types.CodeType:
    lines = family.module.splitlines(keepends=True)
    linecache.cache[_FILE] = (len(family.module), None, lines, _FILE)
    with _blamed():
        return compile(family.module, _FILE, "exec", dont_inherit=True)


@contextmanager
def _blamed() -> Iterator[None]:
    """Turn whatever the module raises into a `CustomCodeError`."""
    try:
        yield
    except CustomCodeError:
        raise
    except _TooSlow as error:
        what = f"it was still here after {error} s, the time for the import and build"
        raise CustomCodeError("SLOW", what, _line(error)) from None
    except BaseException as error:
        raise failure(error) from error


@contextmanager
def _limited(limit_s: float) -> Iterator[None]:
    def stop(*_: object) -> NoReturn:
        raise _TooSlow(f"{limit_s:g}")

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _line(error: BaseException) -> int:
    """Return the line of the module that an error comes from, as near to the error as there is."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        seen.append(cause)
        frames = traceback.extract_tb(cause.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == _FILE and frame.lineno]
        lines += map(int, _QUOTED_LINE.findall(_text(cause)))  # What TensorFlow makes of frames.
        if lines:
            return lines[-1]
        cause = cause.__cause__ or cause.__context__
    return 0


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # One of the module may fail to say what it is.
        return ""


def _without_places(text: str) -> str:
    """Take out of a message where things lie on this machine, and make it short."""
    text = _COLOURS.sub("", text)
    places = {
        sys.prefix,
        sys.base_prefix,
        str(Path.cwd()),
        *sysconfig.get_paths().values(),
        *sys.path,
    }
    for place in sorted(filter(None, places), key=len, reverse=True):
        text = text.replace(f"{place}/", "")
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]} …"
