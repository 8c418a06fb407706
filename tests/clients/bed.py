"""The test bed as tests see it: real sshd on hosts of this machine, with faults on demand. The scripts in `tests/testbed` do
the work; this holds one bed for a test process, and gives each test a HOME of its own that leads there.

Every host has two users, `alice` and `bob`, sees this environment's Python at its own path, and listens on ports 22 and 2222.
The hosts of a `Cluster` run real Slurm besides."""

import os
import re
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import processes

SCRIPTS = Path(__file__).parent.parent / "testbed"
USER, OTHER_USER = "alice", "bob"
PROGRAMS = ("ip", "tc", "nft", "python3", "sshd", "ssh", "ssh-keygen", "nsenter", "unshare", "tcsh")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# OpenSSH asks the user database, not HOME, where `~/.ssh` is; this library answers it.
NAME_SERVICE = "libnss_wrapper.so"
SLURM_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "qsub", "mpirun")
ACCOUNTING_PROGRAMS = ("slurmdbd", "mariadbd")
BUSY = 3  # exit code of `up`
NO_LIMIT = 4  # exit code of `fault memory`
LINK_FAULTS = ("cut", "drop", "rate", "delay", "apart")


class Unavailable(Exception):
    """Why this machine cannot have a test bed."""


def privilege():
    """What makes a command one of root's. Raises `Unavailable`."""
    if os.geteuid() == 0:
        return []
    if shutil.which("sudo") and subprocess.run(["sudo", "-n", "true"], capture_output=True).returncode == 0:
        return ["sudo", "-n"]
    raise Unavailable("hosts for ssh are made of namespaces, which needs root or passwordless sudo")


