"""What Cellferry adds to an ordinary ipykernel: carrying values, and a report of what a cell bound.

The kernel sends this file as source when a worker starts. It adds two things to the running kernel:
a prelude and a report around `execute_request` (both in messages that only Cellferry sees), and a
shell message of its own, `cellferry_request`, with the verbs `take`, `undo`, `settle`, `inputs`, `part` and `whole`. For the files of a step it
asks the kernel, on the channel of `input()`. Nothing of it stands in the user's namespace, and it needs nothing but IPython and the standard library. Python 3.8 or newer. How values are pickled
stands in `pickling.py`, how a worker goes back to what it was in `before.py`; both are part of the same module.
"""

import ast
import builtins
import collections
import enum
import functools
import glob
import importlib
import io
import itertools
import mmap
import os
import pickle
import re
import signal
import socket
import sys
import time
import traceback
import types

import zmq

# Values up to this size (bytes) travel inside the message instead of a shared-memory segment.
INLINE = 1 << 18
ALIGN = 64

shell = get_ipython()  # noqa: F821 - IPython's builtin
kernel = shell.kernel
namespace = shell.user_ns
main = sys.modules["__main__"]

# Names that IPython itself writes on every cell.
INPUT_NAME = re.compile(r"^(_i+|_i\d+|_ih|_oh|_dh|In|Out|_exit_code)$")
RESULT_NAME = re.compile(r"^(_{1,3}|_\d+)$")

ATOMS = (int, float, complex, bool, str, bytes, type(None), type(...), type(NotImplemented), range)


# --- generators that all code shares: their states travel under names that no variable can have ------------------

# By name: the module, and how its state is read and set.
GENERATORS = {"~random": ("random", "getstate", "setstate"), "~numpy.random": ("numpy.random", "get_state", "set_state")}


def generator_state(name):
    module, read, _ = GENERATORS[name]
    return pickle.dumps(getattr(sys.modules[module], read)())


def set_generator(name, state):
    module, _, write = GENERATORS[name]
    try:
        getattr(importlib.import_module(module), write)(pickle.loads(state))
    except ImportError:
        pass  # what is not installed cannot be used here either


# --- what a cell bound -------------------------------------------------------------------------


def snapshot():
    """Every name with the identity of its value, and every `name.` with those of its state."""
    seen = {}
    for name, value in namespace.items():
        seen[name] = mark_of(value)
        if isinstance(value, (type, types.FunctionType)) and is_own(value) and value.__name__ == name:
            state = state_of(value)
            if state:
                seen[name + "."] = fingerprint(state)
    for name in GENERATORS:
        if exists(name):
            seen[name] = value_of(name)
    return seen


def mark_of(value):
    """What tells a value from another one."""
    if isinstance(value, types.FunctionType) and is_own(value) and has_state(value):
        # A lambda and the like travels as a value: what is set on it makes it another one.
        if namespace.get(value.__name__) is not value:
            return id(value), fingerprint(state_of(value))
    return id(value)


def fingerprint(state):
    """Which objects a state consists of; what changes inside one of them is not seen."""
    return {
        key: fingerprint(item) if type(item) is dict else tuple(map(id, item)) if type(item) is tuple else id(item)
        for key, item in state.items()
    }


def is_atom(value, depth=0):
    """Whether nothing can change the value in place, so that copies of it stay equal."""
    kind = type(value)
    if kind in ATOMS:
        return True
    if kind in (tuple, frozenset) and depth < 8 and len(value) < 100:
        return all(is_atom(item, depth + 1) for item in value)
    if kind.__module__ in ("datetime", "decimal", "fractions", "uuid", "pathlib"):
        return kind.__name__ in (
            "date", "datetime", "time", "timedelta", "timezone", "Decimal", "Fraction", "UUID",
            "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath",
        )
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, getattr(numpy, "generic", ())) and kind.__module__ == "numpy"


# --- state of definitions: a class or function is replayed as source, what was set on it is carried as `name.` -----

# Set by the class statement itself, or by what decorates it.
IMPLICIT = frozenset(
    "__module__ __qualname__ __doc__ __dict__ __weakref__ __annotations__ __annotate__ __annotate_func__ "
    "__annotations_cache__ __slots__ __firstlineno__ __static_attributes__ __abstractmethods__ _abc_impl "
    "__match_args__ __hash__ __parameters__ __orig_bases__ __type_params__".split()
)


