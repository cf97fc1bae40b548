"""What stands behind the question mark of redis.url: what is refused with which remedy, where it is said to stand, and what TLS is told."""

from __future__ import annotations

import os
import re
import ssl
import subprocess
import sys
from pathlib import Path

import pytest

from dedupe.redis_tls import tls_context
from parshall.errors import FAILED, USAGE
from parshall.settings import BadSettings, load_settings

PROJECT = Path(__file__).resolve().parents[2]


def problems(url: str) -> list[str]:
    with pytest.raises(BadSettings) as caught:
        load_settings(None, environment={}, options={"redis.url": url})
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("ssl_ca_certs=/gone/ca.pem", "ssl_ca_certs /gone/ca.pem cannot be read: No such file or directory; allowed: a PEM file that this"),
        ("ssl_certfile=/gone/cert.pem", "ssl_certfile /gone/cert.pem cannot be read: No such file or directory; allowed: a PEM file that"),
        ("ssl_keyfile=/gone/key.pem", "ssl_keyfile /gone/key.pem cannot be read: No such file or directory; allowed: a PEM file that this"),
        ("ssl_keyfile={here}", "ssl_keyfile is of no use without its certificate; allowed: ssl_certfile too, or neither"),
        ("ssl_ca_path=/gone", "ssl_ca_path /gone is no directory; allowed: a directory of certificates"),
        ("ssl_ca_certs={here}", "ssl_ca_certs {here} cannot be used (NO_CERTIFICATE_OR_CRL_FOUND); allowed: a PEM file with certificates"),
        ("ssl_certfile={here}", "ssl_certfile {here} cannot be used ("),
        ("ssl_ca_data=hidden", "ssl_ca_data cannot be used ("),
        (
            "ssl_cert_reqs=bogus",
            "ssl_cert_reqs bogus cannot be used (Invalid SSL Certificate Requirements Flag: bogus); allowed: none, opt",
        ),
        ("ssl_ciphers=bogus", "ssl_ciphers bogus cannot be used (No cipher can be selected.); allowed: names of ciphers"),
        ("ssl_min_version=5", "ssl_min_version 5 cannot be used ("),
        (f"ssl_min_version={10**20}", f"ssl_min_version {10**20} cannot be used ("),
        ("ssl_min_version=new", "Invalid value for 'ssl_min_version' in connection URL"),
        ("ssl_ca_cert=/etc/ca.pem", "ssl_ca_cert is no option of TLS; allowed: ssl_cert_reqs, ssl_ca_certs"),
        ("db=first", "Invalid value for 'db' in connection URL"),
    ],
)
def test_what_cannot_be_used_is_told_without_the_password(option: str, told: str) -> None:
    option, told = option.format(here=__file__), told.format(here=__file__)
    (problem,) = problems(f"rediss://user:hidden@localhost:1/0?{option}")
    assert problem.startswith(f"--redis: redis.url: {told}")
    assert "hidden" not in problem


def test_options_of_tls_are_of_no_use_without_it() -> None:
    """Whoever gives them believes that nobody can read the password on its way."""
    (problem,) = problems("redis://localhost?ssl_cert_reqs=required")
    assert problem == (
        "--redis: redis.url: ssl_cert_reqs is of no use without TLS; allowed: rediss:// in the place of redis://, or no such option"
    )


def test_of_several_each_is_looked_at() -> None:
    assert [
        re.sub("; allowed.*", "", problem)
        for problem in problems("redis://a,rediss://b?ssl_ca_certs=/x.pem,rediss://c?ssl_ca_certs=/y.pem")
    ] == [
        f"--redis: redis.url: of shard {n}, ssl_ca_certs /{path}.pem cannot be read: No such file or directory"
        for n, path in ((1, "x"), (2, "y"))
    ]


@pytest.mark.parametrize(("command", "code"), [(("check", "{file}"), FAILED), (("ingest", "--config", "{file}"), USAGE)])
@pytest.mark.parametrize("place", ["{file}:2", "PARSHALL_REDIS_URL"])
def test_the_place_is_told_before_anything_starts(tmp_path: Path, command: tuple[str, ...], code: int, place: str) -> None:
    file, url = tmp_path / "parshall.toml", "rediss://:hidden@localhost:1/0?ssl_ca_certs=/gone/ca.pem"
    by_variable = place == "PARSHALL_REDIS_URL"
    file.write_text("" if by_variable else f'[redis]\nurl = "{url}"\n')
    environment = {**os.environ, **({"PARSHALL_REDIS_URL": url} if by_variable else {})}
    words = [sys.executable, "-m", "parshall", *(word.format(file=file) for word in command)]
    ended = subprocess.run(words, capture_output=True, text=True, cwd=PROJECT, env=environment)
    told = f"{place.format(file=file)}: redis.url: ssl_ca_certs /gone/ca.pem cannot be read: No such file or directory; allowed: a PEM file"
    assert (ended.returncode, ended.stdout) == (code, "")
    assert ended.stderr.startswith(told) and ended.stderr.count("\n") == 1


def test_what_can_be_used_is() -> None:
    load_settings(None, environment={}, options={"redis.url": "rediss://h?ssl_cert_reqs=none&ssl_min_version=772&db=3&socket_timeout=5"})
    strict = tls_context({}, tls=True)
    assert strict is not None and (strict.verify_mode, strict.check_hostname) == (ssl.CERT_REQUIRED, True)
    lax = tls_context({"ssl_check_hostname": "no", "ssl_min_version": 772}, tls=True)
    assert lax is not None and (lax.check_hostname, lax.minimum_version) == (False, ssl.TLSVersion.TLSv1_3)
    assert tls_context({"db": 3}, tls=False) is None


def test_who_asks_no_redis_need_not_have_its_files(tmp_path: Path) -> None:
    """A rater, whose pod has no reason for them; a reload, which follows nothing of Redis. What else is wrong is told."""
    file = tmp_path / "parshall.toml"
    file.write_text('[redis]\nurl = "rediss://r:6380/0?ssl_ca_certs=/gone/ca.pem&ssl_certfile=/gone/c.pem&ssl_keyfile=/gone/k.pem"\n')
    load_settings(str(file), environment={}, options={}, asks_redis=False)
    words = [sys.executable, "-m", "parshall", "rate", "--config", str(file)]
    ended = subprocess.run(words, capture_output=True, text=True, cwd=PROJECT)
    assert ended.returncode == USAGE and "needs Kafka" in ended.stderr and "redis" not in ended.stderr
    for option, told in (
        ("ssl_cert_reqs=bogus", "cannot be used"),
        ("ssl_ca_cert=/x", "is no option of TLS"),
        ("db=first", "Invalid value"),
    ):
        with pytest.raises(BadSettings, match=told):
            load_settings(None, environment={}, options={"redis.url": f"rediss://r?{option}"}, asks_redis=False)
