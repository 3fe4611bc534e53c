"""A small Table 1 for tests of faults: real pretraining, tuning and ranking, in seconds, in processes that can be hurt.

As a script it computes a table (`toy_table.py SETTINGS OUT WORKERS`) or is the command line (`toy_table.py cli table1 ...`).
Workers import this file too, so they note every tuning step they compute and can be held at one: TOY_STEPS names the file of
notes, TOY_GATE a folder; while it holds `hold-N` (a gate), tuning stands before step N. No test waits for luck."""
import json, os, signal, subprocess, sys, time
from pathlib import Path
import pandas as pd
from toy_sweep import Gate, Process, differences

TOY = dict(scale='quick', methods=('none','T+P'), prompts=('shallow',), shots=(0,4), precision='fp32', n_eval=8,
           pretrain=dict(examples=64, batch_size=8, length=4), tune=dict(steps=6, dropout=.1))
KEY = ['method','prompt','shots','seed','dataset','template','metric','instance']

def write_toy(folder)->dict:
    "A suite and a backbone of a few lines; the settings of a table on them"
    from promptbench.base.core import write_atomic
    from promptbench.model.backbone import random_backbone, save_backbone
    from test_stages import dataset
    top = Path(folder)
    dataset(top/'suite'/'signs'/'learn', train=80)
    for name in ('first','second'): dataset(top/'suite'/'signs'/name, train=16, validation=20)
    write_atomic(top/'suite'/'suite.yaml', 'roles: {learn: train, first: eval, second: eval}\n')
    save_backbone(random_backbone(['is','odd','?','no','yes',*map(str, range(80))], seed=1), top/'bb')
    return TOY|dict(suite=str(top/'suite'), backbone=str(top/'bb'))

def table(settings:dict, out)->tuple[pd.DataFrame,pd.DataFrame]:
    "Rows and predictions of a finished table, sorted"
    from promptbench.studies.table1 import Settings, gather
    got = gather(Settings(**settings), out)
    return tuple(got[k].sort_values([c for c in KEY if c in got[k]]).reset_index(drop=True) for k in ('rows','predictions'))

def planned(settings:dict)->list: # Job
    from promptbench.studies.table1 import Settings, jobs
    return jobs(Settings(**settings))

def cards(out)->dict[str,dict]:
    "Key -> card of every job that was begun"
    from promptbench.engine.folder import read_json
    found = {f.parent.name: read_json(f) for f in (Path(out)/'jobs').glob('[!.]*/card.json')}
    return {k:c for k,c in found.items() if c}

def finished(out)->dict[str,bytes]:
    "Key -> card of every job that is done, to the byte: whoever computes it again changes that"
    return {k:(Path(out)/'jobs'/k/'card.json').read_bytes() for k,c in cards(out).items() if c['state']=='done'}

def changed(out, before:dict[str,bytes])->int:
    "How many jobs that were done have been touched since"
    now = finished(out)
    return sum(now.get(k)!=card for k,card in before.items())

class Table(Process):
    "One call of `run_all` (or of the command `promptbench table1`) as a process of its own"
    def __init__(self, settings:dict, out, *, gate=None, workers:int=2, before=None, cli:bool=False, **env):
        self.out = Path(out)
        notes = dict(TOY_STEPS=str(self.out)+'.steps')|(dict(TOY_GATE=str(gate)) if gate else {})
        args = ['cli','table1',*flags(settings, out, workers)] if cli else [json.dumps(settings), str(out), str(workers)]
        super().__init__([sys.executable, __file__, *args], before=before, **notes|env)
    def workers(self)->list: # psutil.Process
        "Those that serve the queue: children of the server they are forked from"
        return [p for p in self.family() if 'forkserver' in ' '.join(p.cmdline()) and p.ppid()!=self.process.pid]
    def steps(self)->list[tuple[int,int]]: # process, step
        "Every tuning step that was computed"
        file = Path(str(self.out)+'.steps')
        return [tuple(map(int, l.split())) for l in file.read_text().splitlines()] if file.exists() else []

def flags(settings:dict, out, workers)->list[str]:
    "The same table for the command line, as far as that can say it"
    comma = lambda v: ','.join(map(str, v)) if isinstance(v, (list,tuple)) else str(v)
    said = {k:comma(v) for k,v in settings.items() if k not in ('pretrain','tune')}|dict(out=out, workers=workers)
    return [x for k,v in said.items() for x in (f'--{k.replace("_", "-")}', str(v))]

def complete(settings:dict, out, **how)->tuple[int,str]:
    "A table from start to end"
    with Table(settings, out, **how) as t: return t.end()

def watch_tuning():
    "Note every step of tuning that this process computes, and stand before it while the gate is shut"
    from promptbench.base.stop import stop_asked
    from promptbench.train.tune import BankRun
    notes,gate,really = os.environ['TOY_STEPS'],Path(os.environ.get('TOY_GATE', '/nowhere')),BankRun.step
    def step(self, n):
        if gate.is_dir():
            (gate/f't{os.getpid()}-{n}').touch()
            while (gate/f'hold-{n}').exists() and ((gate/'deaf').exists() or not stop_asked()): time.sleep(.02)
            if (gate/f'die-{n}').exists(): os.kill(os.getpid(), signal.SIGKILL)
        with open(notes, 'a') as f: f.write(f'{os.getpid()} {n}\n')
        return really(self, n)
    BankRun.step = step

if 'TOY_STEPS' in os.environ: watch_tuning()

def main():
    if sys.argv[1]=='cli':
        from promptbench.cli.main import main
        sys.argv[:] = ['promptbench', *sys.argv[2:]]
        return main()
    from promptbench.studies.table1 import Settings, run_all
    run_all(Settings(**json.loads(sys.argv[1])), sys.argv[2], workers=int(sys.argv[3]), quiet=True)

if __name__=='__main__': main()