def state_of(value):
    """What was set on a class or function, or can change in it, beyond what its source says; empty for most."""
    if isinstance(value, types.FunctionType):
        state = {}
        if value.__dict__:
            state["__dict__"] = dict(value.__dict__)
            state["__dict__"].pop("__wrapped__", None)
        for key in ("__defaults__", "__kwdefaults__"):
            items = getattr(value, key)
            if items and not all(is_atom(item) for item in (items.values() if isinstance(items, dict) else items)):
                state[key] = items
        return state
    if type(value) is not type and type(value).__name__ != "ABCMeta":
        return {}  # an Enum and the like: its class makes its attributes
    return {key: item for key, item in vars(value).items() if key not in IMPLICIT and not is_of_source(value, key, item)}


def is_of_source(owner, key, item):
    """Whether replaying the class makes this attribute."""
    if key.startswith("__dataclass_") or ("__dataclass_fields__" in vars(owner) and key.startswith("__")):
        return True
    function = getattr(item, "__func__", None) or getattr(item, "fget", None) or getattr(item, "func", None) or item
    function = getattr(function, "__wrapped__", function)
    if isinstance(function, (types.FunctionType, type)):
        # What a dataclass decorator writes has the class's name, too.
        return getattr(function, "__qualname__", "").startswith(owner.__qualname__ + ".")
    return isinstance(item, (types.MemberDescriptorType, types.GetSetDescriptorType)) or hasattr(type(item), "__get__")


def set_state(value, state):
    if isinstance(value, types.FunctionType):
        attributes = state.get("__dict__", {})
        for key in [key for key in value.__dict__ if key not in attributes and key != "__wrapped__"]:
            del value.__dict__[key]
        value.__dict__.update(attributes)
        for key in ("__defaults__", "__kwdefaults__"):
            if key in state:
                setattr(value, key, state[key])
        return
    for key in state_of(value):
        if key not in state:
            delattr(value, key)
    for key, item in state.items():
        setattr(value, key, item)


class State:
    """What `name.` stands for, as it is pickled: it is set as soon as it is unpickled."""

    def __init__(self, name):
        self.owner = namespace[name[:-1]]

    def __reduce__(self):
        return set_state, (self.owner, state_of(self.owner))


def value_of(name):
    """The value of a name, or what `name.` stands for."""
    if name in GENERATORS:
        return generator_state(name)
    return state_of(namespace[name[:-1]]) if name.endswith(".") else namespace[name]


def exists(name):
    if name in GENERATORS:
        return GENERATORS[name][0] in sys.modules
    return name in namespace or (name.endswith(".") and name[:-1] in namespace)


def is_own(value):
    """Whether a function or class was made in the notebook."""
    return getattr(value, "__module__", None) == "__main__"


def has_state(function):
    """Whether a function carries something that could change: a closure, defaults, attributes."""
    return bool(function.__closure__ or function.__defaults__ or function.__kwdefaults__ or function.__dict__)


known = snapshot()


def describe(value, thorough=False):
    """What the kernel must know of a value: its kind, its type, the notebook names that its code refers to.

    Of a large value not all is looked at, unless `thorough`: the needs are then `partial`.
    """
    partial = False
    if isinstance(value, types.ModuleType):
        kind, needs = "module", set()
    elif is_atom(value) or isinstance(value, TYPE_VARIABLES):
        kind, needs = "atom", set()
    else:
        kind = "class" if isinstance(value, type) else "value"
        if isinstance(value, types.FunctionType) and not has_state(value):
            kind = "function"
        needs, partial = code_needs(value)
        if partial and thorough:
            needs |= pickled_needs(value)
            partial = False
    needs = sorted(name for name in needs if not hasattr(builtins, name) or name in namespace)
    return {"kind": kind, "type": type_name(value), "needs": needs, "size": size_of(value), "partial": partial}


def size_of(value, depth=0):
    """About how much memory a value takes, in bytes: arrays and texts as they are, collections by a sample."""
    size = getattr(value, "nbytes", None) if type(value).__module__ != "builtins" else None
    if type(size) is int:
        return size
    try:
        size = sys.getsizeof(value)
    except Exception:
        return 0
    items = value.values() if isinstance(value, dict) else value
    if depth < 3 and isinstance(value, (list, tuple, set, frozenset, dict)) and items:
        sample = list(itertools.islice(items, 20))
        size += sum(size_of(item, depth + 1) for item in sample) * len(value) // max(len(sample), 1)
    return size


# How many objects are looked at for what a value refers to.
LOOK_AT = 2000
PLAIN = frozenset((*ATOMS, bytearray, memoryview))


