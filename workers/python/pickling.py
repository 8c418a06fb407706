"""How values are pickled between workers: what pickle cannot carry, or would carry as something else.

Functions come back with the notebook's live globals, classes made in the notebook keep their identity within a
worker, arrays go out of band, views with the memory they show. Part of the same module as `helper.py`, which
knows the namespace. Standard library only.
"""

import abc
import collections
import copyreg
import enum
import functools
import gc
import importlib
import io
import linecache
import marshal
import os
import pickle
import sys
import types
import typing
import weakref

PROTOCOL = 5
# Buffers below this size (bytes) stay inside the pickle: they are cheaper to copy than to map.
OUT_OF_BAND = 1 << 20


class Uncarriable(Exception):
    pass


def refuse(value):
    """Types that pickle without a word but would not be the same thing elsewhere."""
    if isinstance(value, io.IOBase) and not isinstance(value, (io.BytesIO, io.StringIO)):
        raise Uncarriable("cannot carry an open file")
    if isinstance(value, (types.GeneratorType, types.CoroutineType, types.AsyncGeneratorType)):
        raise Uncarriable("cannot carry a running %s" % type(value).__name__)


# --- functions ---------------------------------------------------------------------------------------


def make_cell():
    return types.CellType()


def fill_cell(cell, state):
    if state:
        cell.cell_contents = state[0]


def make_function(version, code, cells, origin, module):
    if tuple(version) != sys.version_info[:2]:
        raise Uncarriable(
            "function made by Python %d.%d cannot run in Python %d.%d; define it with `def` at the top of a cell"
            % (*version, *sys.version_info[:2])
        )
    scope = namespace if module is None else vars(importlib.import_module(module))
    function = types.FunctionType(marshal.loads(code), scope, closure=cells or None)
    if origin:
        remember_source(function.__code__.co_filename, *origin)
    return function


def fill_function(function, state):
    name, qualified, module, defaults, keyword_defaults, annotations, doc, attributes = state
    function.__name__, function.__qualname__, function.__module__ = name, qualified, module
    function.__defaults__, function.__kwdefaults__ = defaults, keyword_defaults
    function.__annotations__, function.__doc__ = annotations, doc
    function.__dict__.update(attributes)


def remember_source(filename, number, lines):
    """Lets tracebacks show the lines of a cell that ran elsewhere."""
    if filename not in linecache.cache:
        linecache.cache[filename] = (sum(map(len, lines)), None, lines, filename)
        names = getattr(shell.compile, "_filename_map", None)
        if names is not None:
            names[filename] = number


def origin_of(code):
    entry = linecache.cache.get(code.co_filename)
    names = getattr(shell.compile, "_filename_map", None) or {}
    if entry is None or len(entry) < 3 or code.co_filename not in names:
        return None
    return names[code.co_filename], entry[2]


def annotations_of(function):
    try:
        return dict(function.__annotations__)
    except Exception:  # from Python 3.14 on they are evaluated only now, and may not be possible to evaluate
        return {}


def global_names(code):
    names = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= global_names(constant)
    return names


# --- classes made in the notebook that are not replayed as source ------------------------------------------

# Each has an identity, so that a class that comes back is the one that left.
identity_of = weakref.WeakKeyDictionary()
class_of = weakref.WeakValueDictionary()

# What the class statement makes; what a class must be made with comes first.
EARLY = ("__module__", "__qualname__", "__slots__", "__orig_bases__", "__doc__")
MADE = EARLY + ("__dict__", "__weakref__", "__abstractmethods__", "_abc_impl", "__firstlineno__", "__static_attributes__")


def track(value, identity=None):
    found = identity_of.get(value)
    if found is None:
        found = identity_of[value] = identity or os.urandom(16).hex()
        class_of[found] = value
    return found


def make_class(identity, metaclass, name, bases, early):
    if identity in class_of:
        return class_of[identity]
    # What a metaclass of the notebook does when a class is made was done when this one was first made.
    maker = next(kind for kind in metaclass.__mro__ if not is_own(kind))
    value = maker.__new__(metaclass, name, bases, early)
    track(value, identity)
    return value


def class_state(value):
    descriptors = types.MemberDescriptorType, types.GetSetDescriptorType
    return {key: item for key, item in vars(value).items() if key not in MADE and not isinstance(item, descriptors)}


