"""CUDA tensors without values, on a machine without a GPU.

Within `fake_cuda()` what lies on the CPU is real, and what lies on `cuda` has a shape, a type and a device but no
values (`torch._subclasses.fake_tensor`). Setting up moves tensors to the device as on a GPU. Within `no_waiting()` what
would wait for the device is refused, as is a tensor that stayed on the CPU, with the line of ours where it happened.
Gradients are computed by calling the nodes of the graph one by one: PyTorch's engine needs a real device."""
import contextlib
import linecache
import sys
import warnings
from collections import defaultdict
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from unittest.mock import patch

import torch
from torch._subclasses.fake_tensor import DynamicOutputShapeException, DataDependentOutputException
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

ROOT = Path(__file__).resolve().parents[1]
CUDA = torch.device('cuda', 0)


class Refused(AssertionError):
    "What a GPU would wait for, or could not do; `where` is file and line of ours."
    where = ''


@dataclass(frozen=True)
class Wait:
    "A place in the library that may wait, and what the host gets there instead of a value."
    where: str      # module and function, as in 'transport._Solver.next'
    why: str
    gives: object = 0   # the number that is read, or several in turn; how many a mask chooses; a copy gives zeros


def _ours(frame):
    return frame.f_code.co_filename.startswith(str(ROOT)) and frame.f_code.co_filename != __file__ \
        and '/.venv/' not in frame.f_code.co_filename


def _innermost(frame=None):
    "The innermost frame of ours, library or tests; what checks an argument speaks for the one who asks."
    frame = frame or sys._getframe()
    while frame and (not _ours(frame) or frame.f_globals['__name__'] == 'nmc_workbench.core.checks'):
        frame = frame.f_back
    return frame


def _function(frame):
    "Module and function; what stands within a function belongs to it."
    name = f'{frame.f_globals["__name__"]}.{frame.f_code.co_qualname}'
    return name.removeprefix('nmc_workbench.').split('.<locals>')[0]


def refuse(what, op):
    "Raise, with the line of ours."
    frame = _innermost()
    path, line = Path(frame.f_code.co_filename), frame.f_lineno
    where = f'{path.relative_to(ROOT)}:{line}'
    error = Refused(f'{where} in {_function(frame)}: {linecache.getline(str(path), line).strip()}\n    {what} ({op})')
    error.where = where
    raise error from None


# operations that wait for the device by themselves, or copy what they are told from the host
_READS = 'a value of the device is read on the host (.item(), float(), bool(), if, tolist)'
_SHAPE = 'the shape of the result depends on values (a mask as index, nonzero, unique, bincount)'
_WAITS = {
    **dict.fromkeys(['_local_scalar_dense', 'equal', 'is_nonzero', 'allclose'], _READS),
    **dict.fromkeys(['nonzero', '_unique2', 'unique_dim', 'unique_consecutive', 'masked_select', 'bincount'], _SHAPE),
    **dict.fromkeys(['_linalg_check_errors', '_linalg_eigh', '_linalg_svd', 'linalg_eig', 'linalg_lstsq'],
                    'this decomposition waits to see whether it succeeded')}


_DOWN = 'a tensor is copied to the host'
_UP = 'a tensor is copied from the host, which waits (core.devices.to_device does not)'
_MASK = 'several values are put where a mask is true, which is counted first'
_INDEX = 'an index lies on the host, and is copied at every call'
_VALUES = _READS, _SHAPE, _DOWN         # the host wants to know something that nobody knows
_COPIES = '_to_copy', 'copy_'
_UNKNOWN = DataDependentOutputException, DynamicOutputShapeException


def _tensors(*trees): return [t for t in tree_leaves(trees) if isinstance(t, torch.Tensor)]


def _on_cuda(x): return x.device.type == 'cuda'