def code_needs(value):
    """The notebook names that functions, classes and instances inside a value refer to, and whether it was too
    large to look at all of it."""
    needs, seen, open_ = set(), {}, [value]
    while open_:
        item = open_.pop()
        kind = type(item)
        if kind in PLAIN or id(item) in seen:
            continue
        seen[id(item)] = item
        if len(seen) > LOOK_AT:
            return needs, True
        if kind is types.FunctionType:
            if item.__globals__ is namespace:
                needs |= global_names(item.__code__)
            root = item.__qualname__.split(".")[0]
            if item is not value and is_own(item) and namespace.get(root) is item:
                needs.add(root)
            open_.extend(contents(cell) for cell in item.__closure__ or ())
            open_.extend(item.__defaults__ or ())
            open_.extend((item.__kwdefaults__ or {}).values())
            open_.extend(item.__dict__.values())
        elif isinstance(item, type):
            if not is_own(item):
                continue
            root = item.__qualname__.split(".")[0]
            if item is not value and namespace.get(root) is not None:
                needs.add(root)
            if item is value or namespace.get(root) is not item:
                open_.extend(vars(item).values())
                open_.extend(item.__bases__)
        elif kind in (list, tuple, set, frozenset, collections.deque):
            if not PLAIN.issuperset(map(type, item)):
                open_.extend(item)
        elif isinstance(item, dict):
            if not PLAIN.issuperset(map(type, item.values())):
                open_.extend(item.values())
            if not PLAIN.issuperset(map(type, item)):
                open_.extend(item)
        elif kind is types.MethodType:
            open_.extend((item.__func__, item.__self__))
        elif kind in (classmethod, staticmethod):
            open_.append(item.__func__)
        elif kind is property:
            open_.extend((item.fget, item.fset, item.fdel))
        elif kind is functools.partial:
            open_.extend((item.func, *item.args, *item.keywords.values()))
        elif kind is not types.ModuleType:
            open_.append(kind)
            attributes = instance_dict(item)
            if attributes is not None:
                open_.append(attributes)
            for base in kind.__mro__ if is_own(kind) else ():
                for key in slots_of(base):
                    open_.append(getattr(item, key, None))
            if isinstance(item, (list, tuple, set, frozenset)):
                open_.extend(item)
    return needs, False


def pickled_needs(value):
    """The same by pickling it to nowhere, which is faster for large values of plain data."""
    pickler = Pickler(Discard(), buffer_callback=lambda buffer: None)
    try:
        pickler.dump(value)
    except Exception:
        pass  # what cannot be carried needs nothing elsewhere
    return pickler.needs


def contents(cell):
    try:
        return cell.cell_contents
    except ValueError:
        return None


def instance_dict(value):
    try:
        found = object.__getattribute__(value, "__dict__")
    except (AttributeError, TypeError):
        return None
    return found if type(found) is dict else None


def slots_of(kind):
    slots = vars(kind).get("__slots__", ())
    return (slots,) if isinstance(slots, str) else tuple(slots)


def describe_name(name, thorough=False):
    value = value_of(name)
    described = describe(value, thorough)
    if name.endswith("."):
        owner = namespace[name[:-1]]
        described["type"] = "attributes of a %s" % ("class" if isinstance(owner, type) else "function")
        described["needs"] = [name[:-1]]
        if isinstance(owner, type) and all(is_atom(item) for item in value.values()):
            described["kind"] = "atom"
    return described


def type_name(value):
    kind = type(value)
    module = kind.__module__
    return kind.__qualname__ if module in ("builtins", "__main__") else module + "." + kind.__qualname__


def changes(thorough, seeds):
    """The names bound and deleted since the last snapshot; `seeds` if the cell may have seeded a generator."""
    global known
    now = snapshot()
    bound = {}
    for name, identity in now.items():
        if name in GENERATORS and name not in known and not seeds:
            continue  # its module has just been imported: that state is nobody's
        if known.get(name) != identity and not INPUT_NAME.match(name):
            bound[name] = describe_name(name, thorough)
    gone = [name for name in known if name not in now and not INPUT_NAME.match(name)]
    known = now
    return bound, gone


# --- what shares objects -----------------------------------------------------------------------------


class Discard:
    """A file that keeps nothing: for pickling only to see what is reached."""

    def write(self, data):
        return len(data)


# What no change can be made to, so that it does not matter whether two names share it.
FIXED = (
    str, bytes, int, float, complex, bool, type(None), tuple, frozenset, slice, range, type, enum.Enum, re.Pattern,
    types.FunctionType, types.BuiltinFunctionType, types.ModuleType, types.CodeType, types.MethodDescriptorType,
    types.WrapperDescriptorType, *TYPE_VARIABLES,
)
# The same of libraries, where they are loaded: dtypes are single objects that all arrays share.
FIXED_IN = {
    "numpy": ("dtype", "generic", "ufunc"),
    "pandas": (
        "api.extensions.ExtensionDtype", "tseries.offsets.BaseOffset", "Timestamp", "Timedelta", "Period", "Interval",
    ),
    "datetime": ("date", "time", "timedelta", "tzinfo"),
    "zoneinfo": ("ZoneInfo",),
}


