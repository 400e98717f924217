"""Follow a packet through flannel's overlay.

Jupyter and editors show the cells of this file; `sudo python overlay.py` runs all of them.
"""

# %% [markdown]
# # A packet from container to container
# Two nodes with Docker, joined by flannel's VXLAN. The lab is removed at the end of the `with`
# block, also after an error.

# %%
import testbed

with testbed.lab("two-node", name="packet") as lab:
    client, server = lab.container("container-1"), lab.container("container-2")
    node = lab.node("node1")

    # %% The page says which client the server has seen.
    page = client.run(["curl", "-s", f"http://{server.address}/"]).json()
    print(f"{server.name} saw {page['client']}; {client.name} is {client.address}")
    assert page["client"].startswith(client.address)

    # %% The way: a route to flannel.1, an entry for the peer's MAC address, the peer's node.
    (route,) = node.run(["ip", "-j", "route", "get", server.address]).json()
    (peer,) = node.run(["bridge", "-j", "fdb", "show", "dev", "flannel.1"]).json()
    print(f"to {server.address} by {route['dev']}, in UDP to {peer['dst']}")
    assert (route["dev"], peer["dst"]) == ("flannel.1", "10.168.0.3")

    # %% Encapsulation costs 50 octets (RFC 7348): Ethernet 14, IPv4 20, UDP 8, VXLAN 8.
    links = {link["ifname"]: link for link in node.run(["ip", "-j", "link"]).json()}
    print({name: links[name]["mtu"] for name in ("eth0", "flannel.1")})
    assert links["eth0"]["mtu"] - links["flannel.1"]["mtu"] == 14 + 20 + 8 + 8

    # %% Without the entry nothing arrives.
    entry = [peer["mac"], "dev", "flannel.1", "dst", peer["dst"], "self"]
    node.run(["bridge", "fdb", "del", *entry])
    lost = client.run(["ping", "-c1", "-W1", server.address], check=False)
    node.run(["bridge", "fdb", "add", *entry, "permanent"])
    print("without the entry:", "an answer" if lost.ok else "no answer")
    assert not lost.ok
