"""`jaxmtl playground`: a page on this machine where an instruction and inputs are typed in and three answers compared.

The model alone, the model with the instruction before every input, and the model with what the hypernetwork makes of
the instruction. The page is served to this machine only unless `--host` says otherwise, and keeps nothing.
"""

import argparse
import http.server
import importlib.resources
import json
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxmtl.types import InputError

if TYPE_CHECKING:
    from jaxmtl.adapters.hypernet import Hyper
    from jaxmtl.weights import Pretrained

_log = logging.getLogger(__name__)

HELP = "compare a hypernetwork's answers with the plain model's on a local page"
LOOPBACK = ("127.0.0.1", "localhost")
MOST_BYTES, MOST_INPUTS, MOST_KEPT = 1 << 20, 64, 16
"""Of a request; inputs of a request; instructions that are kept, each of which takes the memory of a prompt."""
NAMES = ("base", "concatenated", "generated")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds hypernetwork, model and address."""
    parser.add_argument(
        "--checkpoint", required=True, help="run folder of a hypernetwork, or a folder that one was saved to"
    )
    parser.add_argument("--model", help="the model it was trained on; a run folder has its own")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="dtype of the model")
    parser.add_argument("--max_tokens", type=int, default=64, help="most tokens of an answer")
    parser.add_argument("--host", default="127.0.0.1", help="address to serve at; others than this machine's are open")
    parser.add_argument("--port", type=int, default=8000, help="port to serve at; 0 takes a free one")


def run(arguments: argparse.Namespace, config: Any) -> int:
    """Loads and serves until it is stopped from the keyboard.

    Args:
      arguments: the flags.
      config: not used.

    Returns:
      0.

    Raises:
      InputError: if a folder does not hold what it should, or the address cannot be served at.
    """
    from jaxmtl.commands.generate_adapter import load

    playground = Playground(*load(arguments.checkpoint, arguments.model, arguments.dtype), arguments.max_tokens)
    try:
        server = make_server(playground, arguments.host, arguments.port)
    except (OSError, OverflowError) as error:
        raise InputError(f"--host {arguments.host} --port {arguments.port}: {error}; give another port") from error
    with server:
        host, port = server.server_address[:2]
        print(f"http://{host}:{port} (stop with Ctrl-C)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


class Playground:
    """Answers requests, one at a time."""

    def __init__(self, pretrained: "Pretrained", hyper: "Hyper", max_tokens: int = 64) -> None:
        """Takes a model and its hypernetwork.

        Args:
          pretrained: the model, with a tokenizer.
          hyper: the hypernetwork.
          max_tokens: most tokens of an answer.
        """
        from jaxmtl.adapters.hypernet import InstructionCache

        if hyper.config.encoder == "learned":
            raise InputError("this hypernetwork knows its tasks by name and reads no instruction that could be typed")
        self._pretrained, self._hyper, self._max_tokens = pretrained, hyper, max_tokens
        self._cache, self._lock = InstructionCache(hyper, pretrained), threading.Lock()

    def predict(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answers inputs in three ways.

        Args:
          request: `instruction`, a text; `inputs`, a list of texts; perhaps `examples`, JSON lines as in
            `jaxmtl generate_adapter --examples`.

        Returns:
          `inputs`, and a list of texts for each of `NAMES`; `seconds` by name.

        Raises:
          InputError: if a field is missing or not what it should be.
        """
        from jaxmtl.commands.generate_adapter import written
        from jaxmtl.tasks.jsonl import demonstrations_of

        instruction, inputs = _checked(request)
        shown = demonstrations_of(str(request.get("examples") or ""), "examples")
        with self._lock:
            text = written(instruction, shown, self._pretrained)
            wrapped = [self._wrapped(one) for one in inputs]
            answers, seconds = {}, {}
            for name in NAMES:
                began = time.perf_counter()
                answers[name] = self._answers(name, text, wrapped)
                seconds[name] = time.perf_counter() - began
        return {"inputs": inputs, "seconds": seconds, **answers}

    def _wrapped(self, text: str) -> str:
        """Writes an input as hypernetworks see them in training."""
        from jaxmtl.tasks.prompts import tk_instruct
        from jaxmtl.tasks.spec import TaskSpec
        from jaxmtl.types import Example

        task = TaskSpec(name="playground", category="", definition="", examples=())
        example = Example(id="", inputs=text, targets=("",))
        tokenizer: Any = self._pretrained.tokenizer
        return tk_instruct(task, example, definition=False, tokenizer=tokenizer)

    def _answers(self, name: str, text: str, wrapped: Sequence[str]) -> list[str]:
        from jaxmtl.evals.generation import generate

        adapter = None
        if name == "generated":
            if len(self._cache) >= MOST_KEPT and text not in self._cache:
                self._cache = type(self._cache)(self._hyper, self._pretrained)
            adapter = self._cache.of([text] * len(wrapped))
        inputs = [text + one for one in wrapped] if name == "concatenated" else list(wrapped)
        return generate(self._pretrained, inputs, adapter=adapter, max_tokens=self._max_tokens)


