"""Comparing values with what they were before a cell, and going back to what the worker was before it.

Part of the same module as `helper.py`, whose namespace, state and sharing functions it uses.
"""

import hashlib
import io
import os
import pickle
import signal
import sys
import threading
import types

from IPython.core.interactiveshell import InteractiveShell
from IPython.core.magic import MagicsManager


class Digest:
    """A file that only keeps the hash of what is written to it."""

    def __init__(self):
        self.hash = hashlib.blake2b(digest_size=16)

    def write(self, data):
        self.hash.update(data)
        return len(data)


def digest(names):
    """A hash of what the names stand for; `None` if they cannot be pickled."""
    file = Digest()

    def hash_buffer(buffer):
        file.write(buffer.raw())  # and, by returning nothing, out of the stream

    try:
        pickler = Pickler(file, by_value=names, buffer_callback=hash_buffer)
        pickler.dump({name: value_of(name) for name in names})
    except Exception:
        return None
    return file.hash.digest()


# Packages whose values pickle by no code of the user's.
PLAIN = {"builtins", "collections", "copyreg", "datetime", "decimal", "fractions", "numpy", "pandas", "pathlib", "uuid"}


class Plain(Pickler):
    """Refuses whatever is not of these packages: only then can nobody tell that a value was looked at."""

    def reducer_override(self, value):
        named = isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType))
        module = getattr(value if named else type(value), "__module__", None)
        if not isinstance(module, str) or module.split(".")[0] not in PLAIN:
            raise pickle.PicklingError(module)
        return super().reducer_override(value)


def is_plain(value):
    try:
        Plain(Discard(), buffer_callback=lambda buffer: None).dump(value)
    except Exception:
        return False
    return True


def watch(names, steady=()):
    """What the names are now, by group: for `changed`. Of the `steady` ones, only those that are plain."""
    names = {name for name in names if exists(name)}
    names = sorted(names | {name for name in steady if exists(name) and is_plain(value_of(name))})
    together = groups(names)
    alone = set(names).difference(*together)
    return [(group, {name: id(value_of(name)) for name in group}, digest(group))
            for group in [*together, *([name] for name in sorted(alone))]]


def changed(watched, steady, others, replaced=()):
    """Those of the watched names that are not what they were, or that now share an object with one of the others
    outside of their group, through which they could be changed later, or with what a name stood for that has been
    `replaced` since: others may still refer to that. For the sake of `steady` names nobody else's values are pickled."""
    found = set()
    for group, identities, before in watched:
        if not all(exists(name) for name in group) or before is None or digest(group) != before:
            found.update(group)
        else:
            found.update(
                name for name in group if not name.endswith(".") and id(value_of(name)) != identities[name]
            )
    groups = {name: group for group, _, _ in watched for name in group}
    held = {name: reach([name]) for name in groups if name not in found and may_share(value_of(name))}
    others = [name for name in {*others, *groups} if exists(name) and may_share(value_of(name))]
    values = [(other, value_of(other)) for other in others] if held and len(others) > 1 else []
    if held:
        values += replaced
    for other, value in values:
        looked_at = not steady.issuperset(held) or is_plain(value)
        reached_there = reach_of({other: value}, [other]) if looked_at else None
        for name, objects in held.items():
            if other in groups[name]:
                continue
            if reached_there is None or objects is None or not reached_there.keys().isdisjoint(objects.keys()):
                found.add(name)
    return found


# What a copy for going back may take: beyond that the cell waits for its turn instead.
KEEP_SHARE = 4


class TooLarge(Exception):
    """There is no memory to keep a copy."""


class Limited(io.BytesIO):
    """A file in memory that does not take all of it."""

    def __init__(self):
        super().__init__()
        self.left = free_memory() // KEEP_SHARE

    def write(self, data):
        size = memoryview(data).nbytes
        self.left -= size
        if self.left < 0:
            raise TooLarge("the values that the cell may change are too large to be kept twice")
        return super().write(data)


def free_memory():
    try:
        with open("/proc/meminfo") as lines:
            for line in lines:
                if line.startswith("MemAvailable:"):
                    return int(line.split()[1]) << 10
    except OSError:
        pass
    return 1 << 30


