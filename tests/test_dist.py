"""Several processes end where one does: same losses, same weights, also where one has less to do or nothing.

The file is its own program: `torchrun --standalone --nproc-per-node 2 tests/test_dist.py JOBS FOLDER` does the jobs and leaves what each process found."""
import contextlib, json, os, shutil, signal, subprocess, sys, pytest, torch
from itertools import islice
from pathlib import Path
from promptbench.base.core import UserError
from promptbench.base.stop import Stopped, stoppable
from promptbench.data.suite import Dataset, Example, Suite, load_suite
from promptbench.data.templates import Template
from promptbench.model.backbone import freeze, random_backbone, unfreeze
from promptbench.model.batch import make_batch, pack
from promptbench.model.memory import TokenBudget
from promptbench.model.ranks import check_same, deal, gathered, ranks, sum_over, together
from promptbench.measure.evaluate import evaluate, write_together
from promptbench.prompt.checkpoint import last_step
from promptbench.prompt.inits import new_prompt
from promptbench.train.adafactor import Adafactor
from promptbench.train.fit import fit, token_nll, training
from promptbench.train.pretrain import pretrain
from promptbench.train.tune import TuneConfig, tune

HERE = Path(__file__).parent
SIZES = (2,3)

# --- the jobs ----------------------------------------------------------------------------------------------------------
def texts():
    "Pairs of ids, of very unequal lengths"
    g = torch.Generator().manual_seed(3)
    def ids(most): return torch.randint(13, 100, (int(torch.randint(1, most, (1,), generator=g)),), generator=g).tolist()+[1]
    return [(ids(20),ids(6)) for _ in range(31)]

def updates():
    "One rectangle, three of them, one packed row, five, and a single example, of which most processes have nothing"
    p = texts()
    return [make_batch(p[:7]), [make_batch(p[i:i+3]) for i in (0,3,6)], [pack(p[9:13])],
            [pack(p[i:i+2]) for i in range(13,23,2)], make_batch(p[23:24]), make_batch(p[24:31])]

def train(dropout=0., nll_of=token_nll, **options):
    "A small backbone and its prompt"
    b = unfreeze(random_backbone(dim=32, seed=1))
    p = new_prompt('shallow', b, length=3, seed=2)
    opt = Adafactor([*b.model.parameters(), *p.parameters()], 1e-2, clip=1.)
    with training(b.model, dropout): rows = list(fit(updates(), nll_of(b, p), opt, seed=5, **options))
    return [[r['loss'],r['grad_norm'],r['examples'],r['tokens']] for r in rows],opt.params

def bank():
    "Three prompts on a frozen backbone"
    b = freeze(random_backbone(dim=32, seed=1))
    p = new_prompt('deep', b, length=3, n=3, seed=2)
    given = updates()
    for u in given:
        for x in u if isinstance(u, list) else [u]: x.index_B = torch.arange(len(x))%3
    rows = list(fit(given, token_nll(b, p), Adafactor(p.parameters(), 1e-2, lead=1, clip=1.)))
    return [r['losses'] for r in rows],[p.table]

def shrunk():
    "Memory runs out in the last process alone, wherever a piece has more than 30 positions"
    def small(backbone, prompt):
        whole = token_nll(backbone, prompt)
        def nll(piece):
            if ranks().rank==ranks().size-1 and piece.positions>30: raise RuntimeError('CUDA out of memory (a test)')
            return whole(piece)
        return nll
    budgets = []
    def new(tokens):
        budgets.append(TokenBudget(tokens, floor=8))
        return budgets[-1]
    with pytest.MonkeyPatch.context() as m, pytest.warns(UserWarning, match='memory ran out'):
        m.setattr('promptbench.train.fit.TokenBudget', new)
        out = train(nll_of=small)
    assert 8<=budgets[0].tokens<=60
    check_same(budgets[0].tokens, 'budget')
    return out

def hopeless():
    "Where even the least piece does not fit, all processes say so at once"
    def work(tokens):
        if ranks().main: raise MemoryError('no more (a test)')
    with pytest.raises(UserError, match='memory must hold at least 64 tokens'): TokenBudget(200).run(together(work), 200)

