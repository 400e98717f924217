"""A client behind a router that translates addresses."""


def test_the_client_has_a_page_from_outside(lab):
    assert lab.node("cliente1").run(["curl", "-fsS", "-m", "10", "http://192.168.122.1/"]).ok


def test_the_server_sees_the_router(lab):
    lab.node("cliente1").run(["curl", "-fsS", "-m", "10", "http://192.168.122.1/seen"], check=False)
    (line,) = [line for line in lab.node("world").logs("web").splitlines() if "/seen" in line][-1:]
    assert line.startswith("192.168.122.10 ")


def test_nobody_outside_reaches_the_client(lab):
    assert not lab.node("world").run(["ping", "-c1", "-W1", "10.0.0.101"], check=False).ok
