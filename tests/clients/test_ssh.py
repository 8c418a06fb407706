"""Targets of type `ssh` on real hosts: logging in, the agent's way there, values, and what a user sees of it."""

import platform
import re
import sys

import pytest
from client import on

pytestmark = pytest.mark.cellferry
both = pytest.mark.parametrize("hosts", ["russh", "openssh"], indirect=True)


def where(kernel, target, timeout=60):
    """The name of the machine on which a cell runs."""
    return kernel.run("import socket; print(socket.gethostname())", on(target), timeout=timeout).ok().text().strip()


@both
def test_a_cell_runs_on_the_host_that_its_line_names(bed, hosts, kernel):
    kernel.run("a = [1, 2]\ndef twice(x): return [*x, *x]").ok()
    there = kernel.run("#| target: node1\nimport socket, os\nb = twice(a)\nprint(socket.gethostname(), os.getcwd())").ok()
    assert there.text() == "node1 /home/alice\n"
    assert kernel.run("b").ok().result == "[1, 2, 1, 2]"


def test_a_host_of_the_ssh_configuration_needs_no_definition(bed, kernel):
    # The system's Python of the host has no ipykernel: the message says how to mend that.
    failed = kernel.run("1", on("ssh:node1"))
    assert failed.error.startswith("MissingIpykernel:")
    assert "ssh node1 python3 -m pip install ipykernel" in failed.error


@both
@pytest.mark.parametrize("host", ["via-node2", "alice@{node2}:2222"])
def test_ways_to_a_host(bed, hosts, kernel, host):
    if "{" in host:
        # A port of its own is a host of its own for known_hosts.
        bed.ssh_config.write_text(bed.ssh_config.read_text() + "Host *\n    StrictHostKeyChecking accept-new\n")
    hosts.define("far", host=host.format(node2=bed.address("node2")))
    assert where(kernel, "far") == "node2"


@both
def test_output_is_live(bed, hosts, kernel):
    kernel.run("import time", on("node1")).ok()
    run = kernel.run("for i in range(3):\n    print('tick', i, flush=True)\n    time.sleep(0.4)", on("node1")).ok()
    assert run.text() == "tick 0\ntick 1\ntick 2\n"
    assert run.arrival("tick 2") - run.arrival("tick 0") > 0.6
    assert run.replied_at - run.arrival("tick 0") > 1.0


@both
def test_input_errors_and_interrupts(bed, hosts, kernel):
    kernel.run("import time", on("node1")).ok()
    assert kernel.run("print(input('name? '))", on("node1"), answers=["Ada"]).ok().text() == "Ada\n"
    failed = kernel.run("def f():\n    return 1 / 0\nf()", on("node1"))
    assert failed.error == "ZeroDivisionError: division by zero"
    assert "return 1 / 0" in re.sub(r"\x1b\[[0-9;]*m", "", "".join(failed.reply["content"]["traceback"]))
    run = kernel.send("print('go', flush=True)\ntime.sleep(60)", on("node1"))
    kernel.read_printed(run, "go")
    kernel.interrupt()
    kernel.finish(run, timeout=10)
    assert run.error.startswith("KeyboardInterrupt")
    assert kernel.run("print(1)", on("node1")).ok().text() == "1\n"


@both
def test_large_values_go_there_and_back_and_from_host_to_host(bed, hosts, kernel):
    kernel.run("import numpy as np, hashlib\na = np.random.default_rng(1).integers(0, 255, 60_000_000, 'uint8')").ok()
    digest = "hashlib.sha256(memoryview({0})).hexdigest()"
    home = kernel.run(digest.format("a")).ok().result
    assert kernel.run(digest.format("a"), on("node1")).ok().result == home
    kernel.run("b = a[::-1].copy()", on("node1")).ok()
    there = kernel.run(digest.format("b"), on("node1")).ok().result
    assert kernel.run(digest.format("b"), on("node2")).ok().result == there
    assert kernel.run(digest.format("b")).ok().result == there


@both
def test_hosts_of_every_kind(bed, hosts, kernel):
    """A login shell other than bash, start-up files that print, no programs from /tmp."""
    bed.shell("node1", "/bin/csh")
    bed.write("node1", ".cshrc", "echo 'Welcome to node1'\necho no newline at the end -n\n")
    if not sys.prefix.startswith("/tmp/"):
        bed.noexec("node1")
    bed.write("node2", ".bashrc", "echo 'quota: 3 of 5 GB used'\necho oops >&2\n")
    assert where(kernel, "node1") == "node1"
    assert where(kernel, "node2") == "node2"


@both
def test_a_home_that_is_nearly_full(bed, hosts, kernel):
    bed.small_home("node1", "100k")
    assert where(kernel, "node1") == "node1"
    # The agent's program stays for the next time, in the second best place.
    assert "agent-" in bed.on("node1", "ls /var/tmp/cellferry-*")
    bed.on("node1", "rm -r /var/tmp/cellferry-*")