def requirements(more=()):
    """Checks what the bed needs, and returns what makes a command one of root's. Raises `Unavailable`."""
    missing = [program for program in (*PROGRAMS, *more) if not shutil.which(program, path=SYSTEM_PATH)]
    if not list(Path("/usr/lib").glob(f"*/{NAME_SERVICE}")):
        missing.append(NAME_SERVICE)
    if missing:
        raise Unavailable(f"hosts for ssh need {', '.join(missing)}: `tools/setup test` installs them where it may")
    root = privilege()
    namespaces = ["unshare", "--time", "--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "true"]
    probe = subprocess.run([*root, *namespaces], capture_output=True, text=True)
    if probe.returncode != 0:
        raise Unavailable(f"this machine does not let root make namespaces, of which hosts consist: {probe.stderr.strip()}")
    return root


def python_folders():
    """What of this environment's Python hosts do not see with `/usr`."""
    found = {Path(sys.prefix), Path(sys.base_prefix).resolve(), Path(sys.executable).resolve().parent.parent}
    shown = [path for path in found if not path.is_relative_to("/usr") or path.is_relative_to("/usr/local")]
    return sorted(path for path in shown if not any(path != other and path.is_relative_to(other) for other in shown))


class Failed(subprocess.CalledProcessError):
    """A command that failed, with what it said."""

    def __str__(self):
        return f"{super().__str__()}\n{self.stdout}{self.stderr}"


class Bed:
    """Hosts `login`, `node1`, `node2`, up from `start` until `stop` or the end of this process, however it ends."""

    OPTIONS = ()  # for `up`
    BESIDES = ()  # hosts
    BOOT_SECONDS = 60

    def __init__(self, root, slot, lock):
        self._root = root
        self._lock = lock  # held by the keeper, too, so that nobody takes the slot before all is down
        self._bridge = f"cfb{slot}"
        self._settings = [f"TB_STATE=/tmp/cft-bed-{slot}", f"TB_BRIDGE={self._bridge}", f"TB_NET=10.77.{slot}"]
        self.state = Path(f"/tmp/cft-bed-{slot}")
        self.hosts = ()
        self.user, self.other_user = USER, OTHER_USER
        self.python = sys.executable  # there and here
        self.home = None  # HOME of the test: .ssh/config, .ssh/known_hosts, .ssh/id_ed25519
        self.left_within = 5  # seconds that processes have to end after the test
        self._keeper = None
        # `_lacking` are hosts, each with the daemon that it misses.
        self._broken, self._off, self._lacking, self._altered = set(), set(), set(), set()

    @classmethod
    def start(cls, root, nodes=2):
        """A bed of its own for the caller; what killed processes have left of theirs goes first."""
        sweep(root)
        for slot in range(200):
            lock = claim(slot)
            if lock is None:
                continue
            bed = cls(root, slot, lock)
            try:
                bed._up(nodes)
            except BaseException as error:
                bed.stop()
                if isinstance(error, Failed) and error.returncode == BUSY:
                    continue  # somebody else's network
                raise
            return bed
        raise AssertionError("200 test beds are up, or their networks (10.77.0.0/24 and on) are in use")

    def _command(self, script, *arguments):
        return [*self._root, "env", *self._settings, SCRIPTS / script, *map(str, arguments)]

    def _run(self, script, *arguments, timeout=60, **options):
        done = subprocess.run(
            self._command(script, *arguments),
            # Not the test's mark: hosts outlive it.
            env={"PATH": SYSTEM_PATH, "LANG": "C.UTF-8"},
            capture_output=True,
            text=True,
            timeout=timeout,
            **{"stdin": subprocess.DEVNULL, **options},
        )
        if done.returncode != 0:
            raise Failed(done.returncode, [script, *arguments], done.stdout, done.stderr)
        return done.stdout

    def _up(self, nodes):
        self._keeper = subprocess.Popen(
            self._command("keep"),
            env={"PATH": SYSTEM_PATH},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[self._lock.fileno()],
            start_new_session=True,
        )
        binds = (word for path in python_folders() for word in ("--bind", path))
        self._run("up", "--nodes", nodes, *self.OPTIONS, *binds, timeout=self.BOOT_SECONDS)
        self.hosts = ("login", *(f"node{number + 1}" for number in range(nodes)), *self.BESIDES)
        # A folder of the checkout that only its owner may enter would else show as the failure of some test.
        self.on("login", f"{self.python} -c 'import ipykernel'", user=self.user)

    def stop(self):
        """Takes all hosts down. Harmless when called again."""
        if self._keeper is not None:
            self._keeper.stdin.close()
            self._keeper.wait(60)
        self._lock.close()

    # --- hosts

    def address(self, host):
        """The IP address of a host."""
        return (self.state / "hosts" / host / "ip").read_text().strip()

    def traffic(self, host=None):
        """Bytes that have gone to and from a host, or this machine if none is named, over the hosts' network."""
        port = Path(f"/sys/class/net/{self._bridge}-{host}" if host else f"/sys/class/net/{self._bridge}")
        return sum(int((port / "statistics" / f"{way}_bytes").read_text()) for way in ("rx", "tx"))

    def fault(self, what, host, *more):
        """Breaks or mends a host: see `tests/testbed/fault`. All is mended after the test."""
        if what in LINK_FAULTS:
            self._broken.add(host)
        elif what == "kill":
            self._off.add(host)
        elif what in ("crash", "stop"):
            self._lacking.add((host, *more))
        self._run("fault", what, host, *more)
        if what == "heal":
            self._broken.discard(host)
        elif what == "start":
            self._lacking.discard((host, *more))
        elif what in ("boot", "fresh"):
            # What was changed in its memory and in its network goes with its power.
            for known in (self._off, self._broken, self._altered):
                known.discard(host)
            self._lacking = {(other, daemon) for other, daemon in self._lacking if other != host}

    def on(self, host, command, user=None, timeout=60, **options):
        """What a bash command prints on a host, run there by root or `user`, without ssh. Fails as it fails."""
        words = ["runuser", "-u", user, "--", "env", f"HOME=/home/{user}"] if user else []
        return self._run("on", host, *words, "bash", "-c", command, timeout=timeout, **options)

    def processes(self, host):
        """What runs on a host and is neither its own nor a daemon's: command lines by pid (the host's pids)."""
        lines = self._there(host, "processes").splitlines()
        return {int(pid): command for pid, _, command in (line.partition(" ") for line in lines)}

    def connections(self, host):
        """How many ssh clients are connected to a host."""
        return int(self._there(host, "connections"))

    def _there(self, host, function):
        return self.on(host, f". /etc/testbed/services; {function}")

    # --- hosts out of the ordinary; each is an ordinary one again after the test

    def _alter(self, host, command, **options):
        self._altered.add(host)
        self.on(host, command, **options)

    def write(self, host, path, text, user=USER):
        """Writes a file of `user`'s on a host, below its home unless the path is absolute."""
        self.on(host, f'cd; mkdir -p "$(dirname "{path}")"; cat > "{path}"', user=user, stdin=None, input=text)

    def shell(self, host, path):
        """Makes `path` the login shell, such as `/bin/csh`."""
        self._alter(host, rf"sed -i 's#^\({USER}:.*:\)[^:]*$#\1{path}#' /etc/passwd")

    def noexec(self, host, path="/tmp"):
        """Makes a folder one from which nothing can be executed."""
        self._alter(host, f"mount -t tmpfs -o mode=1777,noexec tb-noexec {path}")

    def small_home(self, host, size):
        """Gives the user an empty home with room for `size` bytes (or `64k`, `1m`)."""
        self._alter(host, f"mount -t tmpfs -o size={size},mode=700,uid=2001,gid=2001 tb-home /home/{USER}")

    def without_python(self, host):
        """Takes `python` and `python3` off the PATH; this environment's stays where it is."""
        self.without(host, "python*", "pypy*")

    def without(self, host, *programs):
        """Takes programs off the PATH: they are in `/run/bin` then."""
        patterns = " ".join(f"/usr/bin/{program}" for program in programs)
        self._alter(
            host,
            "mkdir /run/bin && mount --bind /usr/bin /run/bin && mount -t tmpfs -o mode=755 tb-bin /usr/bin"
            f" && /run/bin/cp -as /run/bin/. /usr/bin/ && rm -f {patterns}",
        )

    def full(self, host, path):
        """Makes a folder, for all, in which there is no room."""
        self._alter(host, f"mkdir {path} && mount -t tmpfs -o size=4k,mode=1777 tb-full {path} && ! cat /dev/zero > {path}/x")

    def share(self, path, size):
        """Gives all hosts one small file system in common, at a path where nothing is: what a quota looks like."""
        pids = [(self.state / "hosts" / host / "pid").read_text().split()[0] for host in self.hosts]
        self._altered.update(self.hosts)
        self._run("share", path, size, *pids)

    def unshare(self, path):
        """Takes it away again. All hosts are as they were before."""
        for host in self.hosts:
            self.on(host, f"umount --lazy {path} && rmdir {path}")
        self._altered.difference_update(self.hosts)

    def sshd(self, host, *lines):
        """Adds lines to a host's sshd_config, before all others; the first word on a matter counts."""
        text = "".join(f"{line}\n" for line in lines)
        self._alter(host, "cat >> /etc/ssh/sshd_config.d/test.conf && sshd -t", stdin=None, input=text)
        self.fault("restart", host, "sshd")

    def password(self, host, password, user=USER):
        """Gives a user a password. sshd asks for it if `sshd(host, "PasswordAuthentication yes")` says so."""
        self._alter(host, "chpasswd -c SHA512", stdin=None, input=f"{user}:{password}\n")

    def new_host_key(self, host):
        """Gives a host another key than the one in known_hosts."""
        key = "/etc/ssh/ssh_host_ed25519_key"
        self._alter(host, f"rm {key} && ssh-keygen -q -t ed25519 -N '' -f {key}")
        self.fault("restart", host, "sshd")

    def memory(self, host, size):
        """Limits the memory of all that runs on a host: `400m`. Raises `Unavailable`."""
        self._altered.add(host)
        try:
            self._run("fault", "memory", host, size)
        except Failed as failure:
            if failure.returncode != NO_LIMIT:
                raise
            raise Unavailable(failure.stderr.strip()) from failure

    # --- the machine's side

    @property
    def ssh_config(self):
        """`~/.ssh/config` of the test."""
        return self.home / ".ssh" / "config"

    def ssh(self, host, command, *options, timeout=30, **more):
        """What a command prints on a host, by the system's ssh; fails as it fails."""
        words = ["ssh", *options, "-o", "BatchMode=yes", host, command]
        given = {"capture_output": True, "text": True, "timeout": timeout, "stdin": subprocess.DEVNULL, **more}
        done = subprocess.run(words, **given)
        if done.returncode != 0:
            raise Failed(done.returncode, words, done.stdout, done.stderr)
        return done.stdout

    @contextmanager
    def used(self, folder, patch):
        """For one test (or the tests that share a world): HOME leads to the hosts, and afterwards no process may run and
        no file of Cellferry's lie on any of them. `folder` is short, and goes with the test."""
        self._make_home(folder, patch)
        try:
            yield self
            self._tidy()
        finally:
            self.home, self.left_within = None, 5
            self._mend()

    def _make_home(self, folder, patch):
        self.home = folder / "home"
        ssh = self.home / ".ssh"
        ssh.mkdir(parents=True, mode=0o700)
        patch.setenv("HOME", str(self.home))
        patch.delenv("SSH_AUTH_SOCK", raising=False)
        shutil.copy(self.state / "known_hosts", ssh)
        shutil.copy(self.state / "id_ed25519", ssh)
        (ssh / "id_ed25519").chmod(0o600)
        entries = [f"Host {host}\n    HostName {self.address(host)}\n    User {USER}\n" for host in self.hosts]
        for host in self.hosts[1:]:  # the same one, but by way of `login`
            entries.append(f"Host via-{host}\n    HostName {self.address(host)}\n    User {USER}\n    ProxyJump login\n")
        self.ssh_config.write_text("".join(entries))

        users = re.sub(rf"(?m)^((?:[^:\n]*:){{2}}{os.getuid()}:(?:[^:\n]*:){{2}})[^:\n]*", rf"\g<1>{self.home}", passwd())
        (self.home / "passwd").write_text(users)
        programs = folder / "bin"
        programs.mkdir()
        for name in ("ssh", "ssh-keygen", "ssh-add", "scp", "sftp"):
            program = programs / name
            program.write_text(
                f"#!/bin/sh\nNSS_WRAPPER_PASSWD='{self.home}/passwd' NSS_WRAPPER_GROUP=/etc/group"
                f' LD_PRELOAD={NAME_SERVICE} exec {shutil.which(name, path=SYSTEM_PATH)} "$@"\n'
            )
            program.chmod(0o755)
        patch.setenv("PATH", f"{programs}:{os.environ['PATH']}")

    def _tidy(self):
        """Looks over the hosts that are as they were before, and empties them. Fails if anything is left on one."""
        for host in self._broken - self._off:
            self.fault("heal", host)
        untidy = {host: None for host in self.hosts if host not in self._off}

        def all_tidy():
            for host in list(untidy):
                untidy[host] = self._there(host, "tidy")
                if not untidy[host]:
                    del untidy[host]
            return not untidy

        try:
            processes.wait_until(all_tidy, self.left_within, lambda: f"left on hosts: {untidy}")
        finally:
            self._altered.update(untidy)

    def _mend(self):
        """Every host is as it was before the test."""
        for host in self._off | self._altered | {host for host, _ in self._lacking}:
            self.fault("fresh", host)
        self._broken, self._off, self._lacking, self._altered = set(), set(), set(), set()


class Cluster(Bed):
    """A cluster that runs real Slurm: `login` with its controller, nodes of 4 CPUs, 2000 MB and 2 pretended GPUs each, and one
    /home for all of them. Beside it is `lab`, a host like those of every bed.

    Partitions: `batch` (the default), `short` (at most a minute), and `urgent`, whose jobs end those of the others if they need
    the room. Without accounting `sacct` says nothing, as on many small clusters."""

    OPTIONS = ("--slurm",)
    BESIDES = ("lab",)

    @classmethod
    def start(cls, root, nodes=3):
        return super().start(root, nodes)

    @property
    def nodes(self):
        """The hosts that run jobs."""
        return [host for host in self.hosts if host.startswith("node")]

    def slurm(self, command, user=USER, **options):
        """What a command prints on `login`, run there by `user` in its home, without ssh."""
        return self.on("login", f"cd; {command}", user=user, **options).strip()

    def job(self, number):
        """What Slurm's controller says of a job, as a dictionary. It knows it for five minutes after its end."""
        words = self.slurm(f"scontrol -o show job {number}", user=None).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def ended(self, number, seconds=30):
        """The job, once it has ended and left nothing behind."""
        going = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING")

        def job():
            found = self.job(number)
            return found if found["JobState"] not in going else None

        return processes.wait_until(job, seconds, lambda: f"job {number}: {self.job(number)}")

    def states(self):
        """The state of each node, in Slurm's words."""
        return dict(line.split() for line in self.slurm("sinfo -h -N -p batch -o '%N %T'").splitlines())

    def settle(self, seconds=60):
        """Waits until every node is free."""
        processes.wait_until(lambda: set(self.states().values()) == {"idle"}, seconds, lambda: f"nodes: {self.states()}")

    def _tidy(self):
        for host, daemon in sorted(self._lacking):
            if daemon != "sshd" and host not in self._off:
                self.fault("start", host, daemon)
        super()._tidy()

    def _mend(self):
        if "login" not in self._off:
            self.on("login", f"PATH=$PATH:/run/bin; scancel --user={USER}; scancel --user={OTHER_USER}")
        super()._mend()
        for host, state in self.states().items():
            if state.startswith("drain"):
                self.on("login", f"scontrol update NodeName={host} State=RESUME")
        self.settle()


class AccountedCluster(Cluster):
    """A cluster with accounting: `sacct` knows how jobs ended, and by whom."""

    OPTIONS = ("--slurm", "--accounting")
    BOOT_SECONDS = 120


def passwd():
    """The user database of this machine."""
    return subprocess.run(["getent", "passwd"], capture_output=True, text=True, check=True).stdout


def claim(slot):
    """The lock of a slot, or None if another process has it. It goes with its last holder, and is no file."""
    lock = socket.socket(socket.AF_UNIX)
    try:
        lock.bind(f"\0cellferry-test-bed-{slot}")
    except OSError:
        lock.close()
        return None
    return lock


def sweep(root):
    """Takes down beds whose keepers were killed, too."""
    for state in Path("/tmp").glob("cft-bed-*"):
        slot = state.name.rpartition("-")[2]
        lock = claim(slot)
        if lock is not None:
            with lock:
                Bed(root, slot, lock)._run("down")
