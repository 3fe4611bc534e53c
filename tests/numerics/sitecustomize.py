"""Other roundings, so that a test can be seen to hold on any processor: a switch for tests, unknown to the package.

    PROMPTBENCH_TEST_NUMERICS=onednn,threads=2,nudge=1e-6 python -m pytest -m outcome

Parts, in any order, all optional:
    mkl | onednn   the library of the products of linear layers (PROMPTBENCH_LINEAR)
    bf16 | fp32    what precision='auto' chooses
    threads=N      threads of torch, whatever OMP_NUM_THREADS says: sums are split elsewhere
    nudge=X        weights of embedded and of new backbones times 1 + X times noise, when they are made; 1e-6 is more
                   than another processor does, 1e-4 and 1e-3 find slim margins sooner
    draw=N         which noise; 0 unless told

The conftest beside run.py calls `apply`. Processes that tests start find this file as `sitecustomize` on their
PYTHONPATH, and do the same; nothing is imported before promptbench.model.backbone is."""
import importlib.abc, importlib.util, os, sys
from pathlib import Path

NAME,TARGET = 'PROMPTBENCH_TEST_NUMERICS','promptbench.model.backbone'

def parse(text):
    "Parts of `text` by name; ValueError says which one is not known"
    out = {}
    for part in filter(None, (p.strip() for p in text.split(','))):
        key,_,value = part.partition('=')
        if part in ('mkl','onednn'): out['linear'] = part
        elif part in ('bf16','fp32'): out['precision'] = part
        elif key in ('threads','draw'): out[key] = int(value)
        elif key=='nudge': out[key] = float(value)
        else: raise ValueError(f'{NAME}: {part!r} is none of mkl, onednn, bf16, fp32, threads=N, nudge=X, draw=N')
    return out

def nudged(backbone, size, draw=0):
    "`backbone` with every weight times 1 + `size` times noise: the same noise for the same shape of model"
    import torch
    g = torch.Generator().manual_seed(draw)
    with torch.no_grad():
        for p in backbone.model.parameters(): p.mul_(1+size*torch.randn(p.shape, generator=g).to(p.device))
    return backbone

def threads(asked):
    if 'threads' in asked:
        import torch
        torch.set_num_threads(asked['threads'])

def patch(module, asked):
    "Let `module`, promptbench.model.backbone, make other backbones"
    threads(asked)
    if 'precision' in asked: module.bf16_pays = lambda device='cpu': asked['precision']=='bf16'
    if 'nudge' not in asked: return
    load,new = module.load_backbone,module.new_backbone
    from promptbench.base.catalogue import embedded
    by = asked['nudge'],asked.get('draw', 0)
    def load_backbone(name, **kw):
        loaded = load(name, **kw)
        return nudged(loaded, *by) if embedded(name) else loaded
    def new_backbone(*args, **kw): return nudged(new(*args, **kw), *by)
    for mine,theirs in ((load_backbone, load), (new_backbone, new)):
        mine.__doc__ = theirs.__doc__
        setattr(module, mine.__name__, mine)

class Finder(importlib.abc.MetaPathFinder):
    "Sees the one module pass by, and patches it when it has been executed: before any other takes names from it"
    def __init__(self, asked): self.asked = asked
    def find_spec(self, name, path=None, target=None):
        if name!=TARGET: return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def exec_module(module): run(module); patch(module, self.asked)
        spec.loader.exec_module = exec_module
        return spec

def apply():
    "What the environment asks for, here and in processes started from here; {} if it asks for nothing"
    asked = parse(os.environ.get(NAME, ''))
    if not asked or any(isinstance(f, Finder) for f in sys.meta_path): return asked
    if 'linear' in asked: os.environ['PROMPTBENCH_LINEAR'] = asked['linear']
    here = str(Path(__file__).parent)
    paths = os.environ.get('PYTHONPATH', '').split(os.pathsep)
    if here not in paths: os.environ['PYTHONPATH'] = os.pathsep.join([here,*filter(None, paths)])
    sys.meta_path.insert(0, Finder(asked))
    return asked

if __name__=='sitecustomize': apply()
