"""Peak memory of tuning and of ranking, above what the loaded model and warm libraries take, against PEFT at equal batch

Each side runs in a process of its own. Equal batch: PEFT's largest batch (a task's shots, or as many examples with one choice
each, padded to the longest, prompt included) counts as many padded positions as ours may hold at a time. Ratio: PEFT's peak divided by ours."""
import json, subprocess, sys
from pathlib import Path
from common import device, middle, options, parser, repeats, report, small
import torch
from tune import SHAPES, Peft, lengths, model, plain_model, tasks_of

def resident(field):
    "Bytes of this process: VmRSS now, VmHWM at most"
    line = next(l for l in Path('/proc/self/status').read_text().splitlines() if l.startswith(field)); return int(line.split()[1])*1024

class Peak:
    "Most memory taken inside the block, above what was taken at its beginning"
    def __enter__(self):
        if device()=='cuda': torch.cuda.synchronize(); torch.cuda.reset_peak_memory_stats(); self.start = torch.cuda.memory_allocated()
        else: Path('/proc/self/clear_refs').write_text('5'); self.start = resident('VmRSS') # 5: the high-water mark begins anew
        return self
    def __exit__(self, *_): self.bytes = (torch.cuda.max_memory_allocated() if device()=='cuda' else resident('VmHWM'))-self.start

def setting(name, n_tasks, shots):
    "Backbone, tasks with two choices each, ids, a starting prompt, and PEFT's largest batch in padded positions"
    from promptbench.prompt.inits import new_prompt
    backbone = model(name).to(device()); counts = lengths(n_tasks, shots); tasks = tasks_of(backbone, counts); pairs = [backbone.pairs(t) for t in tasks]
    start = new_prompt('shallow', backbone, length=4 if small() else 20, seed=0)
    widest = max(len(p)*(start.length+max(len(s) for s,_ in p)+max(len(t) for _,t in p)) for p in pairs)
    return backbone,tasks,pairs,start,widest

def with_choices(tasks):
    "Each example with its own target and the next one's as choices"
    from dataclasses import replace
    return [[replace(e, choices=(e.target, t[(i+1)%len(t)].target), gold=0) for i,e in enumerate(t)] for t in tasks]

def tune_ours(s):
    from promptbench.train.tune import TuneConfig, tune
    backbone,tasks,_,start,widest = s; list(tune(backbone, start, tasks, TuneConfig(steps=2, chunk_tokens=widest)))

def tune_peft(s):
    backbone,_,pairs,start,_ = s
    p = Peft(backbone, pairs, start.table[0].detach()); p.round(); p.round()

def rank_ours(s):
    from promptbench.measure.rank import rank
    backbone,tasks,_,start,widest = s; rank(backbone, with_choices(tasks), start, token_budget=widest)

@torch.no_grad()
def rank_peft(s):
    "One full forward pass per choice, a task's examples in a batch"
    backbone,tasks,_,start,_ = s; p = Peft(backbone, [[([1],[1])]], start.table[0].detach()); m = p.models[0].eval()
    for t in with_choices(tasks):
        src = backbone.sources([e.source for e in t], 768)
        for c in range(2):
            b = Peft.collate(list(zip(src, backbone.targets([e.choices[c] for e in t], 192)))); b = {k:v.to(backbone.device) for k,v in b.items()}; logits = m(**b).logits
            logp = logits.log_softmax(-1).gather(2, b['labels'].clamp(min=0)[:,:,None])[:,:,0]; (logp*(b['labels']>=0)).sum(1).tolist()

JOBS = dict(tune=(tune_ours, tune_peft), rank=(rank_ours, rank_peft))

def child(o):
    "One job of one side: the peak as JSON"
    torch.manual_seed(0); s = setting(o.models, o.tasks, o.shots); ours = o.side=='ours'
    if not ours: # the untouched model replaces ours, so that only one is in memory
        s[0].model = plain_model(s[0])
        import peft  # its import is not what is measured
    else: import promptbench.measure.rank, promptbench.train.tune
    do = JOBS[o.job][0 if ours else 1]; b,tasks,pairs,start,_ = s; do((b, [tasks[0][:2]], [pairs[0][:2]], start, 100)) # libraries load what they need
    with Peak() as peak: do(s)
    print(json.dumps(dict(bytes=peak.bytes)))

def ask(name, job, side, o):
    "The same in a fresh process"
    args = [sys.executable, __file__, '--child', '--job', job, '--side', side, '--models', name, '--tasks', str(o.tasks), '--shots', str(o.shots), '--device', device(), *(['--small'] if small() else []), *(['--threads', str(options().threads)] if options().threads else [])]
    done = subprocess.run(args, capture_output=True, text=True)
    if done.returncode: raise SystemExit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])['bytes']

def main():
    p = parser(__doc__); p.add_argument('--models', default=None, help='comma-separated, of '+', '.join([*SHAPES,'tiny'])); p.add_argument('--tasks', type=int, default=None); p.add_argument('--shots', type=int, default=None)
    p.add_argument('--child', action='store_true'); p.add_argument('--job', choices=list(JOBS)); p.add_argument('--side', choices=['ours','peft'])
    o = p.parse_args(); o.tasks = o.tasks or (2 if small() else 8); o.shots = o.shots or (4 if small() else 16)
    if o.child: return child(o)
    names = o.models.split(',') if o.models else ['small-test'] if small() else ['t5-base'] if device()=='cuda' else ['t5-tiny','tiny']
    found,worst = {},[]
    for n in names:
        for job in JOBS:
            a,b = ([ask(n, job, side, o) for _ in range(1 if small() else min(3, repeats()))] for side in ('ours','peft')); ours,theirs = middle(a)[0],middle(b)[0]
            found[f'{n} {job}'] = dict(ratio=theirs/ours, ours_MB=ours/1e6, peft_MB=theirs/1e6); worst.append(theirs/ours)
    report('memory', min(worst), 1, what='peak above the loaded model, PEFT divided by ours; the ratio is the worst of all', runs=1 if small() else min(3, repeats()), tasks=o.tasks, shots=o.shots, **found)

if __name__=='__main__': main()
