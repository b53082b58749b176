"""``lmd``: flags, then the daemon."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

#: Flags that are a setting by a shorter name.
_SETTINGS = {
    "host": "server.host",
    "port": "server.port",
    "models_dir": "paths.models",
    "presets_dir": "paths.presets",
    "socket": "control.socket",
    "log_level": "log.level",
}


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="lmd",
        description="Serve local GGUF models over HTTP. Settings come from flags, then LMD_… variables, then lmd.toml.",
        allow_abbrev=False,
    )
    made.add_argument("--config", metavar="FILE", type=Path, help="lmd.toml to read instead of the default places'")
    made.add_argument("--host", metavar="ADDRESS", help="address to serve on")
    made.add_argument("--port", metavar="PORT", help="port to serve on; 0 takes any free one")
    made.add_argument(
        "--models-dir", metavar="DIR", action="append", help="directory with models; may be given several times"
    )
    made.add_argument("--presets-dir", metavar="DIR", help="directory with presets")
    made.add_argument("--socket", metavar="PATH", help="control socket")
    made.add_argument("--log-level", metavar="LEVEL", help="debug, info, warning or error")
    made.add_argument(
        "-o",
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        dest="settings",
        type=_assignment,
        help="any setting, such as -o models.ttl=10m; may be given several times",
    )
    what = made.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="check settings and presets, and exit 0 or 1")
    what.add_argument("--print-config", action="store_true", help="show the effective settings and where each is from")
    what.add_argument(
        "--version", action="store_true", help="tell lmd's version, llama.cpp's, CPU features and devices, and exit"
    )
    made.add_argument("--json", action="store_true", help="with --version: tell it as JSON")
    return made


def _assignment(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key.strip() or not equals:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE, such as models.ttl=10m")
    return key.strip(), value


def overrides(said: argparse.Namespace) -> dict[str, Any]:
    """The settings that the flags name, by dotted key. A flag of its own wins over ``-o``."""
    named = {key: getattr(said, flag) for flag, key in _SETTINGS.items()}
    return {**dict(said.settings), **{key: value for key, value in named.items() if value is not None}}


def main(argv: Sequence[str] | None = None) -> int:
    said = parser().parse_args(argv)
    if said.version:
        from lmd.about import tell

        return tell(as_json=said.json)
    if said.json:
        print("lmd: --json goes with --version.", file=sys.stderr)
        return 2
    # Everything heavy is imported behind the flags: --help and --version answer at once.
    from lmd.errors import LmdError

    try:
        if said.check:
            return _check(said)
        if said.print_config:
            return _print_config(said)
        return _run(said)
    except LmdError as error:
        _complain(error)
        return 1
    except KeyboardInterrupt:  # before the daemon listens to signals
        return 130


def _run(said: argparse.Namespace) -> int:
    import asyncio

    from lmd.library import tls

    with tls.none_read():
        from lmd.daemon import Daemon

    async def run() -> int:
        return await Daemon(said.config, overrides(said)).run()

    return asyncio.run(run())


def _check(said: argparse.Namespace) -> int:
    from lmd.config.store import check

    problems = check(said.config, overrides(said))
    for problem in problems:
        print(problem, file=sys.stderr)
    if not problems:
        print("Settings and presets are right.")
    return 1 if problems else 0


def _print_config(said: argparse.Namespace) -> int:
    from lmd.config.describe import describe
    from lmd.config.layers import load_settings

    print(describe(load_settings(said.config, overrides(said))))
    return 0


def _complain(error: Any) -> None:
    from lmd.errors import ConfigError

    if isinstance(error, ConfigError):
        for problem in error.problems:
            print(f"lmd: {problem}", file=sys.stderr)
    else:
        print(f"lmd: {error.message}", file=sys.stderr)
    if error.hint:
        print(f"     {error.hint}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
