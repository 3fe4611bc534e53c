"""Pretraining, a table and a sweep are hurt in the middle of a write: killed there, or out of space from there on. The same call goes on to the same end.

    python tests/faults/write_faults.py pretrain          # every write of a run of three steps; `--most 12` takes as many of them
    python tests/faults/write_faults.py table --most 40   # every write of a small Table 1, jobs in one process
    python tests/faults/write_faults.py sweep --most 6    # the writes of runs in kernels, at any of their processes
Every fault is a process of its own, forked where all is loaded. The last line is JSON: how many writes there are, how many faults, what went wrong."""
import argparse, contextlib, io, json, os, shutil, signal, sys, tempfile, traceback, warnings
from pathlib import Path
HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE/'hook')]
import sitecustomize as site_
if not hasattr(site_, 'arm'): # another sitecustomize was there first
    import importlib.util
    spec = importlib.util.spec_from_file_location('write_hook', HERE/'hook'/'sitecustomize.py'); site_ = importlib.util.module_from_spec(spec); spec.loader.exec_module(site_)
arm = site_.arm

class Pretraining:
    "Three updates of a tiny T+P run, a checkpoint after each: the hash of its weights and of its prompt"
    def __init__(self, folder):
        import test_pretrain
        self.page = test_pretrain
    def go(self, out)->str:
        from promptbench.base.core import key_of
        from promptbench.model.backbone import weight_hashes
        t = self.page; b,p,config = t.cell('T+P', 'deep', examples=24)
        losses = [r['loss'] for r in t.pretrain(b, p, t.suite().tasks('train'), config, folder=out, every=1)]
        assert len(losses)==3, losses
        return key_of(losses, weight_hashes(b), p.table.detach().tolist())

class Tables:
    "A small Table 1, one job after the other in this process: its rows and predictions"
    def __init__(self, folder):
        import toy_table
        self.page,self.settings = toy_table,toy_table.write_toy(Path(folder)/'made')|dict(methods=('none',))
    def go(self, out)->str:
        from promptbench.base.core import key_of
        from promptbench.engine.pools import make_pool
        from promptbench.studies.table1 import Settings, finish, run_all
        s = Settings(**self.settings); run_all(s, out, pool=make_pool('here'), quiet=True); finish(s, out)
        assert {'rows.parquet','table1.csv','report.html'}<={f.name for f in Path(out).iterdir()}
        return key_of(*(d.drop(columns='run').to_json() for d in self.page.table(self.settings, out)))

def forked(call, *args)->tuple[int,str]:
    "Exit status (-9 where it was killed) and what it returned or said, in a process that is gone afterwards"
    from promptbench.base.mend import exit_code, plain_words
    r,w = os.pipe(); pid = os.fork()
    if pid==0:
        os.close(r); code = 0
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()): said = call(*args)
        except BaseException as e: code,said = exit_code(e),plain_words(e) or ''.join(traceback.format_exception(e))
        os.write(w, str(said).encode()[-4000:]); os._exit(code)
    os.close(w)
    with os.fdopen(r, 'rb') as f: said = f.read().decode()
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]),said

def counted(work, out)->int:
    "How many writes an undisturbed run makes"
    f = arm(); f.word = str(out); work.go(out); return f.n

def hurt(work, out, what:str, at:int):
    arm(what, at, word=str(out)); return work.go(out)

def faults(work, folder, most:int|None=None, kinds=('kill','full'))->dict:
    "Every write, or `most` of them at even distances, in turn killed and out of space"
    work.go(folder/'warm') # loads what is loaded late, once for all
    code,want = forked(work.go, folder/'whole'); assert code==0, want
    code,n = forked(counted, work, folder/'counted'); assert code==0, n
    n = int(n); chosen = range(1, n+1) if most is None or most>=n else sorted({1+round(i*(n-1)/(most-1)) for i in range(most)})
    done,wrong = 0,[]
    for i,at in enumerate(chosen):
        for what in kinds if most is None else kinds[i%len(kinds):][:1]:
            out = folder/f'{what}{at}'; code,said = forked(hurt, work, out, what, at); done += 1
            # what is only told to those who look on may fail on a full disk: then the result is there, and right
            # how often progress is written hangs on the clock: the last writes may not come to pass
            late = at>n-5 and code==0 and said==want
            fine = code==-signal.SIGKILL or late if what=='kill' else code==2 and 'the disk is full' in said and '\n' not in said or code==0 and said==want
            if not fine: wrong.append([what, at, code, said])
            code,said = forked(work.go, out)
            if (code,said)!=(0,want): wrong.append([what, at, 'again', code, said])
            shutil.rmtree(out, ignore_errors=True)
    return dict(writes=n, faults=done, wrong=wrong)

def sweep(folder, most:int|None=None)->dict:
    "One process of a sweep, whichever comes first, is killed at its n-th write in the folder of runs; the same sweep again gives the same table"
    import sweep_faults as F
    p = F.Place(folder); chosen,wrong = range(1, 1+(most or 24)),[]
    for i in chosen:
        root = p.new()/'runs'; at = 1+2*i
        env = dict(PYTHONPATH=os.pathsep.join([str(HERE/'hook'), os.environ.get('PYTHONPATH', '')]), WRITE_FAULT=f'kill {at}', WRITE_FAULT_ONCE=str(root.parent/'hurt'), WRITE_FAULT_IN=str(root))
        old = dict(os.environ); os.environ.update(env)
        try: F.complete(p.file, root)
        finally: os.environ.clear(); os.environ.update(old)
        if not (root.parent/'hurt').exists(): wrong.append(['kill', at, 'nobody was hurt'])
        got = p.check(root)
        if got['lost'] or got['wrong']: wrong.append(['kill', at, got])
    return dict(writes=None, faults=len(chosen), wrong=wrong)

def main(what:str, most:int|None)->dict:
    warnings.simplefilter('ignore'); os.environ['PROMPTBENCH_QUIET'] = '1'
    import torch
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as tmp:
        folder = Path(tmp).resolve()
        if what=='sweep': return sweep(folder, most)
        return faults((Pretraining if what=='pretrain' else Tables)(folder), folder, most)

if __name__=='__main__':
    p = argparse.ArgumentParser(); p.add_argument('what', choices=('pretrain','table','sweep')); p.add_argument('--most', type=int); a = p.parse_args()
    got = main(a.what, a.most); print(json.dumps(got)); sys.exit(bool(got['wrong']))
