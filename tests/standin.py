"""A stand-in for a GPU: a torch device that is not the CPU, computes on it, and refuses what a GPU would refuse.

A `Far` tensor says that it is on `DEVICE` and holds an ordinary tensor that nobody else sees. Every operation of torch
comes by `Far.__torch_dispatch__`, which refuses ordinary tensors beside far ones: the error of CUDA, "Expected all
tensors to be on the same device". Allowed is what CUDA allows: an ordinary tensor of no dimension beside far ones, an
index on the CPU, a copy from one device to the other. `numpy`, `data_ptr` of C and the like do not work on a `Far`.
Inside `standing_in()` the device can be named wherever torch takes one: `torch.zeros(3, device=DEVICE)`, `x.to(DEVICE)`,
`module.to(DEVICE)`. The numbers are those of the CPU, draws too, so results can be compared exactly."""
import contextlib, torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

DEVICE = torch.device('xpu:0')   # a type that torch can name, and autocast knows, without its drivers
MOVES = {'_to_copy','copy_','copy'}
INDEXED = {'index','index_put','index_put_','_unsafe_index','_index_put_impl_','_unsafe_index_put'}

class Far(torch.Tensor):
    "An ordinary tensor that claims to be on another device"
    @staticmethod
    def __new__(cls, inner, requires_grad=False):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            layout=inner.layout, requires_grad=requires_grad, device='cpu')

    def __init__(self, inner, requires_grad=False): self.inner = inner

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        _refuse_mixed(func, name, args, kwargs)
        out = func(*tree_map(_inner, args), **tree_map(_inner, kwargs))
        if name=='copy_' and not isinstance(args[0], Far): return args[0]
        return return_and_correct_aliasing(func, args, kwargs, tree_map(_far, out))

    @property
    def device(self): return DEVICE
    @property
    def is_cpu(self): return False
    @property
    def is_xpu(self): return True
    def get_device(self): return 0
    def data_ptr(self): return self.inner.data_ptr()
    def tolist(self): return self.inner.tolist()
    def cpu(self, *args, **kw): return _Back.apply(self)
    def numpy(self, *args, **kw):
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first")
    def __array__(self, *args, **kw): return self.numpy()
    def __repr__(self): return f'Far({self.inner!r})'
    def __format__(self, spec): return format(self.item() if not self.ndim else repr(self), spec)
    def __deepcopy__(self, memo):
        if id(self) in memo: return memo[id(self)]
        out = Far(self.inner.clone())
        if hasattr(self, '_is_param'): out._is_param = True
        memo[id(self)] = out.requires_grad_(self.requires_grad)
        return out

def _inner(x): return x.inner if isinstance(x, Far) else x
def _far(x): return Far(x) if isinstance(x, torch.Tensor) and not isinstance(x, Far) else x

def _refuse_mixed(func, name, args, kwargs):
    "As CUDA does"
    if name in MOVES: return
    given = dict(zip([a.name for a in func._schema.arguments], args))|kwargs
    if name in INDEXED and isinstance(given['self'], Far): given.pop('indices')
    written = {a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    for what,value in given.items():
        for t in tree_flatten(value)[0]:
            if not isinstance(t, torch.Tensor) or isinstance(t, Far): continue
            if not t.ndim and what not in written: continue
            raise RuntimeError(f'Expected all tensors to be on the same device, but {what} of {name} is on cpu, '
                               f'different from other tensors on {DEVICE}')

class _Back(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return x.inner.clone()
    @staticmethod
    def backward(ctx, g): return Far(g)

class _There(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x): return Far(x.detach().clone())
    @staticmethod
    def backward(ctx, g): return g.inner

def _is_here(device): return device is not None and torch.device(device)==DEVICE

def _moved(x, *args, non_blocking=False, copy=False, memory_format=None, device=None, dtype=None):
    "`Tensor.to`, between this device and the CPU too"
    for a in args:
        if isinstance(a, torch.Tensor): device,dtype = a.device,a.dtype
        elif isinstance(a, torch.dtype): dtype = a
        elif isinstance(a, (str, torch.device, int)) and not isinstance(a, bool): device = a
    if device is not None and _is_here(device)!=isinstance(x, Far): x = (_There if _is_here(device) else _Back).apply(x)
    with torch._C.DisableTorchFunctionSubclass():
        if dtype is not None and dtype!=x.dtype: return x.to(dtype)
        return x.clone() if copy else x

class Here(TorchFunctionMode):
    "Makes the device one that torch can be asked for"
    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.to: return _moved(*args, **kwargs)
        if not _is_here(kwargs.get('device')): return func(*args, **kwargs)
        if isinstance(args[0] if args else None, Far): kwargs.pop('device')
        else: kwargs['device'] = 'cpu'
        out = func(*args, **kwargs)
        if isinstance(out, Far) or not isinstance(out, torch.Tensor): return out
        return Far(out.detach()).requires_grad_() if out.requires_grad else Far(out)

_module_to = torch.nn.Module.to

def _move_module(module, *args, **kw):
    "`Module.to`: weights that are tied stay tied, as they do on a GPU; parameters are new objects, as they are not there"
    device = kw.get('device', args[0] if args else None)
    if not isinstance(device, (str, torch.device)): return _module_to(module, *args, **kw)
    moved = {}
    for m in module.modules():
        for own in (m._parameters, m._buffers):
            for name,t in own.items():
                if t is None or _is_here(device)==isinstance(t, Far): continue
                if id(t) not in moved: moved[id(t)] = _other_side(t)
                own[name] = moved[id(t)]
    return module

def _other_side(t):
    inner = t.detach()
    there = inner.inner.clone() if isinstance(inner, Far) else Far(inner.clone())
    return torch.nn.Parameter(there, t.requires_grad) if isinstance(t, torch.nn.Parameter) else there

@contextlib.contextmanager
def standing_in():
    "Inside the block `DEVICE` is there"
    torch.nn.Module.to = _move_module
    try:
        with Here(): yield DEVICE
    finally: torch.nn.Module.to = _module_to
