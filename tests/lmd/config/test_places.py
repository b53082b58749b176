from pathlib import Path

from lmd.config.places import default_places
from lmd.protocol import default_sockets


def test_a_user_s_daemon_lives_in_xdg_directories() -> None:
    environ = {
        "HOME": "/home/u",
        "XDG_CONFIG_HOME": "/c",
        "XDG_DATA_HOME": "/d",
        "XDG_STATE_HOME": "/s",
        "XDG_CACHE_HOME": "/k",
        "XDG_RUNTIME_DIR": "/run/user/7",
    }
    places = default_places(environ, 7)
    assert places.config_files == (Path("/etc/lmd/lmd.toml"), Path("/c/lmd/lmd.toml"))
    assert places.presets == Path("/c/lmd/presets.d")
    assert places.models == Path("/d/lmd/models")
    assert (places.state, places.cache) == (Path("/s/lmd"), Path("/k/lmd"))
    assert places.socket == Path("/run/user/7/lmd/lmd.sock")


def test_without_xdg_variables_the_home_directory_is_used() -> None:
    places = default_places({"HOME": "/home/u", "XDG_CONFIG_HOME": "relative/is/ignored"}, 7)
    assert places.config_files[-1] == Path("/home/u/.config/lmd/lmd.toml")
    assert places.models == Path("/home/u/.local/share/lmd/models")
    assert places.socket == Path("/home/u/.local/state/lmd/lmd.sock")


def test_root_s_daemon_lives_in_the_system_directories() -> None:
    places = default_places({"HOME": "/root", "XDG_RUNTIME_DIR": "/run/user/0"}, 0)
    assert places.presets == Path("/etc/lmd/presets.d")
    assert (places.models, places.state) == (Path("/var/lib/lmd/models"), Path("/var/lib/lmd"))
    assert places.cache == Path("/var/cache/lmd")
    assert places.socket == Path("/run/lmd/lmd.sock")


def test_systemd_s_directories_win_for_everyone() -> None:
    environ = {
        "HOME": "/home/u",
        "CONFIGURATION_DIRECTORY": "/x/etc:/x/more",
        "STATE_DIRECTORY": "/x/state",
        "CACHE_DIRECTORY": "/x/cache",
        "RUNTIME_DIRECTORY": "/x/run",
        "XDG_DATA_HOME": "/d",
    }
    for uid in (0, 7):
        places = default_places(environ, uid)
        assert places.config_files[0] == Path("/x/etc/lmd.toml")
        assert places.presets == Path("/x/etc/presets.d")
        assert (places.models, places.state) == (Path("/x/state/models"), Path("/x/state"))
        assert (places.cache, places.socket) == (Path("/x/cache"), Path("/x/run/lmd.sock"))


def test_lmctl_looks_where_the_daemon_listens_first_and_then_in_the_system_s_place() -> None:
    assert default_sockets({"XDG_RUNTIME_DIR": "/r"}, 7) == ("/r/lmd/lmd.sock", "/run/lmd/lmd.sock")
    assert default_sockets({"XDG_RUNTIME_DIR": "/r"}, 0) == ("/run/lmd/lmd.sock", "/r/lmd/lmd.sock")
    assert default_sockets({"HOME": "/h"}, 7)[0] == "/h/.local/state/lmd/lmd.sock"