def fixed_types():
    found = list(FIXED)
    for module, names in FIXED_IN.items():
        for name in names if module in sys.modules else ():
            kind = sys.modules[module]
            for part in name.split("."):
                kind = getattr(kind, part, None)
            if isinstance(kind, type):
                found.append(kind)
    return tuple(found)


def identities(pickler):
    """What the pickler carried that could be changed in place, by identity, with the objects held."""
    held, fixed = {}, fixed_types()
    for identity, (_, value) in pickler.memo.copy().items():
        kind = type(value)
        if kind.__name__ == "cython_function_or_method":
            continue
        # An instance of a class of the notebook's may have attributes, whatever the class derives from.
        if not isinstance(value, fixed) or (is_own(kind) and not isinstance(value, (type, enum.Enum))):
            held[identity] = value
    for identity, owner in pickler.bases.items():
        held[identity] = owner
    return held


def reach(names):
    """The objects that the names reach, by identity; `None` if they cannot be carried."""
    return reach_of({name: value_of(name) for name in names}, names)


def reach_of(values, names):
    pickler = Pickler(Discard(), by_value=names, buffer_callback=lambda buffer: None)
    try:
        pickler.dump(values)
    except Exception:
        return None
    return identities(pickler)


def may_share(value):
    """Whether another name could share a changeable object with this value."""
    if isinstance(value, (types.ModuleType, type, *TYPE_VARIABLES)) or is_atom(value):
        return False
    if isinstance(value, types.FunctionType):
        # The state of one that is replayed under its own name is carried by itself.
        replayed = is_own(value) and namespace.get(value.__name__) is value
        return bool(value.__closure__) or (has_state(value) and not replayed)
    return True


def family(names, ignored=()):
    """`names` and every other name that shares a changeable object with them, except those to be `ignored`."""
    names = list(names)
    if not any(may_share(value_of(name)) for name in names):
        return names
    others = [
        name for name in snapshot()
        if name not in names and name not in ignored and not INPUT_NAME.match(name) and name not in hidden
        and may_share(value_of(name))
    ]
    if not others:
        return names
    held = reach(names) or {}
    seen = {name: reach([name]) for name in others}
    grown = True
    while grown:
        grown = False
        for name in list(others):
            mine = seen[name]
            if mine and not held.keys().isdisjoint(mine.keys()):
                held.update(mine)
                names.append(name)
                others.remove(name)
                grown = True
    return names


def groups(names):
    """Those of the names that share a changeable object, by group."""
    found = []
    shareable = [name for name in names if may_share(value_of(name))]
    for name in shareable if len(shareable) > 1 else ():
        mine = reach([name])
        if mine is None:
            continue
        members, held = {name}, dict(mine)
        apart = []
        for other, objects in found:
            if objects.keys().isdisjoint(mine.keys()):
                apart.append((other, objects))
            else:
                members |= other
                held.update(objects)
        found = [*apart, (members, held)]
    return [sorted(members) for members, _ in found if len(members) > 1]


def shared_bases(names):
    """Owners of array memory that more than one array of the family looks at."""
    arrays = {}

    class Finder(Pickler):
        def reduce_array(self, value):
            arrays.setdefault(id(owner_of(value)), set()).add(id(value))
            return super().reduce_array(value)

    if "numpy" not in sys.modules:
        return ()
    try:
        Finder(Discard(), by_value=names, buffer_callback=lambda buffer: None).dump(
            {name: value_of(name) for name in names}
        )
    except Exception:
        return ()
    return frozenset(owner for owner, users in arrays.items() if len(users) > 1)


def why_not(name):
    """Why one name cannot be carried, or `None` if it can."""
    try:
        Pickler(Discard(), by_value=(name,), buffer_callback=lambda buffer: None).dump(value_of(name))
    except RecursionError:
        return "nested too deeply to pickle"
    except Exception as error:
        return str(error) or type(error).__name__
    return None


