"Two processes end where one does: same losses, same weights, also when one has less to do or nothing, and only the main one writes"
import json, os, socket, subprocess, sys, pytest, torch
from pathlib import Path
from promptbench.model.backbone import random_backbone, unfreeze
from promptbench.model.batch import make_batch, pack
from promptbench.model.ranks import ranks, share, sum_over
from promptbench.train.adafactor import Adafactor
from promptbench.train.fit import fit, micro_batches, token_nll, training
from promptbench.prompt.inits import new_prompt

HERE = Path(__file__).parent

def updates():
    "Three updates: three padded pieces, one packed row (the second process gets none), five packed rows"
    g = torch.Generator().manual_seed(3); ids = lambda hi: torch.randint(13, 100, (int(torch.randint(1, hi, (1,), generator=g)),), generator=g).tolist()+[1]
    pairs = lambda n: [(ids(20),ids(6)) for _ in range(n)]
    a,b,c = pairs(9),pairs(4),pairs(10)
    return [[make_batch(a[i:i+3]) for i in (0,3,6)], [pack(b)], [pack(c[i:i+2]) for i in range(0,10,2)]]

def train(dropout):
    "Losses and weights after three updates of a small backbone and its prompt"
    b = unfreeze(random_backbone(dim=32, seed=1)); p = new_prompt('shallow', b, length=3, seed=2)
    opt = Adafactor([*b.model.parameters(), *p.parameters()], 1e-2, clip=1.)
    with training(b.model, dropout): rows = list(fit(updates(), token_nll(b, p), opt, seed=5))
    return [(r['loss'],r['grad_norm'],r['examples'],r['tokens']) for r in rows],[x.detach() for x in opt.params]

def bank():
    "A bank on a frozen backbone; the second process has nothing of the second update"
    b = random_backbone(dim=32, seed=1); b.model.requires_grad_(False); p = new_prompt('deep', b, length=3, n=3, seed=2); us = updates()
    for u in us:
        for x in u: x.index_B = torch.arange(len(x))%3
    rows = list(fit(us, token_nll(b, p), Adafactor(p.parameters(), 1e-2, lead=1, clip=1.)))
    return [r['losses'] for r in rows],[p.table.detach()]

def whole_run(folder):
    "A pretraining run with checkpoints, cut after five updates, then gone on with"
    from itertools import islice
    from test_pretrain import cell, suite
    from promptbench.train.pretrain import pretrain
    for stop in (5, None):
        b,p,config = cell('T+P','shallow', packed=True, row_tokens=40); rows = list(islice(pretrain(b, p, suite().tasks('train'), config, folder=folder, every=2), stop))
    return [r['loss'] for r in rows],[x.detach() for x in [*b.model.parameters(), *p.parameters()]]

def everything(folder):
    torch.set_num_threads(1); jobs = dict(plain=lambda: train(0.), dropout=lambda: train(.2), bank=bank, run=lambda: whole_run(folder))
    return {k:f() for k,f in jobs.items()}

def child(out):
    w = ranks(); assert w.size==2 and w.main==(w.rank==0)
    t = [torch.full((3,), float(w.rank+1)), torch.tensor(10.*w.rank), torch.ones(2, dtype=torch.float64)]; sum_over(t, bucket=2); assert [x.flatten()[0].item() for x in t]==[3.,10.,2.]
    import promptbench.train.pretrain
    def never(*_, **__): raise AssertionError('a process that is not the main one wrote a checkpoint')
    if not w.main: promptbench.train.pretrain.save_step = never
    from safetensors.torch import save_file
    done = everything(Path(out)/'run')
    save_file({f'{k}.{i}':x.contiguous() for k,(_,xs) in done.items() for i,x in enumerate(xs)}, Path(out)/f'{w.rank}.safetensors')
    (Path(out)/f'{w.rank}.json').write_text(json.dumps({k:r for k,(r,_) in done.items()}))

@pytest.fixture(scope='module')
def two(tmp_path_factory):
    "What two processes over gloo found"
    from safetensors.torch import load_file
    out = tmp_path_factory.mktemp('two')
    with socket.socket() as s: s.bind(('127.0.0.1',0)); port = s.getsockname()[1]
    env = lambda rank: dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=f'{HERE.parent}:{HERE}:{os.environ.get("PYTHONPATH", "")}', MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), WORLD_SIZE='2', RANK=str(rank), LOCAL_RANK=str(rank), CUDA_VISIBLE_DEVICES='')
    procs = [subprocess.Popen([sys.executable, str(HERE/'test_dist.py'), str(out)], env=env(r), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for r in (0,1)]
    try: said = [p.communicate(timeout=240)[0] for p in procs]
    finally: [p.kill() for p in procs]
    assert [p.returncode for p in procs]==[0,0], '\n'.join(said)
    return out,[json.loads((out/f'{r}.json').read_text()) for r in (0,1)],[load_file(out/f'{r}.safetensors') for r in (0,1)]

@pytest.fixture(scope='module')
def one(tmp_path_factory): return everything(tmp_path_factory.mktemp('one')/'run')

@pytest.mark.parametrize('job', ['plain','dropout','bank','run'])
def test_two_processes_equal_one(one, two, job):
    _,rows,weights = two; want,params = one[job]
    assert rows[0][job]==rows[1][job]
    for a,b in zip(rows[0][job], want, strict=True): assert a==pytest.approx(b, abs=1e-5, rel=1e-5)
    for i,p in enumerate(params):
        assert torch.equal(weights[0][f'{job}.{i}'], weights[1][f'{job}.{i}'])
        torch.testing.assert_close(weights[0][f'{job}.{i}'], p, atol=1e-5, rtol=1e-5)

def test_only_the_main_process_wrote(two):
    from promptbench.prompt.checkpoint import last_step
    assert last_step(two[0]/'run').name=='step-00000010' and not list((two[0]/'run').glob('.step-*'))

def test_shares():
    for size in (1,2,3,5):
        parts = [share('abcd', r, size) for r in range(size)]; assert sorted(x for p in parts for x in p)==list(enumerate('abcd'))
        assert max(map(len, parts))-min(map(len, parts))<=1
    assert ranks().size==1 and ranks().main

if __name__=='__main__': child(sys.argv[1])
