"""Pretraining from the cache: the same numbers as without it, with any number of workers and processes, and going on after a stop"""
import itertools, json, os, socket, subprocess, sys
from pathlib import Path
import numpy as np, pytest, torch
from promptbench.base.core import UserError
from promptbench.model.batch import mtl_batches
from promptbench.model.tokens import fill
from promptbench.train.pretrain import PretrainConfig, mixed_pairs, pretrain
from promptbench.train.rendered import MixedPairs, Pairs
from test_pretrain import cell, suite
from test_rendered import backbone, quiet, tasks # the cache in a folder of its own, for every test here

HERE = Path(__file__).parent

@pytest.mark.parametrize('rule', ['even','proportional'])
@pytest.mark.parametrize('examples', [80,None])
def test_the_same_mixture_from_the_cache(backbone, rule, examples):
    config = PretrainConfig(examples=examples, mixture=rule, cap=20, seed=3); a,b = (mixed_pairs(backbone, tasks(), config, cache=c) for c in (False,True))
    assert type(b) is Pairs and list(b)==a and fill(b, batch_size=8, seed=1)==fill(a, batch_size=8, seed=1)
    assert [x.src_BT.tolist() for x in mtl_batches(b, batch_size=8, seed=1)]==[x.src_BT.tolist() for x in mtl_batches(a, batch_size=8, seed=1)]

def losses(**how):
    b,p,config = cell('T+P','shallow', **how.pop('config', {})); return [r['loss'] for r in pretrain(b, p, tasks(), config, **how)]

@pytest.mark.parametrize('packed', [False,True])
def test_same_losses_from_the_cache_and_with_workers(packed):
    config = dict(packed=packed, row_tokens=40); want = losses(config=config); assert losses(config=config, cache=True, workers=2 if packed else 0)==want and (packed or losses(config=config, workers=1)==want)

STREAM = dict(mixture='temperature:3', examples=100, dropout=.1)
def test_a_streamed_mixture_goes_on_where_it_stopped(tmp_path):
    "Step n of a run that goes on is step n of a whole one, with any number of workers"
    want = losses(config=STREAM); assert len(want)==13
    for stop,workers in ((5,0),(8,2),(None,1)):
        b,p,config = cell('T+P','shallow', **STREAM); got = [r['loss'] for r in itertools.islice(pretrain(b, p, tasks(), config, folder=tmp_path/'run', every=2, workers=workers), stop)]; assert got==want[:stop]
    state = json.loads((sorted((tmp_path/'run').glob('step-*'))[-1]/'state.json').read_text()); assert state['position']==len(state['rows'])==12

def test_large_mixtures_are_streamed(backbone, monkeypatch):
    import promptbench.train.pretrain as pre
    monkeypatch.setattr(pre, 'LISTED', 50)
    for rule in ('even','proportional'):
        p = mixed_pairs(backbone, tasks(), PretrainConfig(examples=60, mixture=rule)); assert type(p) is MixedPairs and len(p)==60 and len(set(p.where(range(60)).tolist()))==60
        count = np.array(p.mixing.quotas); by = [count[:2].sum(), count[2:3].sum(), count[3:].sum()]; assert by==([20,20,20] if rule=='even' else [38,7,15]), (rule, by)
    assert len(mixed_pairs(backbone, tasks(), PretrainConfig(mixture='even')))==185   # everything that renders
    with pytest.raises(UserError, match='needs the cache'): mixed_pairs(backbone, tasks(), PretrainConfig(), cache=False)

def test_rules_are_checked():
    for bad,said in [('fair','mixture must be one of'), ('temperature:0','above 0'), ('temperature:x','above 0'), ('equal:3','above 0')]:
        with pytest.raises(UserError, match=said): PretrainConfig(mixture=bad)

def child(out):
    "One of two processes: the streamed run from a cache that both want to build"
    torch.set_num_threads(1); got = losses(config=STREAM|dict(dropout=0.), cache=Path(out)/'cache', workers=1); rank = os.environ.get('RANK', '0'); Path(out, f'{rank}.json').write_text(json.dumps(got))

def test_two_processes_equal_one(tmp_path):
    with socket.socket() as s: s.bind(('127.0.0.1',0)); port = s.getsockname()[1]
    env = lambda rank: dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=f'{HERE.parent}:{HERE}:{os.environ.get("PYTHONPATH", "")}', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE='2', RANK=str(rank), LOCAL_RANK=str(rank), CUDA_VISIBLE_DEVICES='')
    procs = [subprocess.Popen([sys.executable, str(HERE/'test_mixed_runs.py'), str(tmp_path)], env=env(r), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for r in (0,1)]
    try: said = [p.communicate(timeout=200)[0] for p in procs]
    finally: [p.kill() for p in procs]
    assert [p.returncode for p in procs]==[0,0], '\n'.join(said)
    a,b = (json.loads((tmp_path/f'{r}.json').read_text()) for r in (0,1)); want = losses(config=STREAM|dict(dropout=0.)); assert a==b and len(a)==13 and a[:6]==pytest.approx(want[:6], abs=1e-5) # dropout draws, and later roundings, are each process's own

if __name__=='__main__': child(sys.argv[1])
