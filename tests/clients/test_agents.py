"""The agents that the wheel brings: they start on any Linux of the last ten years, on both architectures."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.cellferry

AGENTS = Path(os.environ.get("CELLFERRY_AGENTS") or Path(sys.prefix, "share", "cellferry", "agents"))
# What readelf calls each.
MACHINES = {"x86_64": "Advanced Micro Devices X86-64", "aarch64": "AArch64"}
GLIBC = (2, 17)
LIBRARIES = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "libutil.so.1"}
# Over the user's link, once a host.
LARGEST = 8 << 20
HELLO = b"\0cellferry\n"


@pytest.fixture(params=MACHINES)
def agent(request):
    """The agent of each architecture, as it was installed. `tools/agents` says why one is not built."""
    path = AGENTS / request.param / "cellferry-agent"
    assert path.is_file(), f"no agent for {request.param} in {AGENTS}: `tools/setup test` builds and installs it"
    return path


def readelf(option, path):
    return subprocess.run(["readelf", "-W", option, path], capture_output=True, text=True, check=True).stdout


def test_agent_needs_nothing_but_an_old_glibc(agent):
    assert MACHINES[agent.parent.name] in readelf("-h", agent)
    assert agent.stat().st_size < LARGEST
    assert ".symtab" not in readelf("-S", agent)

    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", readelf("-d", agent)))
    loaders = {library for library in needed if library.startswith("ld-linux")}
    assert "libc.so.6" in needed and needed - loaders <= LIBRARIES

    versions = set(re.findall(r"Name: (\w+?)_([\d.]+)", readelf("-V", agent)))
    assert {name for name, _ in versions} == {"GLIBC"}
    newest = max(tuple(map(int, version.split("."))) for _, version in versions)
    assert newest <= GLIBC, f"it needs glibc {newest}"


def test_agent_starts_and_greets(agent, tmp_path):
    architecture = agent.parent.name
    words = [agent]
    if architecture != platform.machine():
        emulator, libraries = shutil.which(f"qemu-{architecture}"), Path(f"/usr/{architecture}-linux-gnu")
        if not emulator or not libraries.is_dir():
            pytest.skip(f"nothing here runs programs for {architecture}: `qemu-user` and its glibc would")
        words = [emulator, "-L", libraries, agent]
    with subprocess.Popen(words, stdin=-1, stdout=-1, stderr=-1, cwd=tmp_path) as running:
        hello = running.stdout.read(len(HELLO) + 4 + 1)
        assert hello.startswith(HELLO), running.stderr.read()
        # It takes back what it said as the other side's greeting, and ends with its stdin.
        program, kind = running.stdout.read(hello[-1]), running.stdout.read(1)
        _, said = running.communicate(hello + program + kind, timeout=30)
    assert re.fullmatch(r"\d+\.\d+\.\d+\+[0-9a-f]{8}", program.decode())
    assert running.returncode == 0, said


def test_agent_starts_on_a_host_of_its_own(bed):
    agent = AGENTS / platform.machine() / "cellferry-agent"
    place = ".cache/agent"
    bed.ssh("node1", f"mkdir -p .cache && cat > {place} && chmod 700 {place}", stdin=agent.open("rb"))
    with subprocess.Popen(["ssh", "node1", place], stdin=-1, stdout=-1, stderr=-1) as running:
        assert running.stdout.read(len(HELLO)) == HELLO
        running.communicate(timeout=30)
    assert bed.processes("node1") == {}
