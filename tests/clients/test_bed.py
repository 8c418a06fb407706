"""The test bed itself: that its hosts are what they are taken for, and that its faults are real."""

import os
import subprocess
import sys
import time

import pytest
from bed import Bed, Failed, requirements
from processes import alive, wait_until


def attempt(bed, host, seconds=2):
    """Whether ssh reaches a host, and what it says if not."""
    try:
        bed.ssh(host, "true", "-o", f"ConnectTimeout={seconds}")
    except Failed as error:
        return error.stderr
    return "reached"


def test_hosts_are_machines_of_their_own(bed):
    assert bed.ssh("node1", "hostname; whoami; pwd").split() == ["node1", "alice", "/home/alice"]
    assert bed.ssh("via-node2", "hostname; echo $SSH_CONNECTION").split()[:2] == ["node2", bed.address("login")]
    assert bed.ssh("node1", "hostname", "-p", "2222", "-l", "bob") == "node1\n"
    bed.ssh("node1", "touch ~/mine /tmp/mine")
    with pytest.raises(Failed):
        bed.ssh("node2", "ls ~/mine || ls /tmp/mine")
    with pytest.raises(Failed, match="Permission denied"):
        bed.ssh("node1", "ls /home/alice", "-l", "bob")
    assert bed.ssh("node1", f"{bed.python} -c 'import ipykernel, sys; print(sys.prefix)'").strip() == sys.prefix


def test_a_cut_host_is_out_of_reach_until_it_is_healed(bed):
    bed.fault("cut", "node1")
    assert "reached" != attempt(bed, "node1")
    assert attempt(bed, "node2") == "reached"
    bed.fault("heal", "node1")
    assert attempt(bed, "node1") == "reached"


def test_a_connection_outlives_a_cut(bed):
    """As TCP does: nothing is lost, it comes late."""
    with subprocess.Popen(["ssh", "node1", "echo ready; read line; echo got $line"], stdin=-1, stdout=-1, text=True) as client:
        assert client.stdout.readline() == "ready\n"
        bed.fault("cut", "node1")
        client.stdin.write("this\n")
        client.stdin.flush()
        bed.fault("heal", "node1")
        assert client.stdout.readline() == "got this\n"


def test_dropped_packets_vanish_without_a_word(bed):
    bed.fault("drop", "node1")
    start = time.monotonic()
    assert "timed out" in attempt(bed, "node1", seconds=1)
    assert time.monotonic() - start > 0.9
    bed.fault("heal", "node1")
    assert attempt(bed, "node1") == "reached"


def test_two_hosts_that_are_kept_apart_reach_all_others(bed):
    reach = f"timeout 1 bash -c 'echo > /dev/tcp/{bed.address('node2')}/22'"
    bed.fault("apart", "node1", "node2")
    with pytest.raises(Failed):
        bed.ssh("node1", reach)
    assert attempt(bed, "node1") == attempt(bed, "node2") == "reached"
    bed.fault("heal", "node1")
    bed.ssh("node1", reach)


def test_a_long_way_takes_its_time(bed):
    """The time of a round trip, on a connection that stands."""

    def round_trip():
        words = ["ssh", "node1", "while read -r line; do echo $line; done"]
        with subprocess.Popen(words, stdin=-1, stdout=-1, text=True) as client:
            times = []
            for _ in range(5):
                start = time.monotonic()
                client.stdin.write("there and back\n")
                client.stdin.flush()
                assert client.stdout.readline() == "there and back\n"
                times.append(time.monotonic() - start)
            client.stdin.close()
        return min(times)

    bed.fault("delay", "node1", 50)
    assert 0.1 <= round_trip() < 0.3
    bed.fault("heal", "node1")
    assert round_trip() < 0.1


def test_a_narrow_way_takes_its_time(bed):
    def seconds():
        start = time.monotonic()
        assert len(bed.ssh("node1", "head -c 1000000 /dev/zero")) == 1_000_000
        return time.monotonic() - start

    bed.fault("rate", "node1", "4mbit")  # half a megabyte a second
    assert 1.8 < seconds() < 10
    bed.fault("heal", "node1")
    assert seconds() < 1.8


def test_a_killed_host_comes_back_without_what_was_in_memory(bed):
    bed.ssh("node1", "echo kept > ~/kept; echo lost > /tmp/lost; setsid -f sleep 1000 >/dev/null 2>&1")
    assert list(bed.processes("node1").values()) == ["sleep 1000"]
    bed.fault("kill", "node1")
    assert "reached" != attempt(bed, "node1", seconds=1)
    bed.fault("boot", "node1")
    assert bed.ssh("node1", "cat ~/kept; ls /tmp/lost || true") == "kept\n"
    assert bed.processes("node1") == {}


