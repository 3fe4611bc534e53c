"""A sweep of toy pages for tests: real training of a few steps, real checkpoints, and gates at which a test can hold every run.

No test waits for luck: a page says where it is by touching a file, and goes on when the test lets it."""
import os, signal, subprocess, sys, time
from pathlib import Path
import nbformat, pandas as pd, psutil

PARAMETERS = '''method = "T+P"
shots = 0
seed = 0
steps = 6
start = ""   # folder of the run it starts from
out = ""'''

WORK = '''import os, time, json
from pathlib import Path
import numpy as np, pandas as pd
from promptbench.base.core import seed_of
from promptbench.base.own import atomic_folder
from promptbench.engine.inside import keep, note, watched
from promptbench.base.stop import Stopped, stop_asked
GATE = Path(os.environ.get("TOY_GATE", "/nowhere")); name = f"{kind}_{method}_{shots}_{seed}"
assert method != "bad", "this method always fails"
def draw(*words): return np.random.default_rng(seed_of("toy", *words)).normal(size=(16, 4)).astype("float32")
truth = draw("truth")[0]
passed = [0]
def gate():
    if not GATE.is_dir(): return
    n = passed[0]; passed[0] += 1; (GATE/f"{name}-{n}").touch()
    while (GATE/f"hold-{n}").exists() and ((GATE/"deaf").exists() or not stop_asked()): time.sleep(.02)
'''
NUMPY = '''from safetensors.numpy import load_file, save_file
def save(i, w):
    with atomic_folder(Path(out)/"checkpoints"/f"step-{i:08d}") as f: save_file(dict(w=w), f/"w.safetensors")
def load():
    steps_ = sorted((Path(out)/"checkpoints").glob("step-*"))
    if steps_: return int(steps_[-1].name[5:]), load_file(steps_[-1]/"w.safetensors")["w"]
    return 0, load_file(Path(start)/"w.safetensors")["w"] if start else np.zeros(4, "float32")
def finish(w): save_file(dict(w=w), Path(out)/"w.safetensors")
'''
TORCH = '''import torch, warnings
from promptbench.prompt.checkpoint import last_step, load_state, save_checkpoint, save_step
def save(i, w): save_step(Path(out)/"checkpoints", i, state=dict(step=i, w=torch.from_numpy(w.copy())))
def load():
    at = last_step(Path(out)/"checkpoints")
    if at is None: return 0, np.zeros(4, "float32")
    s = load_state(at); print("went on from step", s["step"]); return s["step"], s["w"].numpy()
def finish(w): pass
'''
TRAIN = '''def train():
    i, w = load()
    while i < steps:
        gate(); x = draw("batch", seed, shots, i); e = x@w-x@truth; w = (w-np.float32(.05)*(x.T@e)/np.float32(16)).astype("float32"); i += 1; save(i, w)
        yield dict(step=i, loss=float((e**2).mean()), w=w)
        if stop_asked(): raise Stopped("stopped as asked, after a checkpoint")
for row in watched(train(), steps, "toy", out=out, every=0): pass
w = load()[1]   # the last checkpoint may be all there was to do: the run before this one was killed after its last step'''
RANK = '''finish(w); x = draw("test", seed); score = np.stack([x@w, x@truth*0], 1).astype("float64"); gold = (x@truth < 0).astype(int); pred = score.argmax(1)
base = dict(suite="toy", backbone="tiny", method=method, prompt="deep" if shots else "none", shots=shots, seed=seed, cluster="NLI", dataset="rte", run=Path(out).name, template="t")
rows = pd.DataFrame([dict(base, metric="accuracy", value=float((pred == gold).mean()), n=16, chance=.5, majority=.5)])
if kind == "then": keep(out, rows, pd.DataFrame([dict(base, instance=f"rte/{i}", gold=int(g), pred=int(p), correct=bool(g == p), scores_sum=list(map(float, s)), scores_mean=list(map(float, s/3))) for i, (g, p, s) in enumerate(zip(gold, pred, score))]))
note(out, loss=float(((x@w-x@truth)**2).mean()))'''

SWEEP = '''name: toy
axes: {method: [none, T+P], shots: [0, 4]}
seeds: %d
steps:
  first: {page: first.ipynb, skip: [{method: none}]}
  then: {page: then.ipynb, needs: {start: first}}
'''

def write_page(path, *, torch:bool=False, work:str|None=None):
    "A run page of the toy: `first` knows no shots and starts from nothing, `then` measures"
    path,cell = Path(path),nbformat.v4.new_code_cell; first = path.stem=='first'; lines = PARAMETERS.split('\n')
    given = '\n'.join(l for l in lines if not first or not l.startswith(('shots','start'))); rest = 'kind = "first"; shots = 0; start = ""' if first else 'kind = "then"'
    cells = [cell(given, metadata=dict(tags=['parameters'])), *map(cell, [rest+'\n'+WORK+(TORCH if torch else NUMPY), TRAIN, RANK] if work is None else [work])]
    nb = nbformat.v4.new_notebook(cells=cells); nb.metadata.kernelspec = dict(name='python3', language='python', display_name='python3'); nbformat.write(nb, path); return path

