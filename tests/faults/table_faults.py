"""A small Table 1 is hurt in every way we could think of; called again, its rows must equal the undisturbed ones exactly.

    python tests/faults/table_faults.py                  # 12 kills at random moments, then every other fault; some minutes
    python tests/faults/table_faults.py --kills 4 --only kills clock_jump
    python tests/faults/table_faults.py --world          # the embedded world and backbone instead of a toy of a few lines
The last line is JSON: how many faults, how many rows lost, how many wrong, how many jobs computed twice.
"""
import argparse, contextlib, json, os, random, resource, shutil, signal, subprocess, sys, tempfile, time
from pathlib import Path
sys.path.insert(0, str(Path(__file__).resolve().parent)); sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from sweep_faults import JUMP, mounted, total
from toy_table import Gate, Table, cards, changed, complete, differences, finished, planned, table, write_toy

WORLD = dict(scale='quick', methods=('none','T+P'), prompts=('shallow',), shots=(0,4), pretrain=dict(examples=512, batch_size=16), tune=dict(steps=6), n_eval=6, precision='fp32')
ALONE = dict(methods=('none',)) # A table of two jobs: the backbone ranked as it is, and tuned

class Place:
    "A table, its undisturbed rows, and fresh folders to hurt it in"
    def __init__(self, folder, seed:int=0, world:bool=False, call=complete):
        self.folder,self.n,self.gen = Path(folder),0,random.Random(seed)
        self.settings = WORLD if world else write_toy(self.folder/'made')
        self.whole = self.new(); code,said = call(self.settings, self.whole); assert code==0, said
        self.want = table(self.settings, self.whole)
    def new(self)->Path: self.n += 1; return self.folder/f'table{self.n}'
    def of(self, **only)->tuple:
        "The undisturbed rows of some cells"
        return tuple(d[d.method.isin(only['methods'])].reset_index(drop=True) for d in self.want)
    def check(self, out, kept:dict, **only)->dict:
        "Call again to the end, then compare"
        code,said = complete(self.settings|only, out); assert code==0, said
        return self.compare(out, kept, **only)
    def compare(self, out, kept:dict, **only)->dict:
        "A table that is finished beside the undisturbed one; `kept`: cards of what was done before, which nobody may touch"
        lost,wrong = differences(table(self.settings|only, out), self.of(**only) if only else self.want)
        return dict(lost=lost, wrong=wrong, twice=changed(out, kept))

def counted(*parts)->dict: return total(*parts)|dict(twice=sum(p.get('twice', 0) for p in parts))

# --- killing ---------------------------------------------------------------------------------------------------------
def strike(t:Table, what:str)->bool:
    "SIGKILL the call or one of its workers"
    found = [t.process] if what=='parent' else t.workers()
    if not found: return False
    with contextlib.suppress(ProcessLookupError): os.kill(found[0].pid, signal.SIGKILL)
    return True

def kills(p:Place, n:int=12, what=('parent','worker'))->dict:
    "n kills in turn of the call and of a worker: half of them while tuning is held at a step, half at a random moment"
    done,parts,out,kept = 0,[],p.new(),{}
    while done<n:
        gate = Gate(p.folder/f'gate{done}-{time.monotonic_ns()}', p.gen.randrange(1, 5)); target = what[done%len(what)]
        with Table(p.settings, out, gate=gate) as t:
            if done//2%2: # at a random moment: pretraining and ranking too
                gate.open()
                while not t.workers() and t.process.poll() is None: time.sleep(.05)
                end = time.monotonic()+p.gen.uniform(.2, 8)
                while t.process.poll() is None and time.monotonic()<end: time.sleep(.02)
            else:
                while not gate.held() and t.process.poll() is None: time.sleep(.02)
            kept |= finished(out)
            done += t.process.poll() is None and strike(t, target)
            gate.open()
            if target=='parent': t.process.wait(120); assert t.gone(), 'something outlived the call'
            else: t.end()
        if len(finished(out))==5: parts.append(p.check(out, kept)); out,kept = p.new(),{}
    return counted(dict(faults=n), *parts, p.check(out, kept))