def take(content):
    """Writes the wanted names, with all that shares an object with them, as one pickle.

    Small values go into the reply; large ones stay where they are until their reader has copied them, or go to the
    file `segment` in shared memory where it may not.
    """
    wanted = content["names"]
    forget(content.get("stale") or ())
    missing = [name for name in wanted if not exists(name)]
    ignored = frozenset(content.get("ignored") or ())
    names = family([name for name in wanted if exists(name)], ignored)
    bases = shared_bases(names) if any(may_share(value_of(name)) for name in names) else ()
    stream, buffers = io.BytesIO(), []

    def keep(buffer):
        raw = buffer.raw()
        if raw.nbytes < OUT_OF_BAND:
            return True
        buffers.append(raw)
        return False

    # What is ignored is another version than the reader has under that name.
    pickler = Pickler(stream, by_value=[*names, *ignored], shared_bases=bases, buffer_callback=keep)
    try:
        # States first: bound methods are looked up while they are unpickled.
        states = {name: State(name) for name in names if name.endswith(".")}
        pickler.dump({**states, **{name: value_of(name) for name in names if name not in states}})
    except Exception as error:
        failed = {}
        for name in names:
            reason = why_not(name)
            if reason is not None:
                failed[name] = [type_name(value_of(name)), reason]
        if not failed:
            failed[names[0]] = [type_name(value_of(names[0])), str(error) or type(error).__name__]
        return {"status": "uncarriable", "failed": failed, "missing": missing}, []
    data = stream.getbuffer()
    size = data.nbytes + sum(buffer.nbytes for buffer in buffers)
    reply = {
        "status": "ok",
        "names": {name: describe_name(name) for name in names},
        "needs": sorted((pickler.needs | {name[:-1] for name in names if name.endswith(".")}) - set(names)),
        "missing": missing,
        "size": size,
        "kin": groups(names),
        "modules": sorted(pickler.modules),
    }
    if size <= INLINE:
        reply["place"] = "inline"
        return reply, [data, *buffers]
    if content.get("reader") and "numpy" in sys.modules:
        reply["place"] = "memory"
        reply["layout"] = export([data, *buffers], content["reader"])
        return reply, []
    reply["place"] = "segment"
    reply["segment"] = content["segment"]
    reply["layout"] = write_segment(content["segment"], [data, *buffers])
    return reply, []


# --- names that become lists by rank, where this worker is one of several MPI ranks ---------------------------------


def part(names):
    """This rank's own values of the names, as buffers: a pickle and what it keeps out of band."""
    missing = [name for name in names if name not in namespace]
    if missing:
        raise NameError("there is no `%s` here to be gathered" % missing[0])
    stream, buffers = io.BytesIO(), []
    try:
        pickler = Pickler(stream, by_value=names, buffer_callback=lambda buffer: buffers.append(buffer.raw()))
        pickler.dump({name: namespace[name] for name in names})
    except Exception as error:
        for name in names:
            reason = why_not(name)
            if reason is not None:
                raise TypeError("`%s`, a value of type %s, cannot be gathered: %s"
                                % (name, type_name(namespace[name]), reason)) from None
        raise TypeError("%s cannot be gathered: %s" % (", ".join(names), error)) from None
    return [stream.getbuffer(), *buffers]


def whole(names, counts, rank, buffers):
    """Makes each name the list of its values by rank; `counts` says how many buffers each rank gave."""
    parts, start = [], 0
    for number, count in enumerate(counts):
        data, *rest = buffers[start : start + count]
        start += count
        if number == rank:
            parts.append({name: namespace[name] for name in names})
        else:
            parts.append(pickle.loads(data, buffers=[bytearray(buffer) for buffer in rest]))
    for name in names:
        namespace[name] = [values[name] for values in parts]
        known[name] = mark_of(namespace[name])
    return {name: describe_name(name) for name in names}


# --- straight from the memory of another process: process_vm_readv(2), one copy into the reader's own memory ---------

# What a reader may still copy; the kernel sends no further cell before it has.
exported = []


def export(parts, reader):
    """Lets the process `reader` read the parts; returns this process and the address and length of each."""
    numpy, libc = sys.modules["numpy"], c_library()
    # Where Yama restricts ptrace to descendants, this allows one more process: PR_SET_PTRACER.
    libc.prctl(0x59616D61, reader, 0, 0, 0)
    views = [numpy.frombuffer(part, numpy.uint8) for part in parts]
    exported.extend(views)
    return [os.getpid(), [[view.__array_interface__["data"][0], view.nbytes] for view in views]]


class NoDirectCopy(Exception):
    """This machine does not let one worker read the memory of another."""


def read_memory(pid, parts):
    import ctypes

    class Part(ctypes.Structure):
        _fields_ = [("address", ctypes.c_void_p), ("length", ctypes.c_size_t)]

    try:
        import numpy

        read = c_library().process_vm_readv
    except (ImportError, AttributeError) as error:
        raise NoDirectCopy(str(error)) from None
    read.restype = ctypes.c_ssize_t
    read.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong]
    copies = []
    for address, length in parts:
        copy, done = numpy.empty(length, numpy.uint8), 0
        start = copy.__array_interface__["data"][0]
        while done < length:
            size = min(length - done, 1 << 30)
            ours, theirs = Part(start + done, size), Part(address + done, size)
            count = read(pid, ctypes.addressof(ours), 1, ctypes.addressof(theirs), 1, 0)
            if count <= 0:
                raise NoDirectCopy(os.strerror(ctypes.get_errno()))
            done += count
        copies.append(copy)
    return copies


