"""Pipelines are called from scripts, notebooks, threads and web handlers; each is a different loop and thread.

From scripts all other tests call them. On Modal these are slow: the flow has a loop and a thread of its own whoever
calls it, and what it does there `test_runs.py` shows.
"""

from __future__ import annotations

import asyncio
import http.server
import socket
import threading

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from tests.integration.lab import Lab, Ran
from tests.serving import serving


def run(lab: Lab, place: str) -> Ran:
    import shapes

    return lab.run(shapes.diamond, lab.stack(place), settings={"execution_mode": "pipeline"})


def check(lab: Lab, place: str, ran: Ran) -> None:
    assert ran.error is None
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")
    assert ran.steps == dict.fromkeys(("one", "left", "right", "bottom"), "completed")
    assert ran.states == {"diamond": "Completed"}
    assert len(lab.sandboxes(ran)) == (place == "modal")
    assert not lab.running(ran)


@pytest.mark.at("process")
def test_inside_a_running_loop_as_in_a_notebook(lab: Lab, place: str) -> None:
    """The loop of the main thread."""

    async def cell() -> Ran:
        return run(lab, place)

    check(lab, place, asyncio.run(cell()))


@pytest.mark.slow  # a web handler is one
def test_in_a_thread(lab: Lab, place: str) -> None:
    ran: list[Ran] = []
    thread = threading.Thread(target=lambda: ran.append(run(lab, place)))
    thread.start()
    thread.join()
    check(lab, place, ran[0])


@pytest.mark.slow  # the asynchronous one below isn't in the main thread either
def test_in_a_web_handler_with_a_thread_of_its_own(lab: Lab, place: str) -> None:
    ran: list[Ran] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            ran.append(run(lab, place))
            self.send_response(200)
            self.end_headers()

    with serving(Handler) as server:
        answer = httpx.post(f"http://127.0.0.1:{server.server_address[1]}/run", timeout=None, trust_env=False)
    assert answer.status_code == 200
    check(lab, place, ran[0])


@pytest.mark.at("process")
def test_in_an_asynchronous_web_handler(lab: Lab, place: str) -> None:
    """Inside the server's running loop, in a thread that isn't the main one."""
    ran: list[Ran] = []
    threads: list[threading.Thread] = []

    app = FastAPI()

    @app.post("/run")
    async def handle() -> None:
        threads.append(threading.current_thread())
        ran.append(run(lab, place))

    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            answer = httpx.post(f"http://127.0.0.1:{listening.getsockname()[1]}/run", timeout=None, trust_env=False)
        finally:
            server.should_exit = True
            thread.join()
    assert answer.status_code == 200
    assert threads == [thread]
    check(lab, place, ran[0])
