"""Pages over a path with a smaller MTU in the middle, whose router cannot say so."""

SERVER, PROBING = "10.1.0.2", "10.1.0.3"


def loads(lab, page, seconds=30):
    command = ["curl", "-sSo", "/dev/null", "-m", str(seconds), f"http://{page}"]
    return lab.node("client").run(command, check=False).ok


def test_small_pages_arrive_and_large_ones_hang(lab):
    assert loads(lab, f"{SERVER}/small")
    assert not loads(lab, f"{SERVER}/large", seconds=3)


def test_the_server_never_learns_the_mtu_of_the_path(lab):
    server = lab.node("server")
    server.run(["ping", "-c1", "-W1", "-M", "do", "-s", "1472", "10.3.0.9"], check=False)
    assert "mtu" not in server.run(["ip", "-d", "route", "get", "10.3.0.9"]).stdout


def test_with_probing_by_the_server_large_pages_arrive(lab):
    assert loads(lab, f"{PROBING}/small")
    assert loads(lab, f"{PROBING}/large")
