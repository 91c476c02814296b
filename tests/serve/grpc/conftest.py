import pytest

from tests.serve.grpc.echo import EchoServer


@pytest.fixture(scope="module")
def server():
    running = EchoServer()
    yield running
    running.stop()
    assert running.errors == []