def run_of(folder, stop=None, **changes):
    "Pretraining with checkpoints, maybe left after some updates"
    from test_pretrain import cell, suite
    b,p,config = cell('T+P', 'shallow', **dict(packed=True, dropout=0., row_tokens=40)|changes)
    rows = list(islice(pretrain(b, p, suite().tasks('train'), config, folder=folder, every=2), stop))
    return [r['loss'] for r in rows],[*b.model.parameters(), *p.parameters()]

def cut_off(folder):
    "Left after five updates, then gone on with from the fourth"
    run_of(folder/'run', 5)
    return run_of(folder/'run')

def stopped(folder):
    "The last process is asked to stop behind its third update, and all of them do so after the fourth"
    from test_pretrain import cell, suite
    b,p,config = cell('T+P', 'shallow', dropout=0.)
    rows = []
    with stoppable(), contextlib.suppress(Stopped):
        for row in pretrain(b, p, suite().tasks('train'), config, folder=folder/'stopped', every=100):
            rows.append(row)
            if len(rows)==3 and ranks().rank==ranks().size-1: os.kill(os.getpid(), signal.SIGTERM)
    return [r['loss'] for r in rows],[]

def tuned(folder, **changes):
    "Four tasks of unequal length, one without shots, tuned with a checkpoint after every second step"
    words = 'red blue green big small what color is it the a say'.split()
    def shot(k, i): return Example(f't/{i}', ' '.join(words[(i+j)%12] for j in range(2+(i+k)%3+5*k)), ' '.join(words[:1+(i+k)%3]))
    tasks = [[shot(k, i) for i in range(n)] for k,n in enumerate((6,5,0,2))]
    b = random_backbone(words, dim=32, seed=1)
    config = TuneConfig(steps=6, lr=.05, length=3, **changes)
    for stop in (3, None):
        t = tune(b, 'deep', tasks, config, folder=folder/'tuned', every=2)
        rows = list(islice(t, stop))
    return [r['losses']+r['grad_norms'] for r in rows],[t.bank.table]

def meta():
    "FOMAML and Reptile; the last update has one task, and most processes none"
    from meta_cell import run
    kinds = [dict(method='fomaml', prompt='deep', tasks=5, examples=8*11),
             dict(method='reptile', prompt='shallow', tasks=5, carry='run', lanes=3, examples=8*11)]
    runs = [run(**kind) for kind in kinds]
    rows = [[r[k] for k in ('loss','moved','grad_norm')]+r['inner'] for rows,_,_ in runs for r in rows]
    return rows,[x for _,b,p in runs for x in [*b.model.parameters(), *p.parameters()]]

def judged():
    "Rows and predictions of four templates, under a prompt of each one's own; then of a single example"
    s = load_suite('microworld', seed=1, n_eval=7)
    tasks = s.tasks(dataset=['commit','ending'], limit=2)
    words = [w for t in tasks for e in t.examples('validation') for x in (e.source,*e.choices) for w in x.split()]
    b = random_backbone(words=words, dim=32, seed=1)
    rows,p = evaluate(b, tasks, suite=s, seed=1, prompt=new_prompt('deep', b, length=3, n=4, seed=2))
    few = evaluate(b, tasks[:1], suite=s, n=1)[1]
    cut = evaluate(b, tasks, suite=s, max_source=12, most_cut=1)[0].cut
    return [rows.value.tolist(), rows.n.tolist(), cut.tolist(), p.pred.tolist(), *p.scores_sum, *p.scores_mean, *few.scores_sum],[]

