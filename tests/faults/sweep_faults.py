"""A sweep is hurt in every way we could think of; after resuming, its table must equal the undisturbed one exactly.

    python tests/faults/sweep_faults.py                  # 20 kills at random moments, then every other fault; some minutes
    python tests/faults/sweep_faults.py --kills 3 --only kills clock_jump
The last line is JSON: how many faults, how many rows lost, how many wrong.
"""
import argparse, contextlib, json, os, random, resource, shutil, signal, subprocess, sys, tempfile, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from toy_sweep import Gate, Sweep, complete, differences, table, write_page, write_sweep
from promptbench.engine.folder import read_json

class Place:
    "A sweep, its undisturbed table, and fresh folders to hurt it in"
    def __init__(self, folder, seeds:int=1, seed:int=0):
        self.folder,self.n,self.gen = Path(folder),0,random.Random(seed); self.file = write_sweep(self.folder/'pages', seeds=seeds)
        code,said = complete(self.file, self.new()/'runs'); assert code==0, said
        self.want = table(self.folder/'1'/'runs')
    def new(self)->Path: self.n += 1; f = self.folder/str(self.n); f.mkdir(parents=True); return f
    def check(self, root, store=None)->dict:
        "Resume to the end, then compare"
        code,said = complete(self.file, root, *(['--store', str(store)] if store else [])); assert code==0, said
        lost,wrong = differences(table(Path(store).parent if store else root), self.want); return dict(lost=lost, wrong=wrong)

def total(*parts)->dict: return {k:sum(p.get(k, 0) for p in parts) for k in ('faults','lost','wrong')}

# --- killing ---------------------------------------------------------------------------------------------------------
def strike(s:Sweep, what:str):
    "SIGKILL a process of a sweep: itself, one of its workers or one of its kernels"
    found = dict(sweep=lambda: [s.process], worker=s.workers, kernel=s.kernels)[what]()
    if not found: return False
    with contextlib.suppress(ProcessLookupError): os.kill(found[0].pid, signal.SIGKILL)
    return True

def kills(p:Place, n:int=20, what=('sweep','worker','kernel'))->dict:
    "n kills at random moments: half of them while every run is held at a step, half of them a random moment after it was let go"
    done,out,root = 0,[],p.new()/'runs'
    while done<n:
        gate = Gate(root.parent/f'gate{done}-{time.monotonic_ns()}', p.gen.randrange(5)); target = what[done%len(what)]
        with Sweep(p.file, root, gate=gate) as s:
            while not gate.held() and s.process.poll() is None: time.sleep(.02)
            if gate.held():
                if done%2: gate.open(); time.sleep(p.gen.random()*1.5)
                if s.process.poll() is None and strike(s, target): done += 1
            gate.open()
            if target=='sweep': s.process.wait(60); assert s.gone(), 'something outlived the sweep'
            else: s.end()
        if all((c := read_json(f)) and c['state']=='done' for f in root.glob('*/card.json')) and len(list(root.glob('*/card.json')))==len(p.want[0])+len({k for k in p.want[0].seed}):
            out.append(p.check(root)); root = p.new()/'runs'
    return total(dict(faults=n), *out, p.check(root))

# --- stopping --------------------------------------------------------------------------------------------------------
def ctrl_c(p:Place)->dict:
    "Once: a checkpoint of every run, exit code 130, nothing left; the next call goes on"
    root = p.new()/'runs'; gate = Gate(root.parent/'gate', 2)
    with Sweep(p.file, root, gate=gate) as s:
        s.wait(gate.held); held = [x.rsplit('-', 1)[0] for x in gate.held()]; os.kill(s.process.pid, signal.SIGINT); code,said = s.end(); assert code==130 and 'checkpoint' in said, (code, said); assert s.gone(20)
    stopped = [f.parent for f in root.glob('*/card.json') if read_json(f)['state']=='resumable']; assert len(stopped)>=1 and all(any((f/'checkpoints').glob('step-*')) for f in stopped), said
    return total(dict(faults=1), p.check(root))

def ctrl_c_twice(p:Place)->dict:
    "Twice: killed at once, although no page listens"
    root = p.new()/'runs'; gate = Gate(root.parent/'gate', 2, deaf=True)
    with Sweep(p.file, root, gate=gate) as s:
        s.wait(gate.held); os.kill(s.process.pid, signal.SIGINT); s.wait(lambda: any(root.glob('*/stop')))
        os.kill(s.process.pid, signal.SIGINT); code,said = s.end(); assert code==130 and 'killing' in said, (code, said); assert s.gone(10), 'something outlived the sweep'
    return total(dict(faults=1), p.check(root))