class Before:
    """A worker before a run that may have to be taken back: its namespace, the states of its classes and functions,
    its working directory, environment and random generators, and copies of the values that the run could change, with all that share objects with them."""

    def __init__(self, names):
        self.kept = family([name for name in names if exists(name)])
        self.copies = None
        if self.kept:
            copies = Limited()
            pickler = Pickler(copies, by_value=self.kept)
            states = {name: State(name) for name in self.kept if name.endswith(".")}
            pickler.dump({**states, **{name: namespace[name] for name in self.kept if name not in states}})
            self.copies = copies.getbuffer()
        self.watched = watch(self.kept)
        self.names = dict(namespace)
        self.states = {
            name: (value, state_of(value)) for name, value in namespace.items()
            if isinstance(value, (type, types.FunctionType)) and is_own(value)
        }
        self.folder, self.environment, self.path = os.getcwd(), dict(os.environ), list(sys.path)
        self.generators = {name: value_of(name) for name in GENERATORS if exists(name)}
        hook = shell.displayhook
        self.shown = [getattr(hook, unders, "") for unders in ("_", "__", "___")]
        self.results = dict(namespace.get("_oh", {}))
        history = shell.history_manager
        self.inputs = len(history.input_hist_parsed)
        self.entries = []

    def keep_history(self, count):
        """What the cell adds to the history is written when the run is settled, and stands at its own number."""
        history = shell.history_manager
        self.cache_size, history.db_cache_size = history.db_cache_size, sys.maxsize
        self.count = count
        pad_inputs(count or 0)

    def hold_history(self):
        history = shell.history_manager
        history.db_cache_size = self.cache_size
        with history.db_input_cache_lock:
            self.entries = [entry for entry in history.db_input_cache if entry[0] == self.count]
            history.db_input_cache = [entry for entry in history.db_input_cache if entry[0] != self.count]

    def settle(self):
        history = shell.history_manager
        with history.db_input_cache_lock:
            history.db_input_cache.extend(self.entries)
            if self.entries and history.save_flag is not None:
                history.save_flag.set()

    def restore(self):
        global known
        for name in list(namespace):
            if name not in self.names:
                del namespace[name]
        namespace.update(self.names)
        for value, state in self.states.values():
            if fingerprint(state_of(value)) != fingerprint(state):
                set_state(value, state)
        if self.copies is not None:
            for name, value in pickle.loads(self.copies).items():
                if not name.endswith("."):
                    namespace[name] = value
        os.chdir(self.folder)
        if dict(os.environ) != self.environment:
            os.environ.clear()
            os.environ.update(self.environment)
        sys.path[:] = self.path
        for name, state in self.generators.items():
            set_generator(name, state)
        for unders, value in zip(("_", "__", "___"), self.shown):
            setattr(shell.displayhook, unders, value)
        if "_oh" in namespace:
            namespace["_oh"].clear()
            namespace["_oh"].update(self.results)
        scripts = shell.magics_manager.registry.get("ScriptMagics")
        loop = getattr(scripts, "event_loop", None)
        if loop is not None and not loop.is_running():
            # The run has ended before it started the loop's thread, and every later script would wait for it.
            scripts.event_loop = None
        history = shell.history_manager
        del history.input_hist_parsed[self.inputs:]
        del history.input_hist_raw[self.inputs:]
        known = snapshot()


# Whose frames tell where an interrupt finds the worker: where IPython runs a cell, and where it loads a magic.
RUN_CELL = InteractiveShell.run_cell.__code__
# Older versions load all magics when they start.
LOAD_MAGIC = getattr(getattr(MagicsManager, "load_lazy", None), "__code__", None)


class Patient:
    """Interrupts a run that is taken back, but not while it imports or loads a magic: what is half loaded stays so.
    Nor outside of its cell, where values are put in place before it and its reply is sent after it."""

    AGAIN_SECONDS = 0.05

    def __init__(self):
        self.timer = None
        self.over = False
        signal.signal(signal.SIGINT, self.interrupted)

    def interrupted(self, signum, frame):
        if self.over:
            return
        in_cell, loads = False, False
        while frame is not None:
            code = frame.f_code
            in_cell = in_cell or code is RUN_CELL
            loads = loads or code is LOAD_MAGIC or code.co_filename.startswith("<frozen importlib")
            frame = frame.f_back
        if in_cell and not loads:
            raise KeyboardInterrupt
        self.timer = threading.Timer(self.AGAIN_SECONDS, self.again)
        self.timer.daemon = True
        self.timer.start()

    def again(self):
        if not self.over:
            os.kill(os.getpid(), signal.SIGINT)

    def end(self):
        self.over = True
        if self.timer is not None:
            self.timer.cancel()


# By run, in the order in which they ran here.
befores = {}


def undo(run):
    """Goes back to what the worker was before the run: it and all after it are taken back."""
    if run not in befores:
        return
    before = befores[run]
    order = list(befores)
    for later in order[order.index(run):]:
        del befores[later]
    before.restore()