def written():
    "Answers in words under two prompts, some asked twice, greedy and drawn, each task with its own end; then of a single source"
    made = [dict(q=q, a=a) for q,a in zip('red big blue small a a'.split(), 'say it the what color is'.split())]
    plain = Template('plain', 'what color is {{q}} ||| {{a}}')
    told = [Dataset(n, 'words', 'train', dict(train=made, validation=made[:k]), [plain], facts=f)
            for n,k,f in (('first',6,{}), ('second',3,dict(stop_string=' say')))]
    s = Suite('own', told)
    b = random_backbone('red blue green big small what color is it the a say'.split(), dim=32, heads=4, kind='llama', seed=4)
    bank = new_prompt('deep', b, length=3, n=2, seed=2)
    rows,p = evaluate(b, s.tasks(), suite=s, prompt=bank, max_new=6)
    sources = [e.source for t in s.tasks() for e in t.examples('validation')]
    texts = write_together(b, sources, bank, index=[0]*6+[1]*3, max_new=6, temperature=1., seed=3)
    few = evaluate(b, s.tasks()[1:], suite=s, n=1, max_new=6)[1]
    ids = [b.tokenizer(w.text, add_special_tokens=False)['input_ids'] for w in texts]
    assert len(ids)==9 and len({tuple(i) for i in ids})>4
    return [rows.value.tolist(), p.pred.tolist(), *p.scores_sum, *p.scores_mean, *ids, [w.logp for w in texts], *few.scores_sum],[]

def numbers():
    "Sums of tensors of two kinds, in buckets; what differs is found out; no more threads than asked for"
    w = ranks()
    n = w.size
    t = [torch.full((3,), float(w.rank+1)), torch.tensor(10.*w.rank), torch.ones(2, dtype=torch.float64)]
    sum_over(t, bucket=2)
    assert n==1 or [x.flatten()[0].item() for x in t]==[n*(n+1)/2, 10.*n*(n-1)/2, n]
    with pytest.raises(UserError, match=r'first update must be the same in every process, got \[0, 1') if n>1 else contextlib.nullcontext():
        check_same(w.rank, 'first update')
    assert n==1 or torch.get_num_threads()==1
    assert gathered(['a', w.rank])==[['a', r] for r in range(n)]
    hopeless()
    return [],[]

JOBS = dict(plain=lambda f: train(), cut=lambda f: train(micro_tokens=40), bank=lambda f: bank(), shrunk=lambda f: shrunk(),
            run=cut_off, tune=tuned, meta=lambda f: meta(), judge=lambda f: judged(), write=lambda f: written(), numbers=lambda f: numbers())
OTHERS = dict(dropout=lambda f: train(.2), stopped=stopped, on=lambda f: run_of(f/'stopped', packed=None, row_tokens=8192))

def everything(names, folder):
    folder.mkdir(exist_ok=True)
    return {name: (JOBS|OTHERS)[name](folder) for name in names}

def child(names, folder):
    "One process's part; only the main one may write checkpoints"
    import promptbench.train.pretrain as pages, promptbench.train.tune as bank_pages
    from safetensors.torch import save_file
    def never(*_, **__): raise AssertionError('a process that is not the main one wrote a checkpoint')
    me = ranks()
    assert me.main==(me.rank==0)
    if not me.main: pages.save_step = bank_pages.save_step = never
    done = everything(names.split(','), folder)
    weights = {f'{k}.{i}': x.detach().clone() for k,(_,xs) in done.items() for i,x in enumerate(xs)}
    save_file(weights, folder/f'{names}-{me.size}-{me.rank}.safetensors')
    (folder/f'{names}-{me.size}-{me.rank}.json').write_text(json.dumps({k: r for k,(r,_) in done.items()}))

# --- starting them -----------------------------------------------------------------------------------------------------
def torchrun(size, *arguments, timeout=240):
    "A program started as the documentation says; its output, and whether it ended well"
    env = dict(os.environ, OMP_NUM_THREADS='1', CUDA_VISIBLE_DEVICES='', PYTHONPATH=f'{HERE.parent}:{HERE}:{os.environ.get("PYTHONPATH", "")}')
    line = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(size), *map(str, arguments)]
    return subprocess.run(line, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=timeout)

def start(size, names, folder):
    "Rows and weights that every process found"
    from safetensors.torch import load_file
    names = ','.join(names)
    done = torchrun(size, HERE/'test_dist.py', names, folder)
    assert done.returncode==0, done.stdout[-4000:]
    files = [folder/f'{names}-{size}-{r}' for r in range(size)]
    return [json.loads(Path(f'{f}.json').read_text()) for f in files],[load_file(f'{f}.safetensors') for f in files]