def lost_worker(p:Place)->dict:
    "One job costs its worker: it is begun again, and no other; the card says why"
    out,gate = p.new(),Gate(p.folder/f'gate{p.n}', 2)
    with Table(p.settings, out, gate=gate, workers=1) as t:
        t.wait(gate.held); kept = finished(out); assert strike(t, 'worker'); t.wait(lambda: len(gate.held())==2); gate.open(); code,said = t.end(); assert code==0, said
    hurt = [c for c in cards(out).values() if c['attempts']>1]; assert len(cards(out))==5
    assert [(c['attempts'], c['lost']) for c in hurt]==[(2, ['its worker was killed, most often because memory ran out'])], hurt
    return counted(dict(faults=1), p.compare(out, kept))

def lost_thrice(p:Place)->dict:
    "A job that costs three workers fails, alone; the message, the note and the card say why; called again it is tried again"
    out,gate = p.new(),Gate(p.folder/f'gate{p.n}', 99); (gate.folder/'die-1').touch(); settings = p.settings|ALONE
    code,said = complete(settings, out, gate=gate); assert code==1 and said.count('its worker was killed, most often because memory ran out')==1 and 'method=none prompt=shallow shots=4' in said, said
    by = {c['stage']:c for c in cards(out).values()}; assert by['evaluate']['state']=='done' and by['tune']['attempts']==3 and len(by['tune']['lost'])==3, by
    return counted(dict(faults=3), p.check(out, finished(out), **ALONE))

def tuning_goes_on(p:Place)->dict:
    "The call is killed when tuning has a checkpoint: the next one computes the steps after it, and only those"
    out,settings = p.new(),p.settings|ALONE|dict(tune=p.settings['tune']|dict(steps=60)); gate = Gate(p.folder/f'gate{p.n}', 40)
    whole = p.new(); code,said = complete(settings, whole); assert code==0, said
    with Table(settings, out, gate=gate) as t:
        t.wait(gate.held); (state,) = (out/'jobs').glob('tune-*/checkpoints/step-*'); t.kill(); assert t.gone(); gate.open()
    with Table(settings, out) as t: code,said = t.end(); steps = t.steps()
    assert code==0, said
    first,second = ([n for pid,n in steps if pid==who] for who in dict.fromkeys(pid for pid,_ in steps))
    assert state.name=='step-00000025' and first==[*range(40)] and second==[*range(25, 60)], (state, first, second)
    (card,) = [c for c in cards(out).values() if c['stage']=='tune']; assert card['attempts']==2 and card['budget']['updates']==60, card
    lost,wrong = differences(table(settings, out), table(settings, whole)); return dict(faults=1, lost=lost, wrong=wrong, twice=0)

# --- stopping --------------------------------------------------------------------------------------------------------
def ctrl_c(p:Place)->dict:
    "`promptbench table1`, once: a checkpoint, exit code 130, nothing left; the next call goes on from that step"
    out,gate = p.new(),Gate(p.folder/f'gate{p.n}', 2); settings = {k:v for k,v in (p.settings|ALONE).items() if k not in ('pretrain','tune')}
    whole = p.new(); code,said = complete(settings, whole); assert code==0, said
    with Table(settings, out, gate=gate, cli=True) as t:
        t.wait(gate.held); os.kill(t.process.pid, signal.SIGINT); code,said = t.end(); assert code==130 and 'checkpoint' in said and 'goes on from here' in said, (code, said); assert t.gone(20)
        before = len(t.steps()); assert before==3, t.steps() # the step it was held at is done, then a checkpoint
    (run,) = (out/'jobs').glob('tune-*'); assert cards(out)[run.name]['state']=='resumable' and [f.name for f in (run/'checkpoints').glob('step-*')]==['step-00000003']
    kept = finished(out)
    with Table(settings, out, cli=True) as t: code,said = t.end(); steps = [n for _,n in t.steps()]
    assert code==0 and 'report:' in said and steps[before:]==[*range(3, 10)], (code, said, steps)
    lost,wrong = differences(table(settings, out), table(settings, whole)); return dict(faults=1, lost=lost, wrong=wrong, twice=changed(out, kept))