def fill_class(value, state):
    for key in class_state(value):
        if key not in state:
            type.__delattr__(value, key)
    for key, item in state.items():
        if vars(value).get(key) is not item:
            type.__setattr__(value, key, item)
    if isinstance(value, abc.ABCMeta) and hasattr(abc, "update_abstractmethods"):
        value.__abstractmethods__ = frozenset()
        abc.update_abstractmethods(value)


def make_enum(identity, metaclass, name, bases, early, members):
    if identity in class_of:
        return class_of[identity]
    body = metaclass.__prepare__(name, bases)
    for key, item in (*early.items(), *members):
        body[key] = item
    value = metaclass.__new__(metaclass, name, bases, body)
    track(value, identity)
    return value


def enum_state(value):
    """The methods and plain attributes; the members and their books are made with the class."""
    return {
        key: item for key, item in class_state(value).items()
        if key not in value.__members__ and (not key.startswith("_") or is_of_source(value, key, item))
        and not key.startswith("_generate") and key not in ("__new__", "__reduce_ex__", "__members__")
    }


def fill_enum(value, state):
    for key, item in state.items():
        type.__setattr__(value, key, item)


def make_named_tuple(identity, name, fields, defaults, module):
    if identity in class_of:
        return class_of[identity]
    value = collections.namedtuple(name, fields, defaults=defaults, module=module)
    track(value, identity)
    return value


# --- odd values --------------------------------------------------------------------------------------------


def make_exception(kind, arguments):
    # Its `__init__` may take other arguments than those that `args` holds.
    value = kind.__new__(kind, *arguments)
    value.args = arguments
    return value


def fill_exception(value, state):
    attributes, cause, context, suppressed = state
    value.__dict__.update(attributes)
    value.__cause__, value.__context__, value.__suppress_context__ = cause, context, suppressed


def fill_instance(value, state):
    slots = None
    if type(state) is tuple and len(state) == 2:
        state, slots = state
    vars(value).update(state or {})
    for key, item in (slots or {}).items():
        object.__setattr__(value, key, item)


def make_type_variable(kind, name, arguments, options):
    value = kind(name, *arguments, **options)
    value.__module__ = "__main__"
    return value


def make_method(function, instance):
    return types.MethodType(function, instance)


def make_proxy(mapping):
    return types.MappingProxyType(mapping)


def make_weak_dictionary(items):
    return weakref.WeakKeyDictionary(items)


def make_cached_property(function, name):
    made = functools.cached_property(function)
    made.attrname = name
    return made


def make_lru_cache(function, parameters):
    return functools.lru_cache(**parameters)(function)


def resolves(value):
    """Whether a function or class is found in its module under its name."""
    found = sys.modules.get(value.__module__)
    for part in value.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is value


def has_own_getattr(kind):
    return any("__getattr__" in vars(base) and is_own(base) for base in kind.__mro__)


TYPE_VARIABLES = tuple(
    getattr(typing, name) for name in ("TypeVar", "ParamSpec", "TypeVarTuple") if hasattr(typing, name)
)


# --- arrays ------------------------------------------------------------------------------------------------


def map_array(buffer, dtype, shape, order):
    numpy = sys.modules.get("numpy") or importlib.import_module("numpy")
    if order == "C" and isinstance(buffer, numpy.ndarray):
        # Memory copied for this array alone: it owns it, as the original does.
        try:
            buffer.dtype, buffer.shape = dtype, shape
            return buffer
        except (AttributeError, ValueError, DeprecationWarning):
            pass
    return numpy.ndarray(shape, dtype, buffer=buffer, order=order)


def make_view(base, dtype, shape, offset, strides, writeable):
    numpy = sys.modules["numpy"]
    view = numpy.ndarray(shape, dtype, buffer=base, offset=offset, strides=strides)
    view.flags.writeable = writeable
    return view


def owner_of(array):
    """The array that owns the memory which `array` looks at."""
    numpy = sys.modules["numpy"]
    while isinstance(array.base, numpy.ndarray):
        array = array.base
    return array