def test_sshd_restarted_keeps_connections_and_crashed_loses_them(bed):
    for what, survives in [("restart", True), ("crash", False)]:
        words = ["ssh", "node1", "echo ready; read line; echo got $line"]
        with subprocess.Popen(words, stdin=-1, stdout=-1, stderr=-1, text=True) as client:
            assert client.stdout.readline() == "ready\n"
            assert bed.connections("node1") == 1
            bed.fault(what, "node1", "sshd")
            assert (attempt(bed, "node1") == "reached") == survives
            client.communicate("this\n")
            assert (client.returncode == 0) == survives
    bed.fault("start", "node1", "sshd")
    assert attempt(bed, "node1") == "reached"


def test_a_shell_a_home_and_a_tmp_out_of_the_ordinary(bed):
    bed.shell("node1", "/bin/csh")
    assert bed.ssh("node1", "echo $version").startswith("tcsh")
    bed.noexec("node1", "/tmp")
    with pytest.raises(Failed, match="Permission denied"):
        bed.ssh("node1", "cp /bin/true /tmp/true; /tmp/true")
    bed.small_home("node1", "64k")
    with pytest.raises(Failed, match="No space left"):
        bed.ssh("node1", "head -c 100000 /dev/zero > ~/large")
    bed.fault("fresh", "node1")
    bed.ssh("node1", "cp /bin/true /tmp/true; /tmp/true; head -c 100000 /dev/zero > ~/large")

    bed.write("node2", ".bashrc", "echo welcome to node2\n")
    assert bed.ssh("node2", "hostname") == "welcome to node2\nnode2\n"
    bed.without_python("node2")
    assert bed.ssh("node2", "command -v python python3 || echo none; ls / >/dev/null").endswith("none\n")


def test_passwords_and_keys_of_hosts(bed, monkeypatch, tmp_path):
    answer = tmp_path / "answer"
    answer.write_text("#!/bin/sh\necho 'open sesame'\n")
    answer.chmod(0o755)
    monkeypatch.setenv("SSH_ASKPASS", str(answer))
    monkeypatch.setenv("SSH_ASKPASS_REQUIRE", "force")
    bed.password("node1", "open sesame")
    ask = ["-o", "BatchMode=no", "-o", "PubkeyAuthentication=no"]
    with pytest.raises(Failed, match="Permission denied"):
        bed.ssh("node1", "true", *ask)
    bed.sshd("node1", "PasswordAuthentication yes", "KbdInteractiveAuthentication yes", "UsePAM yes")
    for method in ("password", "keyboard-interactive"):
        assert bed.ssh("node1", "whoami", *ask, "-o", f"PreferredAuthentications={method}") == "alice\n"
    bed.sshd("node2", "KbdInteractiveAuthentication yes", "UsePAM yes", "AuthenticationMethods publickey,keyboard-interactive")
    bed.password("node2", "open sesame")
    assert bed.ssh("node2", "whoami", "-o", "BatchMode=no") == "alice\n"

    bed.new_host_key("login")
    with pytest.raises(Failed, match="REMOTE HOST IDENTIFICATION HAS CHANGED"):
        bed.ssh("login", "true")


def test_what_is_left_behind_fails_the_test_and_is_ended(bed, tmp_path):
    """In a world within the world of this test."""
    home = bed.home
    for leave in ("setsid -f sleep 1000 >/dev/null 2>&1", "touch /tmp/cellferry-left"):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(AssertionError, match="left on hosts.*node1.*(sleep|left)"):
            folder = tmp_path / leave.split()[0]
            with bed.used(folder, patch):
                bed.left_within = 0.2
                bed.ssh("node1", leave)
        assert bed.processes("node1") == {}
        bed.home = home
    assert bed.ssh("node1", "ls -A ~; ls -d /tmp/*ferry* || true") == ""


def test_a_second_bed_stands_beside_the_first(bed):
    second = Bed.start(requirements(), nodes=1)
    try:
        assert second.address("node1") != bed.address("node1")
        second.fault("cut", "node1")
        assert attempt(bed, "node1") == "reached"
        assert second.on("login", "hostname") == "login\n"
        with pytest.raises(Failed):
            bed.ssh("node1", f"timeout 1 bash -c 'echo > /dev/tcp/{second.address('login')}/22'")
    finally:
        second.stop()
    assert not second.state.exists()


def test_a_bed_goes_with_the_process_that_holds_it(bed):
    """However it ends."""
    code = "import bed; made = bed.Bed.start(bed.requirements(), nodes=1); print(made.state, flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=os.path.dirname(__file__), stdin=-1, stdout=-1, text=True)
    state = holder.stdout.readline().strip()
    inits = [int(open(f"{state}/hosts/{host}/pid").read().split()[0]) for host in ("login", "node1")]
    assert all(alive(pid) for pid in inits)
    holder.kill()
    holder.communicate()
    wait_until(lambda: not os.path.exists(state), 10, f"{state} is still there")
    assert not any(alive(pid) for pid in inits)