def ctrl_c_twice(p:Place)->dict:
    "Twice: ended at once, although no step listens"
    out,gate = p.new(),Gate(p.folder/f'gate{p.n}', 2, deaf=True); settings = {k:v for k,v in (p.settings|ALONE).items() if k not in ('pretrain','tune')}
    with Table(settings, out, gate=gate, cli=True) as t:
        t.wait(gate.held); os.kill(t.process.pid, signal.SIGINT); t.wait(lambda: any((out/'jobs').glob('.queues/*/stop')))
        began = time.monotonic(); os.kill(t.process.pid, signal.SIGINT); code,said = t.end(); took = time.monotonic()-began
        assert code==130 and 'killing' in said and took<15, (code, said, took); assert t.gone(10), 'something outlived the call'
    assert {c['state'] for c in cards(out).values() if c['stage']=='tune'}=={'running'}, 'it had no time to say anything'
    kept = finished(out); code,said = complete(settings, out); assert code==0, said
    assert all(c['state']=='done' for c in cards(out).values())
    return dict(faults=1, lost=0, wrong=0, twice=changed(out, kept))

# --- disks and clocks ------------------------------------------------------------------------------------------------
def disk_full(p:Place)->dict:
    "No byte is left while jobs write checkpoints and results; with room again, all is as if nothing had been"
    top = p.folder/f'disk{p.n}'; tmpfs = mounted(top, '16m'); out = top/'table'; gate = Gate(p.folder/f'gate{p.new().name}', 2)
    tight = None if tmpfs else (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000)))
    try:
        with Table(p.settings, out, gate=gate, before=tight) as t:
            if tmpfs:
                t.wait(gate.held)
                with contextlib.suppress(OSError), open(top/'ballast', 'wb', buffering=0) as f:
                    while True: f.write(bytes(4096))
            kept = finished(out) if out.is_dir() else {}
            gate.open(); code,said = t.end(); assert code!=0 and ('the disk is full' in said or not tmpfs), f'a full disk went unnoticed: {said}'
            assert t.gone()
        (top/'ballast').unlink(missing_ok=True)
        return counted(dict(faults=1), p.check(out, kept))
    finally:
        if tmpfs: subprocess.run(['umount','-l',str(top)])

def clock_jump(p:Place)->dict:
    "Dates of all files are wrong by years, every process has another year, and the clocks of workers leap"
    out,gate = p.new(),Gate(p.folder/f'gate{p.n}', 3)
    with Table(p.settings, out, gate=gate) as t: t.wait(gate.held); t.kill(); gate.open(); assert t.gone()
    kept = finished(out)
    for f in out.rglob('*'): when = time.time()+p.gen.uniform(-3e8, 3e8); os.utime(f, (when, when))
    odd = p.folder/f'odd{p.n}'; odd.mkdir(); (odd/'sitecustomize.py').write_text(JUMP.replace('ipykernel', 'forkserver'))
    old = os.environ.get('PYTHONPATH'); os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(odd), old]))
    try: got = p.check(out, kept)
    finally: os.environ.pop('PYTHONPATH') if old is None else os.environ.update(PYTHONPATH=old)
    return counted(dict(faults=2), got)

# --- company ---------------------------------------------------------------------------------------------------------
def two_calls(p:Place)->dict:
    "Two calls in one folder: each job is computed once; while one holds a job, the other does all the rest and waits for nobody"
    out,gate = p.new(),Gate(p.folder/f'gate{p.n}', 1); stuck = lambda: {k for k,c in cards(out).items() if c['state']!='done'}
    with Table(p.settings, out, gate=gate, workers=1) as a:
        a.wait(gate.held); (held,) = stuck()
        with Table(p.settings, out, workers=1) as b:
            b.wait(lambda: len(finished(out))==4); assert stuck()=={held} and cards(out)[held]['pid']==int(gate.held()[0][1:].split('-')[0])
            assert a.process.poll() is None and b.process.poll() is None, 'the other call ends when all is done'
            kept = finished(out); gate.open(); ends = [a.end(), b.end()]
    assert [e[0] for e in ends]==[0,0], ends
    assert [c['attempts'] for c in cards(out).values()]==[1]*5, 'a job was computed twice'
    return counted(dict(faults=1), p.compare(out, kept))

