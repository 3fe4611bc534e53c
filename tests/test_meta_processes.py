"Meta-learners that are killed, stopped, or run in two processes"
import itertools, os, signal, socket, subprocess, sys, pytest, torch
from dataclasses import replace
from pathlib import Path
from promptbench.base.core import UserError
from promptbench.model.backbone import weight_hashes
from promptbench.train.meta import meta_train
from meta_cell import cell, run, suite

CARRY = dict(method='reptile', prompt='deep', carry='run', lanes=2, updates=8, dropout=.1)
CHILD = """
import sys, time; sys.path.insert(0, sys.argv[1])
from test_meta_processes import *
import promptbench.train.meta as meta
inner,calls = meta.adapt,[]
def adapt(*a, **k):
    out = inner(*a, **k); calls.append(0); print(len(calls), flush=True)
    if len(calls)==11: time.sleep(60)
    return out
meta.adapt = adapt; torch.set_num_threads(1); b,p,config = cell(**CARRY)
for row in meta_train(b, p, suite().tasks('train'), config, folder=sys.argv[2], every=2): pass
"""
def start(code, *args, **env): return subprocess.Popen([sys.executable, '-c', code, str(Path(__file__).parent), *map(str, args)], stdout=subprocess.PIPE, text=True, env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=f'{Path(__file__).parent.parent}:{os.environ.get("PYTHONPATH", "")}', **env))

def test_killed_inside_an_update_it_goes_on_with_the_same_bits(tmp_path):
    "Killed between the two waves of the sixth update: carried statistics of prompt and transformer come from the checkpoint of the fourth"
    child = start(CHILD, tmp_path/'run'); want,b,p = run(**CARRY)
    for line in child.stdout:
        if int(line)==11: child.send_signal(signal.SIGKILL); break
    assert child.wait()==-signal.SIGKILL; child.stdout.close()
    assert sorted(x.name for x in (tmp_path/'run').glob('step-*'))==['step-00000002','step-00000004']
    b2,p2,config = cell(**CARRY); torch.set_num_threads(1); got = list(meta_train(b2, p2, suite().tasks('train'), config, folder=tmp_path/'run', every=2))
    strip = lambda rows: [{k:v for k,v in r.items() if k!='seconds'} for r in rows]
    assert strip(got)==strip(want) and weight_hashes(b2)==weight_hashes(b) and torch.equal(p2.table, p.table)
    assert all(x['seconds']<=y['seconds'] for x,y in zip(got, got[1:]))

@pytest.mark.parametrize('changes', [dict(carry='run', inner='adam', lanes=1), dict(method='reptile', inner='adam', carry='run')], ids=str)
def test_stopped_run_goes_on(tmp_path, changes):
    want,b,p = run(**(dict(method='fomaml', prompt='shallow', updates=5, dropout=.1)|changes)); torch.set_num_threads(1)
    for stop in (3, None): b2,p2,config = cell(**(dict(updates=5, dropout=.1)|changes)); got = list(itertools.islice(meta_train(b2, p2, suite().tasks('train'), config, folder=tmp_path, every=2), stop))
    assert [r['loss'] for r in got]==[r['loss'] for r in want] and weight_hashes(b2)==weight_hashes(b) and torch.equal(p2.table, p.table)
    for other,said in [(dict(inner_lr=.5), 'other config'), (dict(seed=5), 'other config')]:
        with pytest.raises(UserError, match=said): next(meta_train(*cell()[:2], suite().tasks('train'), replace(config, **other), folder=tmp_path))
    with pytest.raises(UserError, match='other data'): next(meta_train(*cell()[:2], suite().tasks('train')[:2], config, folder=tmp_path))

PAIR = """
import sys; sys.path.insert(0, sys.argv[1])
from test_meta_processes import *
from safetensors.torch import save_file
torch.set_num_threads(1)
for i,c in enumerate(TOGETHER):
    b,p,config = cell(**c); rows = list(meta_train(b, p, suite().tasks('train'), config, folder=f'{sys.argv[2]}/run{i}', every=2, before=True))
    save_file(dict(rows=torch.tensor([[r[k] for k in ('loss','before','moved','grad_norm')]+r['inner'] for r in rows]), prompt=p.table.detach().clone(), **{n:x.detach().clone() for n,x in b.model.named_parameters()}), f'{sys.argv[2]}/{i}-{sys.argv[3]}.safetensors')
"""
TOGETHER = [dict(method='fomaml', prompt='deep', tasks=5, examples=8*11), dict(method='reptile', tasks=5, carry='run', lanes=3, examples=8*11)] # the last update has one task: one process has none

def test_two_processes_equal_one(tmp_path):
    from safetensors.torch import load_file
    with socket.socket() as s: s.bind(('127.0.0.1', 0)); port = s.getsockname()[1]
    env = dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), ACCELERATE_USE_CPU='true')
    pair = [start(PAIR, tmp_path, r, RANK=str(r), LOCAL_RANK=str(r), **env) for r in range(2)]
    alone = []
    for c in TOGETHER: b,p,config = cell(**c); alone.append((list(meta_train(b, p, suite().tasks('train'), config, before=True)), b, p))
    for x in pair: assert x.wait(100)==0; x.stdout.close()
    for i,(rows,b,p) in enumerate(alone):
        mine,other = (load_file(tmp_path/f'{i}-{r}.safetensors') for r in range(2)); want = torch.tensor([[r[k] for k in ('loss','before','moved','grad_norm')]+r['inner'] for r in rows])
        assert len(rows)==3 and all(torch.equal(mine[n], other[n]) for n in mine); torch.testing.assert_close(mine['rows'], want, atol=1e-5, rtol=1e-5)
        for n,x in [*b.model.named_parameters(), ('prompt', p.table)]: torch.testing.assert_close(mine[n], x.detach(), atol=1e-5, rtol=0)
        assert [x.name for x in (tmp_path/f'run{i}').iterdir()]==['step-00000002']
