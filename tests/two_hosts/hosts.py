"""Several hosts on one machine: network, process and mount namespaces, each with its own address,
home, /tmp and SSH server.

What a host shares with this machine is its programs and the Python environment, read as they are.
"""

import contextlib
import ctypes
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import ROOT

NETWORK = "10.77.0"
PROGRAMS = ("ip", "unshare", "nsenter", "rsync", "ssh", "ssh-keygen", "setsid")

_INIT = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
while True:
    try:
        os.waitpid(-1, 0)
    except ChildProcessError:
        time.sleep(0.2)
"""
"""The first process of a host: takes in orphans, as any init does."""


def missing() -> str | None:
    """Why hosts cannot be made here, or None if they can."""
    if os.geteuid() != 0:
        return "needs root, for network and mount namespaces"
    absent = [name for name in PROGRAMS if shutil.which(name) is None]
    if absent or not Path("/usr/sbin/sshd").exists():
        return f"needs {', '.join(absent) or 'sshd'}"
    done = subprocess.run(
        ["unshare", "--net", "--pid", "--mount", "--fork", "true"], capture_output=True, check=False
    )
    return None if done.returncode == 0 else "namespaces are not allowed here"


@dataclass
class Host:
    """One of the hosts."""

    name: str
    address: str
    folder: Path
    """On this machine; the host's home is in it."""

    interface: str
    bridge: str
    """Name of the network namespace with the switch."""

    process: subprocess.Popen[bytes] | None = None
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def home(self) -> Path:
        """The host's /root, seen from this machine."""
        return self.folder / "root"

    @property
    def init(self) -> int:
        """Number of the host's first process, seen from this machine."""
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        end = time.monotonic() + 10
        while time.monotonic() < end:
            found = children.read_text().split()
            if found:
                return int(found[0])
            time.sleep(0.05)
        raise AssertionError(f"the host {self.name} did not start")

    def command(self, text: str) -> list[str]:
        """A shell command as it is run in the host."""
        path = f"{Path(sys.executable).parent}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
        environment = {
            "HOME": "/root",
            "USER": "root",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "PATH": f"{path}:/sbin:/bin",
            "RAY_USAGE_STATS_ENABLED": "0",
            "COLUMNS": "200",
        }
        variables = [f"{name}={value}" for name, value in environment.items()]
        enter = ["nsenter", "-t", str(self.init), "-n", "-p", "-m", "-u", "-i"]
        return [*enter, "env", "-i", *variables, "bash", "-c", f"cd; {text}"]

    def run(self, text: str, timeout_s: float = 240, check: bool = True) -> str:
        """Runs a shell command to its end; what it printed."""
        done = subprocess.run(
            self.command(text), capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if check:
            assert done.returncode == 0, f"{self.name}$ {text}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    def start(self, text: str, log: str) -> "subprocess.Popen[str]":
        """Starts a shell command; its output goes to a file in the host's home."""
        target = (self.home / log).open("w")
        process = subprocess.Popen(
            self.command(text), stdout=target, stderr=target, text=True, start_new_session=True
        )
        self.started.append(process)
        return process

    def read(self, file: str) -> str:
        """A text file of the host's home, or nothing."""
        with contextlib.suppress(OSError):
            return (self.home / file).read_text()
        return ""

    def cut_off(self) -> None:
        """Takes the host's cable out."""
        self._link("down")

    def plug_in(self) -> None:
        """Puts it back."""
        self._link("up")

    def _link(self, state: str) -> None:
        run("ip", "-n", self.bridge, "link", "set", self.interface, state)


def run(*args: object) -> None:
    done = subprocess.run([str(word) for word in args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{args}\n{done.stderr}"


@contextlib.contextmanager
def hosts(folder: Path, *names: str) -> Iterator[dict[str, Host]]:
    """Hosts for as long as the block runs, on one switch, each trusting one key.

    The key is ~/.ssh/id_ed25519 of every host, as it would be of a person who has two machines.
    """
    tag = f"d{os.getpid() % 100000}"
    switch = f"{tag}sw"
    made: dict[str, Host] = {}
    key = folder / "key"
    folder.mkdir(parents=True, exist_ok=True)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
    run("ip", "netns", "add", switch)
    try:
        run("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
        run("ip", "-n", switch, "link", "set", "br0", "up")
        for number, name in enumerate(names, start=1):
            interface = f"{tag}p{number}"
            made[name] = Host(name, f"{NETWORK}.{number}", folder / name, interface, switch)
            _start(made[name], f"{tag}n{number}", key)
        for host in made.values():
            _wait_for_ssh(host)
        yield made
    finally:
        for host in made.values():
            _end(host)
        for number in range(1, len(names) + 1):
            subprocess.run(["ip", "netns", "del", f"{tag}n{number}"], check=False)
        subprocess.run(["ip", "netns", "del", switch], check=False)


def _start(host: Host, network: str, key: Path) -> None:
    inner = f"{host.interface}i"
    run("ip", "netns", "add", network)
    cable = ["type", "veth", "peer", "name", host.interface, "netns", host.bridge]
    run("ip", "-n", host.bridge, "link", "add", inner, "netns", network, *cable)
    run("ip", "-n", host.bridge, "link", "set", host.interface, "master", "br0", "up")
    run("ip", "-n", network, "addr", "add", f"{host.address}/24", "dev", inner)
    run("ip", "-n", network, "link", "set", inner, "up")
    run("ip", "-n", network, "link", "set", "lo", "up")

    ssh = host.home / ".ssh"
    ssh.mkdir(parents=True, mode=0o700)
    shutil.copy(key, ssh / "id_ed25519")
    shutil.copy(key.with_suffix(".pub"), ssh / "authorized_keys")
    host.home.chmod(0o700)
    (host.folder / "tmp").mkdir(mode=0o1777)
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", host.folder / "hostkey")
    settings = {
        "Port": 22,
        "HostKey": host.folder / "hostkey",
        "PidFile": "none",
        "PermitRootLogin": "prohibit-password",
        "PasswordAuthentication": "no",
        "UsePAM": "no",
        "StrictModes": "no",
        "Subsystem": "sftp internal-sftp",
        "MaxStartups": 50,
    }
    configuration = "".join(f"{name} {value}\n" for name, value in settings.items())
    (host.folder / "sshd_config").write_text(configuration)
    Path("/run/sshd").mkdir(exist_ok=True)
    lines = ["set -e", "mount --make-rprivate /"]
    for folder, target in _visible_folders(host).items():
        lines += [f"mkdir -p {target}", f"mount --bind {folder} {target}"]
    lines += [
        f"cp {host.folder}/sshd_config {host.folder}/hostkey {host.home}/.ssh/",
        f"sed -i 's#^HostKey .*#HostKey /root/.ssh/hostkey#' {host.home}/.ssh/sshd_config",
        f"mount --rbind {host.home} /root",
        f"mount --rbind {host.folder}/tmp /tmp",
        "mount -t tmpfs -o size=2g tmpfs /dev/shm",
        f"hostname {host.name}",
        "/usr/sbin/sshd -f /root/.ssh/sshd_config",
        f"exec {shlex.quote(sys.executable)} -c {shlex.quote(_INIT)}",
    ]
    script = host.folder / "init.sh"
    script.write_text("\n".join(lines))
    args = ["ip", "netns", "exec", network, "unshare", "--pid", "--mount", "--uts", "--ipc"]
    args += ["--fork", "--mount-proc", "--kill-child", "bash", str(script)]
    host.process = subprocess.Popen(
        args,
        stdin=subprocess.DEVNULL,
        stdout=(host.folder / "init.log").open("w"),
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_end_with_parent,
    )


def _visible_folders(host: Host) -> dict[Path, Path]:
    """Python and the checkout, where the host's own home or /tmp would hide them."""
    needed = {Path(folder).resolve() for folder in (sys.base_prefix, sys.prefix, ROOT)}
    outermost = {folder for folder in needed if not needed & set(folder.parents)}
    hidden = {Path("/root"): host.home, Path("/tmp"): host.folder / "tmp"}
    return {
        folder: replacement / folder.relative_to(original)
        for folder in outermost
        for original, replacement in hidden.items()
        if folder.is_relative_to(original)
    }


def _end_with_parent() -> None:
    """Should the tests be killed, the host ends with them."""
    parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
    ctypes.CDLL(None).prctl(parent_death_signal, signal.SIGKILL)


def _wait_for_ssh(host: Host) -> None:
    end = time.monotonic() + 20
    while time.monotonic() < end:
        assert host.process is not None and host.process.poll() is None, (
            host.folder / "init.log"
        ).read_text()
        done = subprocess.run(
            host.command("bash -c ': < /dev/tcp/127.0.0.1/22'"), capture_output=True, check=False
        )
        if done.returncode == 0:
            return
        time.sleep(0.1)
    raise AssertionError((host.folder / "init.log").read_text())


def _end(host: Host) -> None:
    """With the first process of its own, all of a host's end."""
    for process in host.started:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if host.process is not None and host.process.poll() is None:
        with contextlib.suppress(AssertionError, ProcessLookupError):
            os.kill(host.init, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            host.process.kill()
        host.process.wait()