def company_dies(p:Place)->dict:
    "Two calls in one folder, one of them is killed with the job it holds: the other takes it over"
    out,gate = p.new(),Gate(p.folder/f'gate{p.n}', 1)
    with Table(p.settings, out, gate=gate, workers=1) as a:
        a.wait(gate.held)
        with Table(p.settings, out, workers=1) as b:
            b.wait(lambda: len(finished(out))==4); kept = finished(out); a.kill(); code,said = b.end(); assert code==0, said
            gate.open(); assert a.gone()
    assert sorted(c['attempts'] for c in cards(out).values())==[1]*4+[2]
    return counted(dict(faults=1), p.compare(out, kept))

# --- content that changes under the same name ------------------------------------------------------------------------
def edited(p:Place, call=complete)->dict:
    "A row of a dataset, then the weights of a backbone: the jobs on them are new, the old ones and those on another suite are not touched"
    from safetensors.torch import load_file, save_file
    base = p.folder/f'edited{p.n}'; one = write_toy(base/'one')|ALONE; two = write_toy(base/'two')|ALONE; out = p.new(); parts = []
    for s in (one, two): code,said = call(s, out); assert code==0, said
    keys = lambda s: {j.key for j in planned(s)}
    def anew(hurt:dict, other:dict, edit):
        before,theirs,kept = keys(hurt),keys(other),finished(out); edit(); after = keys(hurt); assert not before & after and keys(other)==theirs
        assert before|theirs<=set(kept)
        for s in (hurt, other): code,said = call(s, out); assert code==0, said
        assert set(finished(out))==set(kept)|after and all(c['attempts']==1 for c in cards(out).values())
        whole = p.new(); code,said = call(hurt, whole); assert code==0, said
        lost,wrong = differences(table(hurt, out), table(hurt, whole)); parts.append(dict(faults=1, lost=lost, wrong=wrong, twice=changed(out, kept)))
    def row():
        f = base/'one'/'suite'/'signs'/'first'/'validation.jsonl'; f.write_text(f.read_text().replace('"x": 3,', '"x": 5,', 1))
    def weights():
        f = base/'two'/'bb'/'model.safetensors'; t = load_file(f); first = next(iter(t)); t[first] = t[first]+.5; save_file(t, f, metadata=dict(format='pt'))
    old = table(one, out); anew(one, two, row); assert differences(table(one, out), old)[1]>0, 'the edited row changes an answer'
    old = table(two, out); anew(two, one, weights); assert differences(table(two, out), old)[1]>0
    return counted(*parts)

FAULTS = dict(kills=kills, lost_worker=lost_worker, lost_thrice=lost_thrice, tuning_goes_on=tuning_goes_on, ctrl_c=ctrl_c, ctrl_c_twice=ctrl_c_twice, disk_full=disk_full,
              clock_jump=clock_jump, two_calls=two_calls, company_dies=company_dies, edited=edited)

def main(only=tuple(FAULTS), n:int=12, seed:int=0, world:bool=False)->dict:
    folder,out,began = Path(tempfile.mkdtemp(prefix='table_faults_')),[],time.time()
    try:
        p = Place(folder, seed=seed, world=world)
        for name in only:
            t = time.time(); out.append(kills(p, n) if name=='kills' else FAULTS[name](p)); print(f'{name:16} {json.dumps(out[-1])} {time.time()-t:.0f} s', flush=True)
    finally: shutil.rmtree(folder, ignore_errors=True)
    return counted(*out)|dict(rows=len(p.want[0]), predictions=len(p.want[1]), seconds=round(time.time()-began))

if __name__=='__main__':
    a = argparse.ArgumentParser(description=__doc__.splitlines()[0]); a.add_argument('--kills', type=int, default=12); a.add_argument('--seed', type=int, default=0); a.add_argument('--world', action='store_true')
    a.add_argument('--only', nargs='+', choices=list(FAULTS), default=list(FAULTS)); a = a.parse_args()
    result = main(a.only, a.kills, a.seed, a.world); print(json.dumps(result)); sys.exit(bool(result['lost'] or result['wrong'] or result['twice']))