def test_agents_that_nobody_uses_go(bed, hosts, kernel):
    for name, days in (("agent-old", 40), ("agent-other", 10), (".agent-77", 2)):
        bed.write("node1", f".cache/cellferry/{name}", "an agent")
        bed.on("node1", f"touch -d '{days} days ago' ~/.cache/cellferry/{name}", user=bed.user)
    # What agents keep below is no program of ours, whatever it is called.
    bed.write("node1", ".cache/cellferry/below/agent-mine", "not an agent")
    bed.on("node1", "touch -d '40 days ago' ~/.cache/cellferry/below/agent-mine", user=bed.user)
    bed.on("node1", "chmod 700 ~/.cache/cellferry", user=bed.user)
    assert where(kernel, "node1") == "node1"
    (ours,) = set(bed.on("node1", "ls -A ~/.cache/cellferry", user=bed.user).split()) - {"agent-other", "below"}
    bed.on("node1", "rm ~/.cache/cellferry/below/agent-mine", user=bed.user)
    # What is used is not old.
    bed.on("node1", f"touch -d '40 days ago' ~/.cache/cellferry/{ours}", user=bed.user)
    hosts.define("again", host="node1")
    assert where(kernel, "again") == "node1"
    assert bed.on("node1", "find ~/.cache/cellferry -name 'agent-*' -mtime -1", user=bed.user).endswith(f"{ours}\n")


@both
def test_an_agent_of_another_build_is_refused_by_name(bed, hosts, start, tmp_path, monkeypatch):
    """One that greets and says no more."""
    program = tmp_path / "agents" / platform.machine() / "cellferry-agent"
    program.parent.mkdir(parents=True)
    greeting = r"\000cellferry\n\000\000\000\003\0169.9.9+00000000\001"
    program.write_text(f"#!/bin/sh\nif [ $1 = attach ]; then printf '{greeting}'; cat > /dev/null; fi\n")
    monkeypatch.setenv("CELLFERRY_AGENTS", str(tmp_path / "agents"))
    failed = start().run("1", on("node1"))
    assert failed.error.startswith("AgentError:") and "`node1`" in failed.error and "restart the kernel" in failed.error
    assert "build 9.9.9+00000000" in failed.error and str(tmp_path / "agents") in failed.error


def test_a_host_without_python(bed, hosts, kernel):
    bed.without_python("node1")
    hosts["bare"] = {"type": "ssh", "host": "node1"}
    hosts.define("wrong", host="node1", python="/no/such/python")
    failed = kernel.run("1", on("bare"))
    assert failed.error.startswith("NoPython:") and "no python3 and no python on PATH" in failed.error
    assert "[targets.bare]" in failed.error
    failed = kernel.run("1", on("wrong"))
    assert failed.error.startswith("NoPython:") and "/no/such/python" in failed.error
    assert where(kernel, "node1") == "node1"


def test_setup_lines_come_first(bed, hosts, kernel):
    hosts.define("node1", setup="export GREETING=hello")
    assert kernel.run("import os; print(os.environ['GREETING'])", on("node1")).ok().text() == "hello\n"
    hosts.define("node2", setup="module load nothing")
    failed = kernel.run("1", on("node2"))
    assert "setup failed" in failed.error and "module load nothing" in failed.error


@both
def test_hosts_that_cannot_be_reached_say_why(bed, hosts, kernel):
    hosts.define("nowhere", host="no-such-host.invalid")
    failed = kernel.run("1", on("nowhere"))
    assert failed.error.startswith("SshError:") and "no-such-host.invalid" in failed.error
    bed.fault("stop", "node1", "sshd")
    failed = kernel.run("1", on("node1"))
    assert "connection refused" in failed.error.lower() and "node1" in failed.error
    bed.fault("start", "node1", "sshd")
    assert where(kernel, "node1") == "node1"


@both
def test_a_changed_host_key_is_refused(bed, hosts, kernel):
    bed.new_host_key("node1")
    failed = kernel.run("1", on("node1"))
    assert "changed" in failed.error.lower() and "ssh-keygen" in failed.error and "known_hosts" in failed.error


@both
def test_a_password_is_asked_for_under_the_cell(bed, hosts, kernel):
    bed.sshd("node1", "PasswordAuthentication yes", "PubkeyAuthentication no")
    bed.password("node1", "open sesame")
    run = kernel.run("print('in')", on("node1"), answers=["open sesame"]).ok()
    assert run.text() == "in\n"
    said = str([message for _, message in run.messages])
    assert "open sesame" not in said


@both
def test_a_client_that_cannot_be_asked_gets_an_error(bed, hosts, kernel):
    bed.sshd("node1", "PasswordAuthentication yes", "PubkeyAuthentication no")
    bed.password("node1", "open sesame")
    failed = kernel.run("1", on("node1"))
    assert failed.error.startswith("SshError:") and "node1" in failed.error


@both
def test_an_unknown_host_is_asked_about(bed, hosts, kernel):
    (bed.home / ".ssh/known_hosts").write_text("")
    run = kernel.send("print('in')", on("node1"), allow_stdin=True)
    prompts = []

    def answer(prompt):
        prompts.append(prompt)
        return "yes"

    kernel.read_until(lambda: run.reply is not None and run.idle, 60, answer)
    assert run.ok().text() == "in\n"
    assert len(prompts) == 1 and "authenticity" in prompts[0] and "SHA256:" in prompts[0]
    assert bed.address("node1") in (bed.home / ".ssh/known_hosts").read_text()


def test_workers_of_a_host_run_steps_side_by_side(bed, hosts, kernel):
    hosts.define("node1", workers=2)
    kernel.run("import time, os, pathlib", on("node1")).ok()
    # Each waits for the other.
    meet = "pathlib.Path('met{}').touch()\nwhile not pathlib.Path('met{}').exists(): time.sleep(0.05)\nprint(os.getpid())"
    runs = [kernel.send(meet.format(i, 1 - i), on("node1")) for i in range(2)]
    kernel.finish(*runs)
    bed.on("node1", "rm /home/alice/met0 /home/alice/met1")
    assert len({run.ok().text() for run in runs}) == 2