@pytest.fixture(scope='module')
def one(tmp_path_factory):
    was = torch.get_num_threads()
    torch.set_num_threads(1)
    try: return everything([*JOBS, 'dropout'], tmp_path_factory.mktemp('one'))
    finally: torch.set_num_threads(was)

@pytest.fixture(scope='module')
def many(tmp_path_factory):
    "What two and three processes found, and their folders"
    folders = {size: tmp_path_factory.mktemp('many') for size in SIZES}
    found = {2: start(2, [*JOBS, 'dropout', 'stopped'], folders[2])}
    shutil.copytree(folders[2]/'stopped', folders[3]/'stopped')
    found[3] = start(3, [*JOBS, 'on'], folders[3])
    return found,folders

# --- what they found ---------------------------------------------------------------------------------------------------
def close(rows, want):
    for a,b in zip(rows, want, strict=True): assert a==pytest.approx(b, abs=1e-5, rel=1e-5)

@pytest.mark.parametrize('job', JOBS)
@pytest.mark.parametrize('size', SIZES)
def test_several_processes_equal_one(one, many, size, job):
    rows,weights = many[0][size]
    want,params = one[job]
    assert all(r[job]==rows[0][job] for r in rows)
    close(rows[0][job], want)
    for i,p in enumerate(params):
        assert all(torch.equal(w[f'{job}.{i}'], weights[0][f'{job}.{i}']) for w in weights)
        torch.testing.assert_close(weights[0][f'{job}.{i}'], p.detach(), atol=1e-5, rtol=1e-5)

def test_memory_that_runs_out_changes_nothing_else(one, many):
    for size in SIZES: close(many[0][size][0][0]['shrunk'], one['plain'][0])

def test_dropout_draws_are_each_process_s_own(one, many):
    "The same in all processes once summed; near to one process's, and not equal to them"
    mine,other = many[0][2][0]
    assert mine['dropout']==other['dropout']
    losses,want = ([r[0] for r in rows] for rows in (mine['dropout'], one['dropout'][0]))
    assert losses!=want and losses==pytest.approx(want, rel=.25) and mine['dropout']!=mine['plain']

def test_a_stop_asked_in_one_process_stops_all_and_any_number_goes_on(many, tmp_path):
    "Stopped on two after four updates, gone on with on three, on one; the losses of an undisturbed run"
    found,folders = many
    assert [len(r['stopped']) for r in found[2][0]]==[4,4]
    assert last_step(folders[2]/'stopped').name=='step-00000004'
    shutil.copytree(folders[2]/'stopped', tmp_path/'stopped')
    want = OTHERS['on'](tmp_path/'new')[0]
    close(OTHERS['on'](tmp_path)[0], want)
    for rows in found[3][0]: close(rows['on'], want)
    assert len(want)==10

def test_only_the_main_process_wrote(many):
    for folder in many[1].values():
        assert last_step(folder/'run').name=='step-00000010' and not list((folder/'run').glob('.step-*'))

def test_a_process_that_dies_ends_all(tmp_path):
    "The others wait for its sum, and must not wait for ever"
    code = """
import os, signal
from promptbench.model.ranks import anywhere, ranks
anywhere(False)
if ranks().rank==1: os.kill(os.getpid(), signal.SIGKILL)
anywhere(False)
print('never')
"""
    (tmp_path/'dies.py').write_text(code)
    done = torchrun(3, tmp_path/'dies.py', timeout=60)
    assert done.returncode!=0 and 'never' not in done.stdout, done.stdout[-2000:]

@pytest.mark.parametrize('size', [1,2,3,5])
def test_dealing_is_even(size):
    g = torch.Generator().manual_seed(size)
    for n in (0,1,4,64):
        costs = torch.randint(1, 100, (n,), generator=g).tolist()
        hands = deal(costs, size)
        assert sorted(i for h in hands for i in h)==list(range(n)) and all(h==sorted(h) for h in hands)
        assert max(map(len, hands))-min(map(len, hands))<=1
        loads = [sum(costs[i] for i in h) for h in hands]
        assert max(loads)-min(loads)<=max(costs, default=0)
    assert ranks().size==1 and ranks().main

if __name__=='__main__': child(sys.argv[1], Path(sys.argv[2]))
