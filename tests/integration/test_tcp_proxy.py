"""The TCP proxy does to connections what it says: other tests rest on that."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from tests.tcp_proxy import TcpProxy

SILENCE_S = 0.2  # long enough for what is on its way on the loopback


class Echo:
    """Answers every line with its name and the line; keeps what it heard."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.heard: list[bytes] = []
        self.ended = asyncio.Event()  # some connection came to its end
        self.reset = False
        self.server: asyncio.Server | None = None

    async def start(self) -> tuple[str, int]:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        address: tuple[str, int] = self.server.sockets[0].getsockname()
        return address

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                self.heard.append(line)
                writer.write(f"{self.name} ".encode() + line)
        except ConnectionResetError:
            self.reset = True
        self.ended.set()
        writer.close()


Client = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def ask(client: Client, line: bytes) -> bytes:
    client[1].write(line)
    return await asyncio.wait_for(client[0].readline(), 10)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def nothing_comes(client: Client) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client[0].read(1), SILENCE_S)


@pytest.fixture
async def echo() -> AsyncIterator[Echo]:
    echo = Echo("one")
    yield echo
    if echo.server is not None:
        echo.server.close()


@pytest.fixture
async def proxy(echo: Echo) -> AsyncIterator[TcpProxy]:
    proxy = TcpProxy(await echo.start())
    await proxy.start()
    yield proxy
    await proxy.stop()


@pytest.fixture
async def client(proxy: TcpProxy) -> AsyncIterator[Client]:
    client = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await ask(client, b"a\n") == b"one a\n"
    assert proxy.connections == 1
    yield client
    client[1].transport.abort()


async def test_replies_are_lost_and_nothing_else(echo: Echo, proxy: TcpProxy, client: Client) -> None:
    proxy.replies_lost = True
    client[1].write(b"b\n")
    await until(lambda: echo.heard == [b"a\n", b"b\n"])
    await nothing_comes(client)
    proxy.replies_lost = False
    assert await ask(client, b"c\n") == b"one c\n"


async def test_a_cut_is_silent_on_both_sides(echo: Echo, proxy: TcpProxy, client: Client) -> None:
    proxy.cut_off = True
    client[1].write(b"b\n")
    await nothing_comes(client)
    assert echo.heard == [b"a\n"] and not echo.ended.is_set()


async def test_a_reset_reaches_both_sides(echo: Echo, proxy: TcpProxy, client: Client) -> None:
    proxy.reset()
    with pytest.raises(ConnectionResetError):
        await client[0].readline()
    await echo.ended.wait()
    assert echo.reset
    await until(lambda: proxy.connections == 0)


async def test_half_open_is_seen_by_the_server_alone(echo: Echo, proxy: TcpProxy, client: Client) -> None:
    proxy.leave_half_open()
    await echo.ended.wait()
    client[1].write(b"b\n")
    await nothing_comes(client)
    assert echo.heard == [b"a\n"] and proxy.connections == 0
    other = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await ask(other, b"c\n") == b"one c\n"
    other[1].close()


async def test_a_delay_keeps_the_order(proxy: TcpProxy, client: Client) -> None:
    proxy.delay_s = 0.05
    start_s = asyncio.get_running_loop().time()
    for number in range(5):
        client[1].write(b"%d\n" % number)
    assert [await client[0].readline() for _ in range(5)] == [b"one %d\n" % number for number in range(5)]
    assert asyncio.get_running_loop().time() - start_s >= 2 * proxy.delay_s, "there and back"


async def test_a_slow_way_carries_so_many_bytes_a_second_and_replies_at_once(proxy: TcpProxy, client: Client) -> None:
    proxy.bytes_per_s = 1_000_000
    start_s = asyncio.get_running_loop().time()
    for number in range(5):
        await ask(client, b"%d" % number + b"x" * 20_000 + b"\n")
    assert asyncio.get_running_loop().time() - start_s >= 0.1, "five times twenty thousand"


async def test_new_connections_go_to_another_server(proxy: TcpProxy, client: Client) -> None:
    two = Echo("two")
    proxy.server = await two.start()
    assert await ask(client, b"b\n") == b"one b\n"
    other = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await ask(other, b"c\n") == b"two c\n"
    other[1].close()
    assert two.server is not None
    two.server.close()


async def test_without_a_server_connections_are_reset(proxy: TcpProxy) -> None:
    proxy.server = None
    client = await asyncio.open_connection("127.0.0.1", proxy.port)
    with pytest.raises(ConnectionResetError):
        await client[0].readline()


async def test_the_server_may_be_a_unix_socket(tmp_path: Path, proxy: TcpProxy) -> None:
    echo = Echo("unix")
    server = await asyncio.start_unix_server(echo.serve, tmp_path / "socket")
    proxy.server = tmp_path / "socket"
    client = await asyncio.open_connection("127.0.0.1", proxy.port)
    assert await ask(client, b"a\n") == b"unix a\n"
    client[1].close()
    server.close()
