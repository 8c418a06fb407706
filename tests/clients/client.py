"""A scripted client on jupyter_client: it runs cells with any metadata and keeps every message with its time.

Clients that people use have files of their own; this one sees what they hide: replies, headers, order, live arrival."""

import time
from dataclasses import dataclass, field
from queue import Empty

import nbformat
from jupyter_client.manager import KernelManager


@dataclass
class Run:
    """One execution request and all that came back for it."""

    id: str
    messages: list = field(default_factory=list)  # (monotonic seconds, message) from iopub, in order
    reply: dict | None = None
    replied_at: float = 0.0
    idle: bool = False

    @property
    def status(self):
        return self.reply["content"]["status"]

    def of_type(self, *types):
        return [message for _, message in self.messages if message["msg_type"] in types]

    def text(self, name="stdout"):
        """All text of one stream."""
        return "".join(m["content"]["text"] for m in self.of_type("stream") if m["content"]["name"] == name)

    def arrival(self, text):
        """When the first stream message that contains `text` came."""
        for at, message in self.messages:
            if message["msg_type"] == "stream" and text in message["content"]["text"]:
                return at
        raise AssertionError(f"{text!r} was never printed: {self.text()!r}, {self.text('stderr')!r}")

    @property
    def result(self):
        """The `text/plain` of the execution result."""
        (message,) = self.of_type("execute_result")
        return message["content"]["data"]["text/plain"]

    @property
    def error(self):
        """`name: value` of the error, as users read it."""
        content = self.reply["content"]
        assert content["status"] == "error", f"expected an error: {content}, printed {self.text()!r}"
        return f"{content['ename']}: {content['evalue']}"

    def ok(self):
        """Itself, having checked that the cell ended well."""
        content = self.reply["content"]
        assert content["status"] == "ok", "\n".join(content.get("traceback") or [str(content)])
        return self

    def outputs(self):
        """The outputs as a notebook keeps them."""
        kept, clear_next = [], False
        for message in self.of_type("stream", "display_data", "execute_result", "error", "clear_output"):
            if message["msg_type"] == "clear_output":
                clear_next = message["content"]["wait"]
                if not clear_next:
                    kept = []
                continue
            if clear_next:
                kept, clear_next = [], False
            kept.append(nbformat.v4.output_from_msg(message))
        return kept


def on(target, **more):
    """Cell metadata that sends a cell to `target`."""
    return {"workflow": {"target": target, **more}}


class Kernel:
    """A running kernel and one client of it. Use as a context manager."""

    def __init__(self, name, cwd, env=None, ready=True, **connection):
        self.manager = KernelManager(kernel_name=name, **connection)
        self.manager.start_kernel(cwd=str(cwd), **({"env": env} if env else {}))
        self.client = self.manager.blocking_client()
        self.client.start_channels()
        self.runs = {}
        self.others = []  # iopub messages of no run of ours
        if ready:
            try:
                self.client.wait_for_ready(timeout=60)
            except Exception:
                self.close()
                raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.client.stop_channels()
        if self.manager.has_kernel:
            self.manager.shutdown_kernel(now=not self.manager.is_alive())
        self.manager.cleanup_resources()

    @property
    def pid(self):
        return self.manager.provisioner.process.pid

    def request(self, kind, content, metadata=None, channel="shell", **header):
        """Sends one request as it is, and returns its id."""
        message = self.client.session.msg(kind, content, metadata=metadata)
        message["header"].update(header)
        getattr(self.client, f"{channel}_channel").send(message)
        return message["header"]["msg_id"]

    def send(self, code, metadata=None, **content):
        """Sends a cell and does not wait."""
        content = {
            "code": code,
            "silent": False,
            "store_history": True,
            "user_expressions": {},
            "allow_stdin": False,
            "stop_on_error": True,
            **content,
        }
        run = Run(self.request("execute_request", content, metadata))
        self.runs[run.id] = run
        return run

    def run(self, code, metadata=None, answers=(), timeout=60, **content):
        """Runs a cell to its end, answering `input()` with `answers` in turn."""
        if answers:
            content["allow_stdin"] = True
        run = self.send(code, metadata, **content)
        self.finish(run, answers=answers, timeout=timeout)
        return run

    def finish(self, *runs, answers=(), timeout=60):
        """Reads messages until every one of `runs` has its reply and its idle."""
        answers = list(answers)

        def ended():
            return all(run.reply is not None and run.idle for run in runs)

        self.read_until(ended, timeout, lambda prompt: answers.pop(0) if answers else None)
        assert not answers, f"never asked for {answers}"

    def read_until(self, condition, timeout=60, answer=lambda prompt: None):
        """Reads messages of all channels until `condition` holds."""
        deadline = time.monotonic() + timeout
        while not condition():
            if time.monotonic() > deadline:
                seen = {run.id: (run.reply, [m["msg_type"] for _, m in run.messages]) for run in self.runs.values()}
                raise AssertionError(f"the condition did not come within {timeout} s; seen: {seen}")
            self._read_iopub(0.01)
            self._read_shell()
            self._read_stdin(answer)

    def read_printed(self, run, text, timeout=60):
        """Reads until `run` has printed `text`."""
        self.read_until(lambda: text in run.text() + run.text("stderr"), timeout)

    def reply_to(self, message_id, timeout=30, channel="shell"):
        """The reply to a request that is not an execution."""
        deadline = time.monotonic() + timeout
        while True:
            message = getattr(self.client, f"{channel}_channel").get_msg(timeout=max(0.01, deadline - time.monotonic()))
            if message["parent_header"].get("msg_id") == message_id:
                return message

    def interrupt(self):
        self.manager.interrupt_kernel()

    def _read_iopub(self, timeout):
        try:
            message = self.client.iopub_channel.get_msg(timeout=timeout)
        except Empty:
            return
        run = self.runs.get(message["parent_header"].get("msg_id"))
        if run is None:
            self.others.append(message)
            return
        run.messages.append((time.monotonic(), message))
        if message["msg_type"] == "status" and message["content"]["execution_state"] == "idle":
            run.idle = True

    def _read_shell(self):
        try:
            message = self.client.shell_channel.get_msg(timeout=0)
        except Empty:
            return
        run = self.runs.get(message["parent_header"].get("msg_id"))
        if run is not None:
            run.reply, run.replied_at = message, time.monotonic()

    def _read_stdin(self, answer):
        try:
            message = self.client.stdin_channel.get_msg(timeout=0)
        except Empty:
            return
        value = answer(message["content"]["prompt"])
        if value is not None:
            self.client.input(value)