class Watch(TorchDispatchMode):
    "Computes on the CPU what lies there, and only the form of what lies on the device."
    def __init__(self):
        super().__init__()
        self.strict, self.seen, self.used = False, 0, set()
        self.allow(())

    def allow(self, waits):
        "Excuse these places from now on, and no others."
        self.allowed = {w.where: w for w in waits}
        self.answers = {w.where: cycle(w.gives if isinstance(w.gives, tuple) else [w.gives]) for w in waits}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        tensors = _tensors(args, kwargs)
        to_cuda = kwargs.get('device') is not None and torch.device(kwargs['device']).type == 'cuda'
        if not to_cuda and not any(isinstance(t, FakeTensor) for t in tensors):
            with unset_fake_temporarily(): return func(*args, **kwargs)
        self.seen += 1
        problem = _problem(name, args, kwargs, self.strict)
        if problem in _VALUES: return self._given(problem, name, args, kwargs)
        if problem: self._excused(problem, name)
        try: return func(*args, **kwargs)
        except _UNKNOWN: return self._given(_SHAPE, name, args, kwargs)
        except RuntimeError as e:
            if 'device' not in str(e): raise
        refuse('a tensor stayed on another device', func)

    def _excused(self, problem, name):
        "The `Wait` of the place that runs; an error where there is none."
        wait = self.allowed.get(_function(_innermost()))
        if wait: self.used.add(wait.where)
        elif self.strict or problem != _DOWN: refuse(problem, name)
        return wait

    def _given(self, problem, name, args, kwargs):
        "What the host gets where it may wait; in setting up, a copy to the host is full of zeros."
        wait, x = self._excused(problem, name), args[1] if name == 'copy_' else args[0]
        gives = next(self.answers[wait.where]) if wait else 0
        if name == '_local_scalar_dense': return bool(gives) if x.dtype == torch.bool else gives
        if name in ('equal', 'is_nonzero', 'allclose'): return bool(gives)
        return self._tensor(name, x, args, kwargs, gives)

    def _tensor(self, name, x, args, kwargs, gives):
        "The form of a result whose values nobody knows."
        if name == '_to_copy': return self._on_host(torch.zeros, x.shape, dtype=x.dtype)
        if name == 'copy_': return args[0]
        if name == 'index': return x.new_empty(int(gives), *x.shape[_tensors(args[1])[0].dim():])
        if name == 'nonzero': return x.new_empty(int(gives), x.dim(), dtype=torch.int64)
        if name == 'bincount': return x.new_empty(args[2] if len(args) > 2 else kwargs['minlength'], dtype=torch.int64)
        refuse('this may not be excused', name)

    def _on_host(self, make, *args, **more):
        with unset_fake_temporarily(): return make(*args, **more)


def _problem(name, args, kwargs, strict):
    "Why this operation waits, or `None`."
    if name in _WAITS: return _WAITS[name] if strict or _WAITS[name] in _VALUES else None
    if name in _COPIES: return _copy_problem(name, args, kwargs, strict)
    return _index_problem(name, args) if strict and name.startswith(('index', '_index')) else None


def _copy_problem(name, args, kwargs, strict):
    "A copy to the host waits always, one to the device unless it is told not to."
    source = args[1] if name == 'copy_' else args[0]
    target = args[0].device if name == 'copy_' else torch.device(kwargs.get('device') or source.device)
    if _on_cuda(source): return _DOWN if target.type == 'cpu' else None
    queued = kwargs.get('non_blocking') or (name == 'copy_' and len(args) > 2 and args[2])
    if not strict or target.type != 'cuda' or queued: return None
    return _UP


def _index_problem(name, args):
    "An index that lies on the host is copied at every call; a mask with several values to put is counted first."
    indices = _tensors(args[1]) if isinstance(args[1], (list, tuple)) else []
    if any(not _on_cuda(i) for i in indices): return _INDEX
    masks = any(i.dtype in (torch.bool, torch.uint8) for i in indices)
    return _MASK if masks and 'put' in name and args[2].numel() != 1 else None


class _Kind(type):
    def __instancecheck__(cls, x): return isinstance(x, _Real)


_Real = torch.Generator


class _OnCuda(_Real):
    "A generator that says that it is on the device; it gives no numbers."
    @property
    def device(self): return CUDA


class _Generator(metaclass=_Kind):
    "Stands for torch.Generator."
    def __new__(cls, device='cpu'): return _OnCuda() if torch.device(device).type == 'cuda' else _Real(device)


class _Event:
    "Stands for torch.cuda.Event."
    def __init__(self, **more): pass
    def record(self): pass
    def elapsed_time(self, other): return 0.


def _move(module, fn, recurse=True):
    "Stands for nn.Module._apply, which gives a parameter other contents; a tensor cannot become a fake one in place."
    moved = {}
    for m in module.modules() if recurse else [module]:
        for kept in (m._parameters, m._buffers):
            for name, t in kept.items():
                if t is not None: kept[name] = moved.setdefault(t, _moved(t, fn))
    return module


def _moved(t, fn):
    with torch.no_grad(): new = fn(t.detach())
    if (new.device, new.dtype, new.stride()) == (t.device, t.dtype, t.stride()): return t
    return torch.nn.Parameter(new, t.requires_grad) if isinstance(t, torch.nn.Parameter) else new


# --- gradients, node by node


def _order(roots):
    "How many edges lead to each node that the roots reach."
    counts, todo, seen = defaultdict(int), list(roots), set(roots)
    while todo:
        for node, _ in todo.pop().next_functions:
            if node is None: continue
            counts[node] += 1
            if node not in seen: seen.add(node), todo.append(node)
    return counts