# --- disks -----------------------------------------------------------------------------------------------------------
def mounted(place, size:str)->bool:
    "Mount a small file system there, where this is allowed"
    Path(place).mkdir(parents=True, exist_ok=True)
    return os.geteuid()==0 and shutil.which('mount') is not None and subprocess.run(['mount','-t','tmpfs','-o',f'size={size}','tmpfs',str(place)], capture_output=True).returncode==0

def disk_full(p:Place)->dict:
    "No byte is left while runs write checkpoints and pages; with room again, all is as if nothing had been"
    top = p.new()/'disk'; tmpfs = mounted(top, '4m'); root = top/'runs'; gate = Gate(top.parent/'gate', 2)
    tight = None if tmpfs else (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)))
    try:
        with Sweep(p.file, root, gate=gate, before=tight) as s:
            if tmpfs:
                s.wait(gate.held)
                with contextlib.suppress(OSError), open(top/'ballast', 'wb', buffering=0) as f:
                    while True: f.write(bytes(4096))
            gate.open(); code,said = s.end(); assert code!=0, f'a full disk went unnoticed: {said}'
            assert s.gone()
        (top/'ballast').unlink(missing_ok=True)
        return total(dict(faults=1), p.check(root))
    finally:
        if tmpfs: subprocess.run(['umount','-l',str(top)])

def read_only_store(p:Place)->dict:
    "A store that cannot be written is refused before anything is computed; one that turns read-only later costs nothing but the last step"
    base = p.new(); root = base/'runs'; (base/'store').write_text('a file in its place'); code,said = complete(p.file, root, '--store', str(base/'store'))
    assert code==2 and 'promptbench:' in said and not list(root.glob('*/card.json')), (code, said)
    faults = 1; (base/'store').unlink()
    if mounted(base/'store', '4m'):
        try:
            subprocess.run(['mount','-o','remount,ro',str(base/'store')], check=True); code,said = complete(p.file, root, '--store', str(base/'store')); assert code==2 and 'not writable' in said, (code, said)
            subprocess.run(['mount','-o','remount,rw',str(base/'store')], check=True); gate = Gate(base/'gate', 2)
            with Sweep(p.file, root, '--store', str(base/'store'), gate=gate) as s:
                s.wait(gate.held); subprocess.run(['mount','-o','remount,ro',str(base/'store')], check=True); gate.open(); code,said = s.end(); assert code!=0, said
            subprocess.run(['mount','-o','remount,rw',str(base/'store')], check=True); faults += 2
            return total(dict(faults=faults), p.check(root, base/'store'))
        finally: subprocess.run(['umount','-l',str(base/'store')])
    return total(dict(faults=faults), p.check(root, base/'store'))

# --- checkpoints and clocks ------------------------------------------------------------------------------------------
def bit_flip(p:Place)->dict:
    "One bit of the newest checkpoint turns over: the checksum tells, the one before is used, the result is the same"
    base = p.new(); write_page(base/'first.ipynb', torch=True); file = base/'one.yaml'; file.write_text('steps: {first: {page: first.ipynb}}\n'); gate = Gate(base/'gate', 4)
    code,said = complete(file, base/'whole', jobs=1); assert code==0, said
    with Sweep(file, base/'runs', gate=gate, jobs=1) as s: s.wait(gate.held); s.kill(); gate.open(); assert s.gone()
    (run,) = (base/'runs').glob('first-*'); newest = sorted((run/'checkpoints').glob('step-*'))[-1]; hurt = newest/'state.safetensors'; data = bytearray(hurt.read_bytes()); data[-3] ^= 16; hurt.write_bytes(data)
    code,said = complete(file, base/'runs', jobs=1); assert code==0, said
    log = (run/'log.txt').read_text(); assert 'damaged' in log and f'went on from step {int(newest.name[5:])-1}' in log, log
    want = read_json(next((base/'whole').glob('first-*'))/'card.json')['loss']; return dict(faults=1, lost=0, wrong=int(read_json(run/'card.json')['loss']!=want))

