"""Pipelines are called from scripts, notebooks, threads and web handlers; each is a different loop and thread."""

from __future__ import annotations

import asyncio
import http.server
import threading

import httpx
import pytest

from tests.integration.lab import Lab, Ran


def run(lab: Lab) -> Ran:
    import shapes

    return lab.run(shapes.chain, lab.stack("process"), settings={"execution_mode": "pipeline"}, length=2)


def check(ran: Ran) -> None:
    assert ran.error is None
    assert (ran.status, ran.flow_run.state.name) == ("completed", "Completed")


def test_inside_a_running_loop_as_in_a_notebook(lab: Lab) -> None:
    async def cell() -> Ran:
        return run(lab)

    check(asyncio.run(cell()))


@pytest.mark.slow  # a web handler is one
def test_in_a_thread(lab: Lab) -> None:
    ran: list[Ran] = []
    thread = threading.Thread(target=lambda: ran.append(run(lab)))
    thread.start()
    thread.join()
    check(ran[0])


def test_in_a_web_handler(lab: Lab) -> None:
    ran: list[Ran] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            ran.append(run(lab))
            self.send_response(200)
            self.end_headers()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        answer = httpx.post(f"http://127.0.0.1:{server.server_address[1]}/run", timeout=180)
    finally:
        server.shutdown()
        server.server_close()
    assert answer.status_code == 200
    check(ran[0])