def write_sweep(folder, *, seeds:int=1, text:str|None=None)->Path:
    "Both pages and the YAML file of a sweep of 5 runs per seed"
    folder = Path(folder); folder.mkdir(parents=True, exist_ok=True)
    for n in ('first','then'): write_page(folder/f'{n}.ipynb')
    (folder/'toy.yaml').write_text(text or SWEEP%seeds); return folder/'toy.yaml'

class Process:
    "A command as a process of its own, with a mark by which everything it has started can be found"
    def __init__(self, command:list, *, before=None, **env):
        self.mark = f'{os.getpid()}-{time.monotonic_ns()}'
        env = dict(os.environ, TOY_MARK=self.mark, OMP_NUM_THREADS='1', PROMPTBENCH_QUIET='1', PYTHONUNBUFFERED='1')|env
        self.process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True, preexec_fn=before)
    def family(self)->list: # psutil.Process
        "Everything that still lives of it, kernels included"
        out = []
        for p in psutil.process_iter():
            try:
                if p.status()!=psutil.STATUS_ZOMBIE and p.environ().get('TOY_MARK')==self.mark: out.append(p)
            except psutil.Error: continue
        return out
    def wait(self, what, seconds:float=900.):
        "Until `what()` is true; an error if it ends before"
        end = time.monotonic()+seconds
        while not (got := what()):
            assert self.process.poll() is None, f'it ended early:\n{self.process.stdout.read()}'
            assert time.monotonic()<end, 'nothing happened'
            time.sleep(.02)
        return got
    def end(self, seconds:float=1800.)->tuple[int,str]: # exit code, what it said
        "Wait for it to end by itself"
        out,_ = self.process.communicate(timeout=seconds); return self.process.returncode,out
    def kill(self): os.kill(self.process.pid, signal.SIGKILL); self.process.wait()
    def gone(self, seconds:float=120.)->bool:
        "Whether nothing of it is left"
        end = time.monotonic()+seconds
        while self.family():
            if time.monotonic()>end: return False
            time.sleep(.1)
        return True
    def __enter__(self): return self
    def __exit__(self, *_):
        for p in [*self.family()]:
            try: p.kill()
            except psutil.Error: pass
        self.process.stdout.close(); self.process.wait()

class Sweep(Process):
    "One `promptbench sweep`"
    def __init__(self, file, root, *args, gate=None, jobs:int=2, before=None):
        self.root = Path(root)
        command = [sys.executable, '-m', 'promptbench.cli.main', 'sweep', *([str(file)] if file else []), '--root', str(root), '--jobs', str(jobs), '--no-report', *args]
        super().__init__(command, before=before, **(dict(TOY_GATE=str(gate)) if gate else {}))
    def kernels(self): return [p for p in self.family() if any('ipykernel' in x for x in p.cmdline())]
    def workers(self): return [p for k in self.kernels() for p in [k.parent()] if p is not None and p.pid!=self.process.pid and p.pid!=1]

def complete(file, root, *args, **more)->tuple[int,str]:
    "A sweep from start to end"
    with Sweep(file, root, *args, **more) as s: return s.end()

class Gate:
    "Holds every run at its n-th step, counted from the start of its kernel; `deaf`: not even a wish to stop lets it go"
    def __init__(self, folder, n:int, *, deaf:bool=False):
        self.folder,self.n = Path(folder),n; self.folder.mkdir(parents=True); (self.folder/f'hold-{n}').touch()
        if deaf: (self.folder/'deaf').touch()
    def __fspath__(self): return str(self.folder)
    def __str__(self): return str(self.folder)
    def held(self)->list[str]: return sorted(p.name for p in self.folder.glob(f'[ft]*-{self.n}'))
    def open(self): (self.folder/f'hold-{self.n}').unlink(missing_ok=True)

def table(root)->tuple[pd.DataFrame,pd.DataFrame]:
    "Rows and predictions of a sweep's store, sorted"
    from promptbench.stats.results import load
    got = load(Path(root)/'store', ('rows','predictions')); return tuple(got[k].to_pandas().sort_values([c for c in ('method','prompt','shots','seed','dataset','template','metric','instance') if c in got[k].column_names]).reset_index(drop=True) for k in ('rows','predictions'))

def differences(got, want)->tuple[int,int]: # lost, wrong
    "How many rows and predictions are missing or not exactly the same"
    lost = wrong = 0
    for a,b in zip(got, want):
        key = [c for c in ('method','prompt','shots','seed','dataset','template','metric','instance') if c in b]; show = lambda d: {tuple(r[c] for c in key):tuple(x.tobytes() if hasattr(x, 'tobytes') and getattr(x, 'ndim', 0) else x for x in r) for _,r in d.iterrows()}
        a,b = show(a),show(b); lost += len(b.keys()-a.keys()); wrong += sum(a[k]!=b[k] for k in b.keys() & a.keys())+len(a.keys()-b.keys())
    return lost,wrong
