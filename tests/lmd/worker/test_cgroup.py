import os

import pytest

from lmd.worker.cgroup import Files, anonymous_bytes, oom_kills, system_memory

MEMINFO = "MemTotal:       16000 kB\nMemFree:  100 kB\nMemAvailable:    9000 kB\n"


@pytest.fixture
def files(tmp_path):
    proc, cgroup = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    cgroup.mkdir()
    (proc / "meminfo").write_text(MEMINFO)
    return Files(proc, cgroup)


def put(directory, **contents):
    directory.mkdir(parents=True, exist_ok=True)
    for name, text in contents.items():
        (directory / f"memory.{name}").write_text(text)


def test_without_a_cgroup_it_is_the_machines_memory(files):
    memory = system_memory(files)
    assert (memory.total, memory.available) == (16000 * 1024, 9000 * 1024)


def test_v2_limits_of_this_cgroup_and_its_parents_bind(files):
    (files.proc / "self" / "cgroup").write_text("0::/system.slice/lmd.service\n")
    parent = files.cgroup / "system.slice"
    put(parent, max="5000000\n", current="3000000\n", stat="active_file 100000\ninactive_file 400000\n")
    put(parent / "lmd.service", max="max\n", high="4000000\n", current="1000000\n", stat="anon 9\n")
    memory = system_memory(files)
    assert memory.total == 4_000_000
    assert memory.available == 5_000_000 - (3_000_000 - 500_000)


def test_v1_limit_binds_and_its_no_limit_does_not(files):
    (files.proc / "self" / "cgroup").write_text("4:cpu:/x\n3:memory:/job\n")
    put(
        files.cgroup / "memory" / "job",
        limit_in_bytes="2000000\n",
        usage_in_bytes="1500000\n",
        stat="total_inactive_file 500000\n",
    )
    put(files.cgroup / "memory", limit_in_bytes=f"{2**63 - 4096}\n", usage_in_bytes="1\n")
    assert system_memory(files).available == 1_000_000


def test_in_a_container_whose_path_is_the_hosts_the_mounts_root_is_taken(files):
    (files.proc / "self" / "cgroup").write_text("0::/docker/abc\n")
    put(files.cgroup, max="1000000\n", current="2000000\n")
    assert system_memory(files).available == 0


def test_oom_kills_are_read_from_the_cgroup_or_the_machine(files):
    (files.proc / "vmstat").write_text("pgfault 9\noom_kill 2\n")
    assert oom_kills(files) == 2
    (files.proc / "self" / "cgroup").write_text("0::/a\n")
    put(files.cgroup / "a", events="low 0\noom 3\noom_kill 5\n")
    assert oom_kills(files) == 5


def test_files_that_are_not_there_do_not_hurt(tmp_path):
    files = Files(tmp_path / "none", tmp_path / "none")
    assert system_memory(files).total == 0
    assert oom_kills(files) == 0
    assert anonymous_bytes(1, files) == 0


def test_this_machine():
    memory = system_memory()
    assert 0 < memory.available <= memory.total
    assert anonymous_bytes(os.getpid()) > 1_000_000