def _apply(node, grads):
    "The gradients of what went into a node, with the nodes they belong to."
    if hasattr(node, '_forward_cls'):               # an autograd.Function of ours: it gets zeros for what is missing
        made = [torch.zeros(m.shape, dtype=m.dtype, device=m.device) if g is None else g
                for g, m in zip(grads, node._input_metadata)]
        out = node.apply(*made)
        out = out if isinstance(out, tuple) else (out,)
        out = [g for g, needed in zip(out, node.needs_input_grad) if needed]
        return zip([f for f in node.next_functions if f[0] is not None], out)
    out = node(*grads)
    return zip(node.next_functions, out if isinstance(out, tuple) else (out,))


def _walk(outputs, grads, wanted):
    "The gradients of the places (node, number) in `wanted`, and of all leaves by their tensor."
    given, leaves, found = defaultdict(dict), {}, {}
    for o, g in zip(outputs, grads): given[o.grad_fn][o.output_nr] = g
    counts, ready = _order(given), list(given)
    ready = [n for n in ready if not counts[n]]
    while ready:
        node = ready.pop()
        slots = given.pop(node, {})
        found.update({(node, i): g for i, g in slots.items() if (node, i) in wanted})
        if hasattr(node, 'variable'): leaves[node.variable] = slots.get(0)
        pairs = [] if hasattr(node, 'variable') else _apply(node, [slots.get(i) for i in range(_width(node))])
        sent = {}
        for (to, i), g in pairs:
            if to is None or g is None: continue
            g, before = _fitted(g, to._input_metadata[i]), given[to].get(i)
            given[to][i] = g if before is None else before + g
        for to, _ in node.next_functions:
            if to is None: continue
            counts[to] -= 1
            if not counts[to] and to not in sent: sent[to] = ready.append(to)
    return found, leaves


def _fitted(g, form):
    "As the engine does: what was broadcast is summed, and the type is that of the tensor."
    return (g if g.shape == form.shape else g.sum_to_size(form.shape)).to(form.dtype)


def _width(node): return len(node._input_metadata)


def _as_lists(outputs, grads):
    outputs = [outputs] if isinstance(outputs, torch.Tensor) else list(outputs)
    grads = [grads] if grads is None or isinstance(grads, torch.Tensor) else list(grads)
    grads = grads if len(grads) == len(outputs) else [None] * len(outputs)
    return outputs, [torch.ones_like(o) if g is None else g for o, g in zip(outputs, grads)]


def gradients(outputs, inputs, grad_outputs=None, retain_graph=None, create_graph=False, **more):
    "Stands for torch.autograd.grad."
    inputs = [inputs] if isinstance(inputs, torch.Tensor) else list(inputs)
    places = [(x.grad_fn, x.output_nr) for x in inputs]
    with torch.set_grad_enabled(create_graph):
        found, leaves = _walk(*_as_lists(outputs, grad_outputs), {p for p in places if p[0] is not None})
    return tuple(leaves.get(x) if p[0] is None else found.get(p) for x, p in zip(inputs, places))


def _backward(tensors, grad_tensors=None, retain_graph=None, create_graph=False, *more, **named):
    "Stands for torch.autograd.backward."
    with torch.set_grad_enabled(create_graph):
        _, leaves = _walk(*_as_lists(tensors, grad_tensors), set())
        for x, g in leaves.items():
            if g is not None: x.grad = g if x.grad is None else x.grad + g


# --- the context


def _no_array(self, *a, **k): refuse('a tensor of the device becomes an array on the host', 'numpy')


class FakeCuda:
    "What `fake_cuda` gives."
    device = CUDA

    def __init__(self, watch): self.watch = watch

    @contextlib.contextmanager
    def no_waiting(self, allowed=()):
        "Within, the host may not wait for the device but in these places; something must happen on the device."
        watch, seen = self.watch, self.watch.seen
        watch.strict = True
        watch.allow(allowed)
        try: yield
        finally:
            watch.strict = False
            watch.allow(())
        assert watch.seen > seen, 'nothing was computed on the device'

    @property
    def used(self): return self.watch.used


@contextlib.contextmanager
def fake_cuda():
    "Within, `device='cuda'` is a device of this machine, whose tensors have no values."
    stand_ins = [
        (torch, 'Generator', _Generator), (torch.autograd, 'grad', gradients), (torch.autograd, 'backward', _backward),
        (torch.cuda.amp.common, 'amp_definitely_not_available', lambda: False),
        (torch.cuda, 'is_bf16_supported', lambda *a: True), (torch.cuda, 'Event', _Event),
        (torch.cuda, 'device_count', lambda: 1), (torch.nn.Module, '_apply', _move),
        (FakeTensor, 'numpy', _no_array), (FakeTensor, '__array__', _no_array)]
    with contextlib.ExitStack() as stack:
        for owner, name, new in stand_ins:
            stack.enter_context(patch.object(owner, name, new, create=True))
        stack.enter_context(warnings.catch_warnings())
        for known in ('User provided device_type', 'Accessing the data pointer of FakeTensor'):
            warnings.filterwarnings('ignore', known)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield FakeCuda(stack.enter_context(Watch()))
