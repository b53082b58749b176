import os
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import Any

import pytest

from lmd.config.describe import describe
from lmd.config.layers import LoadedSettings, flatten, load_settings
from lmd.config.settings import Settings
from lmd.errors import ConfigError, Problem
from lmd.loading import Adapter, LoadParams

Load = Callable[..., LoadedSettings]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load settings from a text, variables and flags, and nothing else of this machine."""

    def load(text: str = "", environ: dict[str, str] | None = None, **flags: Any) -> LoadedSettings:
        file = tmp_path / "lmd.toml"
        file.write_text(text)
        overrides = {key.replace("__", "."): value for key, value in flags.items()}
        return load_settings(file, overrides, environ={"HOME": str(tmp_path), **(environ or {})}, uid=1000)

    return load


def problems(load: Load, *args: Any, **kwargs: Any) -> tuple[Problem, ...]:
    with pytest.raises(ConfigError) as caught:
        load(*args, **kwargs)
    return caught.value.problems


def test_flags_win_over_environment_over_file_over_defaults(load: Load, tmp_path: Path) -> None:
    text = '[server]\nport = 1\nhost = "0.0.0.0"\n\n[models]\nttl = "5m"\nmax_loaded = 3\n'
    environ = {"LMD_SERVER__PORT": "2", "LMD_MODELS__TTL": "never"}
    loaded = load(text, environ, server__port=3)
    settings = loaded.settings
    assert (settings.server.port, settings.models.ttl, settings.server.host) == (3, inf, "0.0.0.0")
    assert settings.models.load_timeout == 600
    origins = loaded.origins
    assert origins["server.port"] == "flag"
    assert origins["models.ttl"] == "env LMD_MODELS__TTL"
    assert origins["server.host"] == f"{tmp_path}/lmd.toml:3"
    assert origins["models.max_loaded"] == f"{tmp_path}/lmd.toml:7"
    assert origins["models.jit"] == "default"


def test_every_key_has_a_value_and_an_origin(load: Load) -> None:
    loaded = load()
    assert set(loaded.origins) == set(flatten(loaded.settings))
    assert set(loaded.origins.values()) == {"default"}


def test_the_defaults_are_those_of_the_documentation(load: Load) -> None:
    settings = load().settings
    assert (settings.server.host, settings.server.port, settings.server.max_body) == ("127.0.0.1", 1234, 64 * 2**20)
    assert (settings.control.mode, settings.control.group) == (0o660, "")
    models = settings.models
    assert (models.jit, models.ttl, models.max_loaded, models.memory_limit) == (True, 3600, 0, "auto")
    assert (models.eviction, models.standby, models.load_timeout, models.queue_timeout) == ("fit", True, 600, 300)
    assert settings.defaults.load == LoadParams()


def test_a_preset_s_load_and_sampling_keys_are_all_defaults_keys(load: Load) -> None:
    text = """
        [defaults.load]
        parallel = 2
        gpu_layers = "auto"
        flash_attention = true
        [defaults.sampling]
        temperature = 0
        stop = ["a", "b"]
    """
    defaults = load(text).settings.defaults
    assert (defaults.load.parallel, defaults.load.gpu_layers, defaults.load.flash_attention) == (2, "auto", True)
    assert (defaults.sampling.temperature, defaults.sampling.stop) == (0, ("a", "b"))


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("[server]\n  prt = 1\n", (2, 3, "server.prt"), "unknown key; did you mean 'server.port'?"),
        ("port = 1\n", (1, 1, "port"), "unknown key; did you mean 'server.port'?"),
        ("[sever]\nport = 1\n", (1, 1, "sever"), "unknown key; did you mean 'server'?"),
        ("[models]\ntemperature = 1\n", (2, 1, "models.temperature"), "did you mean 'defaults.sampling.temperature'?"),
        ("[log]\nxyzzy = 1\n", (2, 1, "log.xyzzy"), "unknown key; known here: level, format"),
        ("\n[server]\nport = '1'\n", (3, 1, "server.port"), 'expected an integer, not "1"'),
        ("[server]\nport = true\n", (2, 1, "server.port"), "expected an integer, not true"),
        ("[server]\nport = 70000\n", (2, 1, "server.port"), "expected at most 65535, not 70000"),
        ("server = 3\n", (1, 1, "server"), "expected a table, not 3"),
        ("[models]\njit = 1\n", (2, 1, "models.jit"), "expected true or false, not 1"),
        ("[models]\nttl = '5x'\n", (2, 1, "models.ttl"), "expected a duration such as 90s"),
        ("[models]\nmemory_limit = 'x'\n", (2, 1, "models.memory_limit"), 'expected "auto" or a size such as 512MiB'),
        ("[models]\nload_timeout = nan\n", (2, 1, "models.load_timeout"), "expected a duration"),
        ("[models]\neviction = 'lru'\n", (2, 1, "models.eviction"), 'expected "fit" or "last", not "lru"'),
        ("[models]\nttl = 1979-05-27\n", (2, 1, "models.ttl"), "dates and times are not used here"),
        ("[control]\nmode = '999'\n", (2, 1, "control.mode"), "expected a file mode in octal"),
        ("[server]\ncors_origins = ['*',\n 'x/']\n", (3, 2, "server.cors_origins[1]"), "expected an origin"),
        ("[server]\nmax_body = '1B'\n", (2, 1, "server.max_body"), "expected at least 1024"),
        ("[defaults]\nload = { parallel = 0 }\n", (2, 10, "defaults.load.parallel"), "expected at least 1, not 0"),
        ("[defaults.load]\ngpu_layers = -2\n", (2, 1, "defaults.load.gpu_layers"), 'at least 0 or "auto", not -2'),
        ("[defaults.load]\nrope_freq_base = inf\n", (2, 1, "defaults.load.rope_freq_base"), "expected a finite number"),
        (
            "[defaults.sampling]\ntemprature = 1\n",
            (2, 1, "defaults.sampling.temprature"),
            "did you mean 'defaults.sampl",
        ),
        ("[server]\nport = \n", (2, 8, ""), "TOML syntax: invalid value"),
        ("[server]\nport = 1\nport = 2\n", (3, 9, ""), "TOML syntax: cannot overwrite a value"),
        ("[server]\nhost = 'x", (2, 10, ""), "TOML syntax: expected"),
    ],
)
def test_each_mistake_is_told_with_its_place_and_what_was_expected(
    load: Load, tmp_path: Path, text: str, place: tuple[int, int, str], message: str
) -> None:
    (problem,) = problems(load, text)
    assert problem.file == str(tmp_path / "lmd.toml")
    assert (problem.line, problem.column, problem.key) == place
    assert message in problem.message


def test_all_mistakes_of_all_layers_are_told_at_once(load: Load) -> None:
    text = "[server]\nport = -1\nhots = 'x'\n[log]\nlevel = 'loud'\n"
    found = problems(load, text, {"LMD_SERVER__PORT": "x", "LMD_LOG__LEVL": "info"}, models__jit="maybe", nope=1)
    assert sorted(problem.key for problem in found) == sorted(
        ["models.jit", "nope", "LMD_SERVER__PORT", "LMD_LOG__LEVL", "server.port", "server.hots", "log.level"]
    )


def test_a_wrong_value_in_the_file_is_told_though_a_flag_hides_it(load: Load) -> None:
    (problem,) = problems(load, "[server]\nport = 'x'\n", server__port=1)
    assert problem.key == "server.port"


@pytest.mark.parametrize(
    ("variable", "text", "key", "value"),
    [
        ("LMD_SERVER__PORT", "0", "server.port", 0),
        ("LMD_CONTROL__GROUP", "1000", "control.group", "1000"),
        ("LMD_CONTROL__GROUP", "", "control.group", ""),
        ("LMD_CONTROL__MODE", "0600", "control.mode", 0o600),
        ("LMD_MODELS__JIT", "off", "models.jit", False),
        ("LMD_MODELS__JIT", "1", "models.jit", True),
        ("LMD_MODELS__TTL", "90", "models.ttl", 90),
        ("LMD_MODELS__MEMORY_LIMIT", "16GB", "models.memory_limit", 16 * 10**9),
        ("LMD_PATHS__MODELS", "/a, /b", "paths.models", (Path("/a"), Path("/b"))),
        ("LMD_PATHS__MODELS", '["/a,b"]', "paths.models", (Path("/a,b"),)),
        ("LMD_PATHS__STATE", "here", "paths.state", Path.cwd() / "here"),
        ("LMD_DEFAULTS__LOAD__GPU_LAYERS", "12", "defaults.load.gpu_layers", 12),
        ("LMD_DEFAULTS__LOAD__FLASH_ATTENTION", "false", "defaults.load.flash_attention", False),
        ("LMD_DEFAULTS__SAMPLING__STOP", "a,b", "defaults.sampling.stop", ("a", "b")),
    ],
)
def test_variables_and_string_flags_are_read_as_their_key_s_type(
    load: Load, variable: str, text: str, key: str, value: object
) -> None:
    assert flatten(load(environ={variable: text}).settings)[key] == value
    assert flatten(load(**{key.replace(".", "__"): text}).settings)[key] == value


def test_a_wrong_variable_is_told_by_its_name(load: Load) -> None:
    (problem,) = problems(load, environ={"LMD_SERVER__PORT": "70000"})
    assert str(problem) == "environment: LMD_SERVER__PORT: expected at most 65535, not 70000"


def test_an_unknown_variable_with_our_separator_is_an_error_with_a_suggestion(load: Load) -> None:
    (problem,) = problems(load, environ={"LMD_SERVER__PROT": "1"})
    assert problem.message == "no such setting; did you mean LMD_SERVER__PORT?"


def test_other_variables_of_the_prefix_are_left_alone_or_noted(load: Load) -> None:
    # Kubernetes sets such variables for a service named lmd; LMD_SOCKET is lmctl's.
    environ = {"LMD_PORT": "tcp://10.0.0.1:80", "LMD_SOCKET": "/x", "LMD_SERVICE_HOST": "10.0.0.1"}
    assert load(environ=environ).notices == ()
    (notice,) = load(environ={"LMD_SERVER_PORT": "1"}).notices
    assert "LMD_SERVER__PORT" in notice.message


@pytest.mark.parametrize("value", [70000, True, None, 1.5, "x", object()])
def test_a_wrong_flag_is_told(load: Load, value: object) -> None:
    (problem,) = problems(load, server__port=value)
    assert (problem.file, problem.key) == ("flags", "server.port")


def test_relative_paths_in_the_file_are_meant_from_the_file(load: Load, tmp_path: Path) -> None:
    text = '[paths]\nmodels = ["m", "~/n", "/o"]\npresets = "p"\n[control]\nsocket = "s"\n'
    settings = load(text).settings
    assert settings.paths.models == (tmp_path / "m", tmp_path / "n", Path("/o"))
    assert settings.paths.presets == tmp_path / "p"
    assert settings.control.socket == tmp_path / "s"
    adapters = load('[defaults.load]\nadapters = [{ path = "a.gguf" }]\n').settings.defaults.load.adapters
    assert adapters == (Adapter(path=str(tmp_path / "a.gguf")),)


def test_a_socket_path_that_no_socket_can_have_is_refused(load: Load) -> None:
    (problem,) = problems(load, f'[control]\nsocket = "{"x" * 108}"\n')
    assert "at most 107 bytes" in problem.message


def test_the_named_file_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope.toml: cannot be read: no such file"):
        load_settings(tmp_path / "nope.toml", environ={})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path.write_bytes(b"a = 1\n# \xff\n"), r":2: is not UTF-8"),
        (lambda path: path.write_bytes(b"#" * 2_000_000), "longer than 1024 KiB"),
        (lambda path: path.mkdir(), "not a regular file"),
        (os.mkfifo, "not a regular file"),
        (lambda path: path.symlink_to(path), "cannot be read: too many levels"),
        (lambda path: path.write_text("a = " + "[" * 100_000), "nested too deep"),
        (lambda path: path.write_text("a = " + "[" * 300 + "]" * 300), "unknown key|nested too deep"),
        (lambda path: path.write_text("a = 1" + "0" * 5000), "cannot be read as TOML"),
        (lambda path: path.write_text("a = \x00"), "TOML syntax"),
    ],
)
def test_a_file_that_is_no_settings_file_is_told_and_nothing_worse(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    file = tmp_path / "lmd.toml"
    make(file)
    with pytest.raises(ConfigError, match=message):
        load_settings(file, environ={})


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    file = tmp_path / "lmd.toml"
    file.write_text("[server]\nport = 7\n", encoding="utf-8-sig")
    assert load_settings(file, environ={}).settings.server.port == 7


def test_the_first_default_file_that_exists_is_read(tmp_path: Path) -> None:
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "user"), "CONFIGURATION_DIRECTORY": str(tmp_path / "service")}
    for folder in ("user", "service"):
        (tmp_path / folder).mkdir()
    (tmp_path / "user/lmd").mkdir()
    (tmp_path / "user/lmd/lmd.toml").write_text("[server]\nport = 1\n")
    if not Path("/etc/lmd/lmd.toml").exists():
        assert load_settings(environ=environ, uid=1000).settings.server.port == 1
    (tmp_path / "service/lmd.toml").write_text("[server]\nport = 2\n")
    loaded = load_settings(environ=environ, uid=1000)
    assert (loaded.settings.server.port, loaded.file) == (2, tmp_path / "service/lmd.toml")


def test_the_printed_settings_read_back_to_themselves(load: Load, tmp_path: Path) -> None:
    text = """
        [server]
        cors_origins = ["https://a.example", "*"]
        max_body = 1048577
        [control]
        mode = "0600"
        group = "with \\"quotes\\" and # hash"
        [paths]
        models = ["a b", "/ü"]
        [models]
        ttl = "never"
        memory_limit = "16GB"
        load_timeout = 0.25
        [defaults.load]
        gpu_layers = 12
        [defaults.sampling]
        stop = ["\\n", "\\u007f"]
        temperature = 0.7
        [[defaults.load.adapters]]
        path = "/a.gguf"
    """
    loaded = load(text, {"LMD_LOG__LEVEL": "debug"}, server__port=0)
    printed = describe(loaded)
    again = tmp_path / "printed.toml"
    again.write_text(printed)
    assert load_settings(again, environ={}, uid=0).settings == loaded.settings
    assert "port = 0  # flag" in printed
    assert 'level = "debug"  # env LMD_LOG__LEVEL' in printed
    assert f'ttl = "never"  # {tmp_path}/lmd.toml:11' in printed
    assert "# context_length is not set" in printed


def test_settings_without_sources_ignore_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMD_SERVER__PORT", "9")
    assert Settings().server.port == 1234
