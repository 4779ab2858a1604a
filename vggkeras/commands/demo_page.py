"""Serve the page of `python -m vggkeras demo --ui`, drawn by Gradio; it sends nothing out."""

from __future__ import annotations

import importlib.util
import os
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vggkeras.commands.common import Compute, console, print_note
from vggkeras.errors import InputError

if TYPE_CHECKING:
    from vggkeras.report.side_by_side import Models

TEMPLATE = Path(__file__).with_name("demo.html.jinja")
# Gradio counts its users and looks for a newer release, unless told not to before it is imported.
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
# Whatever a release of Gradio may ask the browser for, it comes from this process or not at all.
POLICY = (
    "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'; "
    "frame-ancestors 'self'"
)

LOOPBACK = ("127.0.0.1", "::1", "localhost")
QUEUED = 32  # pictures that wait for their answers


def serve(paths: Sequence[Path], host: str, port: int) -> int:
    """Load models, and answer pictures in the browser until interrupted.

    Args:
        paths: of model files, or of the folders of runs and exports.
        host: the address to listen at.
        port: 0 is any that is free.

    Raises:
        InputError (a ValueError): no Gradio; nobody can listen there; models that are not there,
            give no probabilities, or have different classes.
    """
    if importlib.util.find_spec("gradio") is None:
        raise InputError(
            "The page needs Gradio, which is not installed: pip install 'vggkeras[ui]'."
        )
    with listening(host, port) as listener, tempfile.TemporaryDirectory() as folder:
        from vggkeras.report.side_by_side import Models, model_files, write_examples

        predictors = Compute().load(*model_files(paths))
        with console.status("loading the models"):
            models = Models(predictors)
        try:
            examples = write_examples(predictors[0], Path(folder))
        except InputError as error:  # the page is as useful without
            print_note(f"no examples: {error}")
            examples = []
        # Uploaded pictures lie there, and go with it.
        os.environ.update(QUIET, GRADIO_TEMP_DIR=str(Path(folder, "uploads")))
        import uvicorn

        page = application(models, examples, host)
        config = uvicorn.Config(page, log_level="warning", timeout_graceful_shutdown=1)
        shown = f"[{host}]" if ":" in host else host
        print_note(f"http://{shown}:{listener.getsockname()[1]}/ (Ctrl-C ends it)")
        uvicorn.Server(config).run(sockets=[listener])
    return 0


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises:
        InputError (a ValueError): the port is in use or not allowed; no such address.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"The page cannot be served at {host}, port {port}: {reason}; give another --port, or "
            "--host."
        ) from error


def drawn(models: Models, path: str | None) -> str:
    """Return the HTML of a picture's answers, or of why there are none."""
    from vggkeras.pages import render

    problem = ""
    try:
        shown = models.answer(Path(path)) if path else None
    except InputError as error:
        shown, problem = None, str(error)
    return render(TEMPLATE, shown=shown, problem=problem, models=models)


def uploaded(path: str) -> str:
    """Return the path of a picture that was uploaded, or is an example.

    A client may name any path, and Gradio would read it, or fetch it where it is a URL.

    Raises:
        InputError (a ValueError): it lies elsewhere.
    """
    if not Path(path).resolve().is_relative_to(Path(os.environ["GRADIO_TEMP_DIR"]).resolve()):
        raise InputError("Expected a picture that was uploaded to this page.")
    return path


def refusal(request: Any, host: str) -> int:
    """Return the HTTP status with which a request is refused; 0 where it is not.

    A page of somebody else's whose name leads here (DNS rebinding) is refused by that name. What is
    sent must say how large it is, and be no larger than the largest picture.
    """
    from vggkeras.data.decoding import MAX_BYTES

    if host in LOOPBACK and request.url.hostname not in LOOPBACK:
        return 421
    if request.method == "POST":
        length = request.headers.get("content-length", "")
        return 0 if length.isdecimal() and int(length) <= MAX_BYTES else 413
    return 0


def application(models: Models, examples: Sequence[Path], host: str) -> Any:
    """Return the page as an ASGI application, to be served at an address."""
    import fastapi
    import gradio as gr

    from vggkeras.data.decoding import MAX_BYTES

    async def moved(path: str) -> str:
        return uploaded(path)

    with gr.Blocks(title="vggkeras", analytics_enabled=False, delete_cache=(60, 600)) as blocks:
        gr.Markdown("# One picture, every runtime")
        with gr.Row():
            with gr.Column(scale=1, min_width=280):
                picture = gr.Image(label="Picture", type="filepath", buttons=[], height=280)
                if examples:
                    gr.Examples([str(path) for path in examples], picture, label="From the data")
                # Gradio would open the file, and perhaps encode it anew.
                vars(picture)["preprocess"] = lambda file: file and uploaded(file.path)
                vars(picture)["async_move_resource_to_block_cache"] = moved
            with gr.Column(scale=2, min_width=300):
                answers = gr.HTML(drawn(models, None), elem_id="answers", padding=False)
        picture.change(lambda path: drawn(models, path), picture, answers, show_progress="minimal")
    blocks.queue(api_open=False, max_size=QUEUED)  # otherwise clients may go past the queue
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def from_here_alone(request: Any, call_next: Any) -> Any:
        status = refusal(request, host)
        response = fastapi.Response(status_code=status) if status else await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    return gr.mount_gradio_app(
        app,
        blocks,
        path="/",
        footer_links=[],
        run_history=False,
        show_error=False,
        max_file_size=MAX_BYTES,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
    )