def c_library():
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def write_segment(path, parts):
    """Writes the parts one after another, each aligned; returns offset and length of each.

    Plain writes, not a mapping: a full shared memory is then an error and not a SIGBUS.
    """
    layout, offset = [], 0
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        for part in parts:
            offset += -offset % ALIGN
            layout.append([offset, part.nbytes])
            view, done = part.cast("B") if part.format != "B" or part.ndim != 1 else part, 0
            while done < view.nbytes:
                done += os.pwrite(target, view[done : done + (1 << 30)], offset + done)
            offset += part.nbytes
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(target)
    return layout


def read_segment(path, layout):
    source = os.open(path, os.O_RDONLY)
    try:
        length = os.fstat(source).st_size
        # A private mapping: nothing is copied until somebody writes to it.
        view = memoryview(mmap.mmap(source, length, access=mmap.ACCESS_COPY))
    finally:
        os.close(source)
    return [view[offset : offset + size] for offset, size in layout]


# --- what must stand in the namespace before a cell runs ------------------------------------------


def put(action, buffers):
    if action["place"] == "memory":
        data, *rest = read_memory(*action["layout"])
    elif action["place"] == "inline":
        start = action["first"]
        data, *rest = buffers[start : start + action["count"]]
        rest = [bytearray(buffer) for buffer in rest]
    else:
        data, *rest = read_segment(action["segment"], action["layout"])
    values = pickle.loads(data, buffers=rest)
    for name, value in values.items():
        if name in GENERATORS:
            set_generator(name, value)
        elif not name.endswith("."):
            namespace[name] = value
            if re.match(r"^_\d+$", name):
                namespace["_oh"][int(name[1:])] = value


def define(action, _):
    """Replays a definition as source, under the name and the lines of its own cell."""
    name = shell.compile.cache(action["cell"], action["number"])
    source = action["source"]
    if action["magic"]:
        exec(shell.transform_cell(source), namespace)
        return
    try:
        tree = ast.parse(source, name)
    except SyntaxError:  # there is IPython's own syntax in it
        tree = ast.parse(shell.transform_cell(source), name)
    ast.increment_lineno(tree, action["line"] - 1)
    exec(shell.compile(tree, name, "exec"), namespace)


def drop(action, _):
    forget(action["names"])


def forget(names):
    """Drops names whose value here is no longer the notebook's."""
    for name in names:
        if name in GENERATORS:
            continue
        known.pop(name, None)
        namespace.pop(name, None)
        if re.match(r"^_\d+$", name):
            namespace["_oh"].pop(int(name[1:]), None)


def results(action, _):
    """Makes `_`, `__` and `___` the last results of the notebook, wherever they were computed."""
    hook = shell.displayhook
    for unders, name in zip(("_", "__", "___"), action["names"]):
        value = namespace.get(name, "")
        setattr(hook, unders, value)
        namespace[unders] = value


def inputs(action, _):
    """Adds the cells that ran elsewhere to `In`, `_i…` and the history."""
    history = shell.history_manager
    for number, source in action["cells"]:
        pad_inputs(number)
        if len(history.input_hist_parsed) == number:
            history.store_inputs(number, shell.transform_cell(source), source)
        else:
            # A later cell has run here already, ahead of its turn.
            history.input_hist_parsed[number] = shell.transform_cell(source).rstrip("\n")
            history.input_hist_raw[number] = namespace["_i%d" % number] = source.rstrip("\n")


def pad_inputs(number):
    history = shell.history_manager
    while len(history.input_hist_parsed) < number:
        history.input_hist_parsed.append("")
        history.input_hist_raw.append("")


ACTIONS = {"put": put, "define": define, "drop": drop, "results": results, "inputs": inputs}


class Quiet:
    """Definitions that are replayed printed what they print when they first ran."""

    def __enter__(self):
        self.saved = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = io.StringIO(), io.StringIO()

    def __exit__(self, *_):
        sys.stdout, sys.stderr = self.saved


def prelude(actions, buffers):
    """Runs the actions; `None`, or which of them failed and why."""
    global known
    for action in actions:
        try:
            with Quiet():
                ACTIONS[action["do"]](action, buffers)
        except BaseException as error:
            return failure(action, error)
    if any(action["do"] != "inputs" for action in actions):
        known = snapshot()
    return None


def failure(action, error):
    return {
        "do": action["do"],
        "names": action.get("names") or action.get("binds") or [],
        "number": action.get("number"),
        "source": action.get("source"),
        "ename": type(error).__name__,
        "evalue": str(error),
        "message": "".join(traceback.format_exception_only(type(error), error)).strip(),
        "python": sys.executable,
    }


# --- files of a step -------------------------------------------------------------------------------

FOLDER = os.getcwd()
# Which MPI rank this is, if it is one.
RANK = os.environ.get("CELLFERRY_RANK")


class FileError(Exception):
    """Files of a step cannot be brought to it, or home."""


