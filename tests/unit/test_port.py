"""Two ports of one service."""

from __future__ import annotations

import socket

import pytest

from parshall.errors import USAGE, Stop
from parshall.port import reserved
from parshall.settings import Settings


@pytest.mark.parametrize("names", [("localhost", "127.0.0.1"), ("127.0.0.1", "localhost"), ("127.1", "127.0.0.1")])
def test_one_place_under_two_names_is_not_two(names: tuple[str, str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    listen, admin = (f"{name}:{port}" for name in names)
    with pytest.raises(Stop, match=f"{admin} is where --listen is") as stop, reserved(Settings(listen=listen, admin_listen=admin)):
        pass
    assert stop.value.code == USAGE


def test_two_places_are_reserved() -> None:
    with reserved(Settings(listen="127.0.0.1:0", admin_listen="localhost:0")) as addresses:
        assert addresses.admin is not None and addresses.admin.port not in (0, addresses.public.port)