JUMP = '''import itertools, os, random, sys, time
_true, _turn, _off = time.time, itertools.count(), random.Random(os.getpid()).uniform(-3e8, 3e8)
leaps = (0, -3e8, 3e8, -5, 86400) if any("ipykernel" in a for a in sys.orig_argv) else (_off,)   # libraries time the start of a kernel by this clock, so only the kernel's own leaps
time.time = lambda: _true()+leaps[next(_turn) % len(leaps)]
'''
def clock_jump(p:Place)->dict:
    "Dates of all files are wrong by years, every process has another year, and the clock of kernels leaps at every look"
    base = p.new(); root = base/'runs'; gate = Gate(base/'gate', 3)
    with Sweep(p.file, root, gate=gate) as s: s.wait(gate.held); s.kill(); gate.open(); assert s.gone()
    for f in base.rglob('*'): t = time.time()+p.gen.uniform(-3e8, 3e8); os.utime(f, (t, t))
    (base/'odd').mkdir(); (base/'odd'/'sitecustomize.py').write_text(JUMP); old = os.environ.get('PYTHONPATH'); os.environ['PYTHONPATH'] = str(base/'odd')
    try: out = p.check(root)
    finally: os.environ.pop('PYTHONPATH') if old is None else os.environ.update(PYTHONPATH=old)
    return total(dict(faults=2), out)

# --- company ---------------------------------------------------------------------------------------------------------
def two_sweeps(p:Place)->dict:
    "Two sweeps over the same runs at once compute each once; two in different folders share a store"
    base = p.new(); gate = Gate(base/'gate', 1); store = base/'both'/'store'
    with Sweep(p.file, base/'runs', '--store', str(store), gate=gate) as a, Sweep(p.file, base/'runs', '--store', str(store), gate=gate) as b:
        a.wait(gate.held); gate.open(); ends = [a.end(), b.end()]; assert [e[0] for e in ends]==[0,0], ends
    cards = [read_json(f) for f in (base/'runs').glob('*/card.json')]; assert all(c['attempts']==1 for c in cards), 'a run was computed twice'
    return total(dict(faults=2), p.check(base/'runs', store), p.check(base/'elsewhere', store))

REAL = '''name: real
axes: {method: [T+P], shots: [4]}
set: {precision: fp32, every: 2, examples: 256, steps: 4, n_eval: 4}
steps: {pretrain: {}, tune: {needs: {checkpoint: pretrain}}}
'''
def real_pages(p:Place)->dict:
    "The pages people use: killed when a checkpoint of pretraining is there, and again when one of tuning is"
    base = p.new(); file = base/'real.yaml'; file.write_text(REAL); code,said = complete(file, base/'whole', jobs=1); assert code==0, said; n = 0
    for page in ('pretrain','tune'):
        with Sweep(file, base/'runs', jobs=1) as s:
            while s.process.poll() is None and not any((base/'runs').glob(f'{page}-*/checkpoints/step-*')): time.sleep(.01)
            if s.process.poll() is None: s.kill(); n += 1
            assert s.gone(), 'something outlived the sweep'
    code,said = complete(file, base/'runs', jobs=1); assert code==0, said
    lost,wrong = differences(table(base/'runs'), table(base/'whole')); return dict(faults=n, lost=lost, wrong=wrong)

FAULTS = dict(kills=kills, ctrl_c=ctrl_c, ctrl_c_twice=ctrl_c_twice, disk_full=disk_full, read_only_store=read_only_store, bit_flip=bit_flip, clock_jump=clock_jump, two_sweeps=two_sweeps, real_pages=real_pages)

def main(only=tuple(FAULTS), n:int=20, seeds:int=1, seed:int=0)->dict:
    folder = Path(tempfile.mkdtemp(prefix='sweep_faults_')); out,t0 = [],time.time()
    try:
        p = Place(folder, seeds=seeds, seed=seed)
        for name in only:
            t = time.time(); out.append(kills(p, n) if name=='kills' else FAULTS[name](p)); print(f'{name:16} {json.dumps(out[-1])} {time.time()-t:.0f} s', flush=True)
    finally: shutil.rmtree(folder, ignore_errors=True)
    return total(*out)|dict(rows=len(p.want[0]), predictions=len(p.want[1]), seconds=round(time.time()-t0))

if __name__=='__main__':
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0]); a.add_argument('--kills', type=int, default=20); a.add_argument('--seeds', type=int, default=1); a.add_argument('--seed', type=int, default=0); a.add_argument('--only', nargs='+', choices=list(FAULTS), default=list(FAULTS))
    a = a.parse_args(); result = main(a.only, a.kills, a.seeds, a.seed); print(json.dumps(result)); sys.exit(bool(result['lost'] or result['wrong']))