def paths_in(element):
    """The paths that an element of the metadata means, and whether it says them itself."""
    value = element.get("value")
    if value is not None:
        return [value] if isinstance(value, str) else value, True
    name = element.get("valueFrom") or element["name"]
    if name not in namespace:
        raise FileError(
            "no variable `%s` is bound that could hold the path of a file; write the path itself as `value`" % name
        )
    value = namespace[name]
    many = [value] if isinstance(value, (str, os.PathLike)) else value
    try:
        found = [os.fspath(path) for path in many]
    except TypeError:
        found = [None]
    if not all(isinstance(path, str) for path in found):
        raise FileError("`%s` is a value of type %s, not a path or a list of paths" % (name, type_name(value)))
    return found, False


def bring(way, elements, order, ident, parent, failed=False):
    """Has the kernel bring files, and waits until they are there."""
    items = []
    for element in elements:
        try:
            paths, given = paths_in(element)
        except FileError:
            if failed:
                continue  # the cell did not come as far as to bind it
            raise
        items.append({"name": element.get("name"), "paths": paths, "given": given})
    if not items:
        return
    content = {
        "way": way, "number": order.get("count"), "folder": FOLDER, "home": os.path.expanduser("~"), "items": items,
        "failed": failed, "again": order["files"]["again"],
    }
    answer = ask("cellferry_files", content, ident, parent)
    if answer["status"] != "ok":
        raise FileError(answer["message"])
    if way == "in" and RANK is not None:
        for path in (path for item in items for path in item["paths"]):
            # They were brought to the machine that the island is started from.
            if not glob.glob(os.path.join(FOLDER, os.path.expanduser(path)), recursive=True):
                raise FileError(
                    "`%s`, an input of cell [%s], is not in `%s` on %s: ranks on several nodes need a working directory that "
                    "these share; set it as `workdir` of the target in cellferry.toml"
                    % (path, order.get("count"), FOLDER, os.uname().nodename)
                )


def ask(kind, content, ident, parent):
    """Asks the kernel, which answers as it answers `input()`, and can be interrupted like it."""
    socket = kernel.stdin_socket
    question = kernel.session.send(socket, kind, content, parent, ident=ident)
    while True:
        # A signal may be handled in another thread and not end the wait.
        if zmq.select([socket], [], [], 0.02)[0]:
            _, answer = kernel.session.recv(socket)
            # What came too late for an earlier question is of no use.
            if answer and answer["parent_header"].get("msg_id") == question["header"]["msg_id"]:
                return answer["content"]


def fetch_modules(ident, parent):
    """Waits until the notebook's own modules, as they are now, are where they are looked for."""
    answer = ask("cellferry_modules", {}, ident, parent)
    if answer["status"] != "ok":
        raise FileError(answer["message"])
    importlib.invalidate_caches()


# The step that runs now, if it makes files.
making = []


def bring_home(result):
    """Called by IPython at the end of a cell: what it has made counts as part of it."""
    if not making:
        return
    order, ident, parent = making.pop()
    failed = result is None or not result.success
    # An interrupt must end the waiting, not what IPython waits for.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        bring("out", order["files"]["out"], order, ident, parent, failed)
    except BaseException as error:
        if not failed:
            result.error_in_exec = error
            line = "\x1b[31m%s\x1b[39m" % type(error).__name__ + (": %s" % error if str(error) else "")
            shell._showtraceback(type(error), error, [line])
    finally:
        signal.signal(signal.SIGINT, before)


execute_request = kernel.shell_handlers["execute_request"]
after_request = kernel.post_handler_hook
running = []


def execute(stream, ident, parent):
    """Runs the prelude, then the cell. No frame of ours stands below the user's code."""
    order = parent["metadata"].pop("cellferry", None)
    if order is None:
        return execute_request(stream, ident, parent)
    exported.clear()
    if order.get("count") is not None:
        shell.execution_count = order["count"]
    actions = order.get("actions") or ()
    before, failed = None, None
    if order.get("modules"):
        try:
            fetch_modules(ident, parent)
        except BaseException as error:
            failed = failure({"do": "files"}, error)
    if order.get("keep") is not None and not failed:
        try:
            before = befores[order["run"]] = Before(order["keep"])
            before.patient = Patient()
            before.keep_history(order.get("count"))
        except BaseException as error:
            failed = failure({"do": "keep", "names": order["keep"]}, error)
    if actions and not failed:
        failed = prelude(actions, [bytes(buffer) for buffer in parent.get("buffers", ())])
    if order.get("files") and not failed:
        try:
            bring("in", order["files"]["in"], order, ident, parent)
        except BaseException as error:
            failed = failure({"do": "files"}, error)
        making[:] = [(order, ident, parent)] if order["files"]["out"] else []
    steady = frozenset(order.get("steady") or ())
    watched = watch(order.get("watched") or (), steady) if not failed else []
    unbound = {}
    for name in order.get("unbound") or () if not failed else ():
        known.pop(name, None)
        if name in namespace:
            unbound[name] = namespace.pop(name)
    # What they stand for, in case that the cell binds them again.
    touched = order.get("touched")
    values = [(name, namespace[name]) for name in touched or () if name in namespace and may_share(namespace[name])]
    values = values if watched or before else []
    running.append((parent, failed, touched, before, watched, steady, unbound, values, order.get("seeds"), time.perf_counter()))
    return None if failed else execute_request(stream, ident, parent)


