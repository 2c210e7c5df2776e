"""The client of Python, python-socketio, as a visitor and as an agent, against the gateway at GATEWAY_URL.

By polling it sends in bursts of five: its Engine.IO takes no more than 16 packets in one answer to a poll, from the Node
server as from this one, and what is said comes back as an ack and as a `message`, to all who are in the session.
"""

import os
import sys
import threading
import time

import socketio

URL = os.environ["GATEWAY_URL"]
SOON = 20
BURST = 5
BURSTS = 6


def until(what, condition):
    """Waits for a state."""
    end = time.monotonic() + SOON
    while not condition():
        if time.monotonic() > end:
            sys.exit(f"waited {SOON} s in vain: {what}")
        time.sleep(0.01)


def connected(transports):
    client = socketio.Client(reconnection=False)
    heard = []
    client.on("message", heard.append)
    client.connect(URL, transports=transports, wait_timeout=SOON)
    return client, heard


def send(client, event, session, contents):
    """Sends in one burst, and returns the acks in the order of what was sent."""
    acks = [None] * len(contents)
    done = threading.Semaphore(0)

    def ack_of(n):
        def ack(answer):
            acks[n] = answer
            done.release()
        return ack

    for n, content in enumerate(contents):
        client.emit(event, {"sessionId": session, "content": content}, callback=ack_of(n))
    for _ in contents:
        if not done.acquire(timeout=SOON):
            sys.exit(f"no ack to {event}: {acks}")
    return acks


def talk(transports):
    visitor, heard = connected(transports)
    session = visitor.call("init_session", {"sessionId": None}, timeout=SOON)["sessionId"]
    agent, also_heard = connected(transports)
    assert agent.call("admin-join-session", {"sessionId": session}, timeout=SOON)["sessionId"] == session
    said = []
    for burst in range(BURSTS):
        event, client = [("user_message", visitor), ("admin_message", agent)][burst % 2]
        contents = [f"{burst}.{n} ü🙂" for n in range(BURST)]
        acks = send(client, event, session, contents)
        assert all(ack["status"] in ("stored", "accepted") for ack in acks), acks
        said += contents
        # The next burst would come on top of what this one brings.
        until("what was said", lambda: len(heard) == len(said) and len(also_heard) == len(said))
    for one in (heard, also_heard):
        assert [message["content"] for message in one] == said, one
    last = heard[-1]["id"]
    visitor.disconnect()
    refused = agent.call("user_message", {"sessionId": session, "content": 42}, timeout=SOON)
    assert refused["error"]["code"] == "invalid_payload", refused
    send(agent, "admin_message", session, ["while away"])
    until("it is stored", lambda: also_heard[-1]["content"] == "while away")
    back, _ = connected(transports)
    ack = back.call("init_session", {"sessionId": session, "after": last}, timeout=SOON)
    assert ack["resumed"] and [message["content"] for message in ack["messages"]] == ["while away"], ack
    for client in (agent, back):
        client.disconnect()
    print(f"python-socketio by {' and '.join(transports)}: {len(said)} messages in bursts of {BURST}, heard by both in order")


for way in (["polling"], ["websocket"], ["polling", "websocket"]):
    talk(way)