class Pickler(pickle.Pickler):
    """Carries what pickle cannot: functions with live globals, classes, views that share their memory.

    What stands in the notebook's namespace under its own name (a class, a `def`) goes by that
    name, unless it is itself what is carried (`by_value`); the names needed on the other side are gathered in `needs`,
    the modules in `modules`.
    """

    def __init__(self, file, by_value=(), shared_bases=(), buffer_callback=None):
        super().__init__(file, PROTOCOL, buffer_callback=buffer_callback)
        self.by_value = by_value
        self.shared_bases = shared_bases
        self.needs = set()
        self.modules = set()
        self.bases = {}

    def reducer_override(self, value):
        kind = type(value)
        if kind is types.FunctionType:
            return self.reduce_function(value)
        if issubclass(kind, type):
            return self.reduce_class(value)
        reduce = REDUCERS.get(kind)
        if reduce is not None:
            return reduce(self, value)
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.ndarray):
            return self.reduce_array(value)
        if isinstance(value, BaseException):
            return self.reduce_exception(value)
        refuse(value)
        if is_own(kind) and has_own_getattr(kind):
            return self.reduce_evasive(value)
        # A wrapper that pickles by the name of what it wraps, such as `functools.lru_cache`.
        attributes = getattr(value, "__dict__", None)
        if type(attributes) is dict and attributes.get("__module__") == "__main__":
            return self.reduce_named(value, attributes.get("__qualname__"))
        return NotImplemented

    def note_module(self, name):
        if isinstance(name, str):
            self.modules.add(name.split(".")[0])

    def own_name(self, value):
        """The notebook name by which `value` can be found again, if it goes by name."""
        if not is_own(value):
            return None
        root = value.__qualname__.split(".")[0]
        if RESULT_NAME.match(root):  # what IPython takes for the last result, elsewhere another
            return None
        found = namespace.get(root)
        for part in value.__qualname__.split(".")[1:]:
            found = getattr(found, part, None)
        return root if found is value and root not in self.by_value else None

    def reduce_named(self, value, name):
        if isinstance(name, str) and namespace.get(name) is value and name not in self.by_value:
            self.needs.add(name)
            return NotImplemented
        if isinstance(value, functools._lru_cache_wrapper) and hasattr(value, "cache_parameters"):
            # What is in the cache cannot be had; it will be computed again.
            return make_lru_cache, (value.__wrapped__, value.cache_parameters())
        return NotImplemented

    def reduce_function(self, value):
        name = value.__qualname__
        self.note_module(value.__module__)
        if not is_own(value) and resolves(value):
            return NotImplemented
        root = self.own_name(value)
        if root is not None:
            self.needs.add(root)
            return NotImplemented
        module = None
        if value.__globals__ is not namespace:
            module = value.__globals__.get("__name__")
            if getattr(sys.modules.get(module), "__dict__", None) is not value.__globals__:
                raise Uncarriable("cannot carry the function `%s`: its module cannot be imported" % name)
            self.note_module(module)
        for name in global_names(value.__code__) if module is None else ():
            if name in namespace and not INPUT_NAME.match(name):
                self.needs.add(name)
        code = marshal.dumps(value.__code__)
        state = (
            value.__name__, value.__qualname__, value.__module__, value.__defaults__,
            value.__kwdefaults__, annotations_of(value), value.__doc__, dict(value.__dict__),
        )
        version = tuple(sys.version_info[:2])
        arguments = version, code, value.__closure__ or (), origin_of(value.__code__), module
        return make_function, arguments, state, None, None, fill_function

    def reduce_class(self, value):
        self.note_module(value.__module__)
        # What no class statement made (`Py_TPFLAGS_HEAPTYPE` is not set) is left to pickle.
        if not is_own(value) and (resolves(value) or not value.__flags__ & (1 << 9)):
            return NotImplemented
        root = self.own_name(value)
        if root is not None:
            self.needs.add(root)
            return NotImplemented
        early = {key: vars(value)[key] for key in EARLY if key in vars(value)}
        early["__qualname__"] = value.__qualname__
        head = track(value), type(value), value.__name__, value.__bases__, early
        if isinstance(value, enum.EnumMeta):
            members = [(name, member.value) for name, member in value.__members__.items()]
            return make_enum, (*head, members), enum_state(value), None, None, fill_enum
        if value.__bases__ == (tuple,) and hasattr(value, "_field_defaults"):
            defaults = tuple(value._field_defaults.values())
            return make_named_tuple, (head[0], value.__name__, value._fields, defaults, value.__module__)
        return make_class, head, class_state(value), None, None, fill_class

    def reduce_module(self, value):
        if sys.modules.get(value.__name__) is not value or value is main:
            raise Uncarriable("cannot carry a module that was made by hand")
        self.note_module(value.__name__)
        return importlib.import_module, (value.__name__,)

    def reduce_cell(self, value):
        try:
            state = (value.cell_contents,)
        except ValueError:
            state = ()
        return make_cell, (), state, None, None, fill_cell

    def reduce_exception(self, value):
        kind = type(value)
        if kind.__reduce__ is not BaseException.__reduce__ or kind.__reduce_ex__ is not object.__reduce_ex__:
            return NotImplemented
        if hasattr(kind, "__setstate__") and kind.__setstate__ is not BaseException.__setstate__:
            return NotImplemented
        state = dict(value.__dict__), value.__cause__, value.__context__, value.__suppress_context__
        return make_exception, (kind, value.args), state, None, None, fill_exception

    def reduce_evasive(self, value):
        """An instance whose `__getattr__` would answer for the methods that pickle looks for."""
        reduced = value.__reduce_ex__(PROTOCOL)
        if type(reduced) is not tuple or reduced[0] is not copyreg.__newobj__ or hasattr(type(value), "__setstate__"):
            return NotImplemented
        return (*(reduced + (None,) * 3)[:5], fill_instance)

    def reduce_type_variable(self, value):
        if value.__module__ != "__main__":
            return NotImplemented
        if namespace.get(value.__name__) is value and value.__name__ not in self.by_value:
            self.needs.add(value.__name__)
            return NotImplemented
        options = {
            key: getattr(value, "__%s__" % key) for key in ("bound", "covariant", "contravariant")
            if getattr(value, "__%s__" % key, None)
        }
        return make_type_variable, (type(value), value.__name__, getattr(value, "__constraints__", ()), options)

    def reduce_sentinel(self, value):
        """The marks of `dataclasses`, which are compared by identity."""
        module = sys.modules["dataclasses"]
        found = next((name for name, item in vars(module).items() if item is value), None)
        return NotImplemented if found is None else found

    def reduce_proxy(self, value):
        return make_proxy, tuple(gc.get_referents(value)[:1])

    def reduce_array(self, value):
        numpy = sys.modules["numpy"]
        owner = owner_of(value)
        self.bases[id(owner)] = owner
        # A reshaped array is a view still when it comes back, even if nobody else looks at its memory.
        reshaped = type(value) is type(owner) is numpy.ndarray and owner.nbytes == value.nbytes
        if not (reshaped or id(owner) in self.shared_bases) or owner is value or value.dtype.hasobject:
            if type(value) is not numpy.ndarray or value.dtype.hasobject:
                return NotImplemented
            if value.nbytes >= OUT_OF_BAND and (value.flags.c_contiguous or value.flags.f_contiguous):
                try:
                    buffer = pickle.PickleBuffer(value)
                except (BufferError, ValueError):
                    return value.__reduce__()
                order = "C" if value.flags.c_contiguous else "F"
                return map_array, (buffer, value.dtype, value.shape, order)
            # NumPy's own protocol 5 form would give a small array that does not own its memory.
            return value.__reduce__()
        offset = value.__array_interface__["data"][0] - owner.__array_interface__["data"][0]
        return make_view, (owner, value.dtype, value.shape, offset, value.strides, value.flags.writeable)


REDUCERS = {
    types.ModuleType: Pickler.reduce_module,
    types.CellType: Pickler.reduce_cell,
    # Pickle looks a method up by its function's name, which need not be the name that it has in its class.
    types.MethodType: lambda _, value: (make_method, (value.__func__, value.__self__)),
    types.MappingProxyType: Pickler.reduce_proxy,
    property: lambda _, value: (property, (value.fget, value.fset, value.fdel, value.__doc__)),
    classmethod: lambda _, value: (classmethod, (value.__func__,)),
    staticmethod: lambda _, value: (staticmethod, (value.__func__,)),
    functools.cached_property: lambda _, value: (make_cached_property, (value.func, value.attrname)),
    weakref.WeakKeyDictionary: lambda _, value: (make_weak_dictionary, (dict(value),)),
    **{kind: Pickler.reduce_type_variable for kind in TYPE_VARIABLES},
}
try:
    import dataclasses

    REDUCERS[type(dataclasses.MISSING)] = REDUCERS[type(dataclasses._FIELD)] = Pickler.reduce_sentinel
except (ImportError, AttributeError):  # the marks have other names in this version
    pass