def report():
    """Called by ipykernel when it is done with a request: tells what the cell bound."""
    for _, _, _, before, *_ in running:
        if before:
            before.patient.end()
    after_request()
    making.clear()
    while running:
        parent, failed, touched, before, watched, steady, unbound, values, seeds, started = running.pop()
        seconds = time.perf_counter() - started
        if before:
            before.hold_history()
        for name, value in unbound.items():
            if name not in namespace:
                namespace[name] = value
                known[name] = mark_of(value)
        # In a notebook with one worker nobody else will ask.
        bound, gone = changes(thorough=touched is not None, seeds=seeds)
        seen = {name: describe_name(name) for name in touched or () if name not in bound and exists(name)}
        seen = {name: described for name, described in seen.items() if not described["partial"]}
        kept = before.kept if before and not failed else []
        compared = [*watched, *(before.watched if kept else ())]
        watched_names = {name for group, *_ in watched for name in group}
        others = {*bound, *(touched or ())} if compared else ()
        replaced = [(name, value) for name, value in values if namespace.get(name) is not value]
        content = {
            "bound": bound, "deleted": gone, "seen": seen, "failed": failed, "seconds": seconds,
            "kept": kept, "changed": sorted(changed(compared, steady, others, replaced) | (steady - watched_names)),
        }
        kernel.session.send(kernel.iopub_socket, "cellferry_report", content, parent=parent, ident=b"cellferry")


def request(stream, ident, parent):
    content = parent["content"]
    try:
        if content["verb"] == "take":
            reply, buffers = take(content)
        elif content["verb"] == "undo":
            undo(content["run"])
            reply, buffers = {"status": "ok"}, []
        elif content["verb"] == "settle":
            settled = befores.pop(content["run"], None)
            if settled:
                settled.settle()
            reply, buffers = {"status": "ok"}, []
        elif content["verb"] == "part":
            reply, buffers = {"status": "ok"}, part(content["names"])
        elif content["verb"] == "whole":
            given = [bytes(buffer) for buffer in parent.get("buffers", ())]
            reply, buffers = {"status": "ok"}, []
            reply["names"] = whole(content["names"], content["counts"], content["rank"], given)
        elif content["verb"] == "inputs":
            inputs(content, ())
            reply, buffers = {"status": "ok"}, []
        else:
            reply, buffers = {"status": "error", "message": "unknown verb `%s`" % content["verb"]}, []
    except KeyboardInterrupt:
        reply, buffers = {"status": "interrupted"}, []
    except BaseException as error:
        reply, buffers = {"status": "error", "message": "%s: %s" % (type(error).__name__, error)}, []
    reply["verb"] = content["verb"]
    kernel.session.send(stream, "cellferry_reply", reply, parent, ident=ident, buffers=buffers)


if RANK is not None:
    # What several ranks print at once must come at about the same time: ipykernel's own timers are far apart.
    sys.stdout.flush_interval = sys.stderr.flush_interval = 0.03

# An interrupt of a cell that awaits something is noted for the event loop, which would sleep on until something else happens.
wakes, waker = socket.socketpair()
for end in (wakes, waker):
    end.setblocking(False)
kernel.io_loop.add_handler(wakes, lambda woken, _: woken.recv(4096), kernel.io_loop.READ)
signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)

# A crash in compiled code says where: on the real stderr, since ipykernel's own dies with the process.
real_stderr = getattr(sys.stderr, "_original_stdstream_copy", None)
if real_stderr is not None:
    import faulthandler

    faulthandler.enable(real_stderr, all_threads=False)
for place in PATHS:  # noqa: F821 - given by the kernel: where the notebook's own modules are
    # Where IPython looks for them at home: before what is installed, after the standard library.
    if place not in sys.path:
        sys.path.insert(sys.path.index("") if "" in sys.path else 0, place)
hidden = set(namespace) - {"__name__"}
kernel.shell_handlers["execute_request"] = execute
kernel.post_handler_hook = report
shell.events.register("post_run_cell", bring_home)
kernel.shell_handlers["cellferry_request"] = request
known = snapshot()
