"""Settings come from flags and the environment, or the process does not start."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from servery_rpc.settings import ServerSettings, arguments, load, option


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(ServerSettings):
    """A process with one setting of each kind."""

    data_dir: Path = option("where data lives")
    models: tuple[str, ...] = option("names", ())
    loud: bool = option("a switch", False)


def read(*argv: str, **env: str) -> Settings:
    return load(Settings, "SERVERY_X", argv, env)


def test_flags_win_over_the_environment() -> None:
    settings = read("--drain-s", "2.5", SERVERY_X_DRAIN_S="7", SERVERY_X_DATA_DIR="d")
    assert settings.drain_s == 2.5
    assert settings.data_dir == Path("d")


def test_lists_and_switches() -> None:
    settings = read("--data-dir", "d", "--models", "a", "b", SERVERY_X_LOUD="true")
    assert settings.models == ("a", "b")
    assert read("--data-dir", "d", "--models", "a", "--models", "b").models == ("a", "b")
    assert settings.loud is True
    assert read("--data-dir", "d", SERVERY_X_MODELS="a,b").models == ("a", "b")


def test_settings_can_be_given_on_as_arguments() -> None:
    settings = Settings(
        data_dir=Path("a b"),
        models=("x", "-y"),
        loud=True,
        max_message_bytes=-5,
        drain_s=0.5,
        metrics_port=1,
    )
    assert read(*arguments(settings)) == settings
    assert arguments(Settings(data_dir=Path("d"))) == ["--data-dir=d"]


@pytest.mark.parametrize(
    ("argv", "env", "named"),
    [
        pytest.param([], {}, "--data-dir", id="missing"),
        pytest.param(["--data-dir", "d", "--drain-s", "soon"], {}, "--drain-s", id="not a number"),
        pytest.param(["--data-dir", "d"], {"SERVERY_X_DRAIN_S": "-1"}, "drain_s", id="range"),
        pytest.param(
            ["--data-dir", "d", "--listen", "0.0.0.0:1"], {}, "tls_certificate", id="open"
        ),
        pytest.param(["--data-dir", "d", "--listen", "nowhere"], {}, "listen", id="no port"),
        pytest.param(["--data-dir", "d", "--log-level", "all"], {}, "log_level", id="choice"),
        pytest.param(["--data-dir", "d", "--tls-key", "k"], {}, "tls_certificate", id="half TLS"),
        pytest.param(["--data-dir", "d"], {"SERVERY_X_LOUD": "yes"}, "SERVERY_X_LOUD", id="bool"),
    ],
)
def test_a_bad_value_is_named_and_stops_the_start(
    argv: list[str], env: dict[str, str], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        load(Settings, "SERVERY_X", argv, env)
    assert stopped.value.code == 2
    assert named in capsys.readouterr().err.splitlines()[-1]