def _checked(request: Any) -> tuple[str, list[str]]:
    if not isinstance(request, Mapping):
        raise InputError("expected a JSON object with instruction and inputs")
    instruction, inputs = request.get("instruction"), request.get("inputs")
    if not isinstance(instruction, str) or not instruction.strip():
        raise InputError("the instruction is empty; say in words what the model is to do")
    if not isinstance(inputs, list) or not 1 <= len(inputs) <= MOST_INPUTS or not all(map(_is_text, inputs)):
        raise InputError(f"inputs: expected 1 to {MOST_INPUTS} texts, none of them empty")
    return instruction.strip(), inputs


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def make_server(playground: Playground, host: str, port: int) -> http.server.ThreadingHTTPServer:
    """Makes a server of the page and of `POST /predict`.

    Args:
      playground: answers.
      host: address to serve at.
      port: port; 0 takes a free one.

    Returns:
      The server, listening but not yet serving.
    """
    page = (importlib.resources.files("jaxmtl.commands") / "playground.html").read_bytes()

    class Handler(http.server.BaseHTTPRequestHandler):
        """Answers one request."""

        def do_GET(self) -> None:
            """Gives the page."""
            if self.path != "/":
                return self._send(404, b'{"error": "no such page"}', "application/json")
            return self._send(200, page, "text/html; charset=utf-8")

        def do_POST(self) -> None:
            """Predicts."""
            try:
                status, answer = 200, playground.predict(self._read())
            except InputError as error:
                status, answer = 400, {"error": str(error)}
            except Exception as error:  # a page that waits is answered, whatever happened
                _log.exception("the request failed")
                status, answer = 500, {"error": f"{type(error).__name__}: {error}"}
            self._send(status, json.dumps(answer).encode(), "application/json")

        def _read(self) -> Any:
            # Pages of other sites may not send JSON here, nor may names that only now point to this machine.
            if self.path != "/predict" or self.headers.get_content_type() != "application/json":
                raise InputError("expected POST /predict with the content type application/json")
            if host in LOOPBACK and self.headers.get("Host", "").partition(":")[0] not in LOOPBACK:
                raise InputError("this page is for this machine only; open it as 127.0.0.1")
            size = self.headers.get("Content-Length", "")
            if not size.isdecimal() or len(size) > len(str(MOST_BYTES)) or int(size) > MOST_BYTES:
                raise InputError(f"expected at most {MOST_BYTES} bytes of JSON")
            try:
                return json.loads(self.rfile.read(int(size)))
            except (ValueError, RecursionError) as error:
                raise InputError("the request is not JSON") from error

        def _send(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            """Says nothing of each request."""

    return http.server.ThreadingHTTPServer((host, port), Handler)
